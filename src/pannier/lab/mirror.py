"""Which Debian mirror this host uses, and how: taken from its own apt configuration.

Bare machines reach the same one through a server on the lab's bridge.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from pannier.lab.cgroup import HostGroup
from pannier.lab.errors import LabError
from pannier.lab.network import host_address
from pannier.lab.paths import Names, cache_root
from pannier.lab.process import run, start_detached

_NOT_THE_ARCHIVE = ("-security", "-updates", "-backports", "-debug")

_PORT = 3142


def mirror(apt: Path = Path("/etc/apt")) -> str:
    """The address of the Debian archive that apt is configured for.

    ``PANNIER_LAB_MIRROR`` in the environment has precedence.

    Raises:
        LabError: apt has no source with Debian's main component.
    """
    if chosen := os.environ.get("PANNIER_LAB_MIRROR"):
        return chosen
    for uri, suites, components in _sources(apt):
        whole = [suite for suite in suites if not suite.endswith(_NOT_THE_ARCHIVE)]
        if "main" in components and whole:
            return uri
    raise LabError(
        f"no Debian archive with the component main in {apt}",
        remedy="set PANNIER_LAB_MIRROR to a Debian mirror's address",
    )


def download_environment() -> dict[str, str]:
    """Our environment with apt's proxies in it, for programs that are not apt."""
    found = dict(os.environ)
    for scheme in ("http", "https"):
        shown = run(["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"], check=False)
        value = shlex.split(shown.stdout.strip().removeprefix("PROXY="))
        if value and value[0] not in ("", "DIRECT"):
            found.setdefault(f"{scheme}_proxy", value[0])
    return found


def offered_to(subnet: str) -> str:
    """The archive's address for the machines of this subnet."""
    return f"http://{host_address(subnet)}:{_PORT}"


def offer(names: Names, subnet: str) -> None:
    """Serve the archive at that address until the lab ends: the server is in a group of the lab."""
    group = HostGroup(f"{names.group}/archive")
    group.create()
    listen = [host_address(subnet), str(_PORT)]
    start_detached(
        [sys.executable, "-m", "pannier.lab.archive", *listen, mirror(), str(cache_root() / "deb")],
        join=group.joining,
        log=names.run / "archive.log",
        env=download_environment(),
    )


def _sources(apt: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(address, suites, components) of every enabled source of binary packages."""
    folder = apt / "sources.list.d"
    for path in sorted(folder.glob("*.sources")):
        yield from _deb822(path.read_text())
    for path in (apt / "sources.list", *sorted(folder.glob("*.list"))):
        if path.exists():
            yield from _one_line(path.read_text())


def _deb822(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for stanza in text.split("\n\n"):
        lines = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        fields = {
            key.strip().lower(): value.split()
            for key, colon, value in (line.partition(":") for line in lines)
            if colon and not key[0].isspace()
        }
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) == ["yes"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", []), fields.get("components", [])


def _one_line(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words[:1] != ["deb"]:
            continue
        rest = words[1:]
        if rest and rest[0].startswith("["):
            end = next((at for at, word in enumerate(rest) if word.endswith("]")), len(rest))
            rest = rest[end + 1 :]
        if len(rest) >= 3:
            yield rest[0], [rest[1]], rest[2:]
