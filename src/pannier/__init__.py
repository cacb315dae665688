"""Pannier: Docker volumes that follow their containers between hosts."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pannier")
except PackageNotFoundError:  # run from a bare copy of the package, as on the lab's machines
    __version__ = "0.1.0.dev0"
