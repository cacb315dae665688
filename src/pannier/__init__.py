"""Pannier: Docker volumes that follow their containers between hosts."""

__version__: str


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: most commands need none of the package's metadata."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pannier")
    except PackageNotFoundError:  # run from a bare copy of the package
        return "0.1.0.dev0"
