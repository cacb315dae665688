"""Files for a machine: Pannier itself, as it is installed here."""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib import metadata
from pathlib import Path

import pannier
from pannier.stacks import shipped

_VENV = "/opt/pannier/venv"
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def requirements() -> list[str]:
    """Pannier's dependencies from its own metadata, without those of its extras."""
    return sorted(line for line in metadata.requires("pannier") or [] if "extra ==" not in line)


def copy_pip_settings(upper: Path) -> None:
    """Copy what pip on this host needs to find its index below ``upper``.

    That is host names, settings and certificates. They are copied, because pip and the build scripts
    of packages run as root there.
    """
    wanted = ["/etc/hosts", "/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs"]
    for name in ("PIP_CERT", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "SSL_CERT_FILE"):
        wanted += [word for word in os.environ.get(name, "").split() if word.startswith("/")]
    for source in map(Path, dict.fromkeys(wanted)):
        target = upper / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore_dangling_symlinks=True, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)


def copy_to(upper: Path, *, site_packages: Path) -> None:
    """Install Pannier below ``upper``: package, metadata, commands and systemd units.

    Args:
        upper: an empty folder that becomes a layer over Debian and the virtual environment.
        site_packages: where packages are, seen from inside the machine.
    """
    packages = upper / site_packages.relative_to("/")
    source = Path(pannier.__file__).parent
    shutil.copytree(source, packages / "pannier", ignore=_IGNORED)
    if not (source / "stacks/files").exists():  # a checkout, whose stacks are beside the package
        shutil.copytree(shipped.folder(), packages / "pannier/stacks/files")
    distribution = metadata.distribution("pannier")
    info = packages / f"pannier-{distribution.version}.dist-info"
    info.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(distribution.read_text(name) or "")
    _install_commands(upper, distribution)
    units = upper / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    if (source / "systemd").is_dir():
        for unit in sorted((source / "systemd").iterdir()):
            if unit.suffix in (".service", ".socket", ".target", ".timer", ".path"):
                shutil.copy(unit, units)


def _install_commands(upper: Path, distribution: metadata.Distribution) -> None:
    commands = upper / "usr/local/bin"
    commands.mkdir(parents=True)
    for entry in distribution.entry_points.select(group="console_scripts"):
        script = commands / entry.name
        script.write_text(
            f"#!{_VENV}/bin/python\n"
            f"import sys\n\nfrom {entry.module} import {entry.attr}\n\nsys.exit({entry.attr}())\n"
        )
        script.chmod(0o755)


def digest(folder: Path) -> str:
    """A hash of all names and contents below ``folder``."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path.relative_to(folder)}\0{path.stat().st_mode:o}\0".encode())
        if path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
