"""Lets tests import the collection's Python as Ansible names it, from where it is in the checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2] / "deploy"


def plugin(name: str) -> ModuleType:
    """A Python file of the collection, such as ``plugin_utils.preflight``."""
    for package, path in (("", []), (".pannier", []), (".pannier.cluster", [str(ROOT)])):
        module = ModuleType(f"ansible_collections{package}")
        module.__path__ = path
        sys.modules.setdefault(module.__name__, module)
    return import_module(f"ansible_collections.pannier.cluster.plugins.{name}")
