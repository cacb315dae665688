"""etcd's own benchmark, built by the Go of this machine: nobody ships it."""

from __future__ import annotations

import os
from pathlib import Path

from demo import packages

from pannier.lab.process import run

_MODULE = "go.etcd.io/etcd/v3/tools/benchmark"
_VERSION = "v3.5.17"


def binary(report: packages.Report) -> Path:
    """The program, which needs no libraries; built if it is not in the lab's cache.

    Raises:
        LabError: there is no Go, or it cannot build it.
    """
    files = packages.kept("etcd-benchmark", recipe=[Path(__file__)], make=_make, report=report)
    return files / "etcd-benchmark"


def _make(draft: Path) -> Path:
    # etcd's module replaces others, so "go install" refuses it: as a dependency it can be built.
    files = draft / "files"
    for command in (
        ["mod", "init", "scratch"],
        ["get", f"{_MODULE}@{_VERSION}"],
        ["build", "-o", f"{files}/", _MODULE],
    ):
        run(["go", "-C", str(draft), *command], env={**os.environ, "CGO_ENABLED": "0"})
    (files / "benchmark").rename(files / "etcd-benchmark")
    return files
