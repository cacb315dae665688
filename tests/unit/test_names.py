"""A name means one thing in the whole program."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pannier


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    root = Path(pannier.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if "collection" in file.parts:  # Ansible's, in a wheel
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(file.relative_to(root)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
