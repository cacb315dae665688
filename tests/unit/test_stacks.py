"""The ready stacks: what they ask of Pannier is understood, and every variable is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pannier.core.options import parse_options

STACKS = sorted((Path(__file__).parents[2] / "stacks").glob("*/compose.yml"))
each_stack = pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.parent.name)


def read(stack: Path) -> Any:
    return yaml.safe_load(stack.read_text())


@each_stack
def test_its_volumes_have_two_copies_that_sync_calls_wait_for(stack: Path) -> None:
    ours = [each for each in read(stack)["volumes"].values() if each.get("driver") == "pannier"]
    assert ours
    for volume in ours:
        spec = parse_options(volume["driver_opts"])
        assert (spec.copies, spec.durability) == (2, "fsync")
        assert volume["name"], "without one, the stack's name would be part of it"


@each_stack
def test_nothing_needs_a_virtual_address_or_a_second_writer(stack: Path) -> None:
    """Kernels without ip_vs have no virtual addresses; a volume has one writer."""
    for name, service in read(stack)["services"].items():
        deploy = service["deploy"]
        assert deploy["endpoint_mode"] == "dnsrr", name
        assert deploy.get("update_config", {}).get("order", "stop-first") == "stop-first", name
        assert all(port["mode"] == "host" for port in service.get("ports", [])), name


@each_stack
def test_every_variable_is_explained(stack: Path) -> None:
    explained = (stack.parent / "README.md").read_text()
    variables = set(re.findall(r"\$\{([A-Z_]+)", stack.read_text()))
    assert variables
    assert [name for name in variables if f"`{name}`" not in explained] == []


@each_stack
def test_every_file_is_there(stack: Path) -> None:
    configs = read(stack).get("configs", {}).values()
    named = [re.sub(r"\$\{[A-Z_]+:-(.*)\}", r"\1", config["file"]) for config in configs]
    assert [name for name in named if not (stack.parent / name).exists()] == []
