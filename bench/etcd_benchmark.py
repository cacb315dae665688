"""etcd's own benchmark, built by the Go of this machine: nobody ships it."""

from __future__ import annotations

from pathlib import Path

from demo import go_program, packages

_PACKAGE = "go.etcd.io/etcd/v3/tools/benchmark"
_VERSION = "v3.5.17"


def binary(report: packages.Report) -> Path:
    """The program, which needs no libraries; built if it is not in the lab's cache.

    Raises:
        LabError: there is no Go, or it cannot build it.
    """
    return go_program.built(
        "etcd-benchmark", _PACKAGE, _VERSION, recipe=Path(__file__), report=report
    )
