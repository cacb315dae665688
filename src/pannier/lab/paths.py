"""Where the lab keeps things, and what its parts are called.

Every resource of a lab carries the lab's name in its own: so `down` finds them without any record,
and two labs cannot meet.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pannier.lab.errors import LabError

DEFAULT_NAME = "lab"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_LONGEST_LINK_NAME = 8  # the kernel allows 15 characters: "pl-" + name + "_" + number


def run_root() -> Path:
    """Folder of what does not outlive this host's boot: states, sockets, mount points."""
    return Path(os.environ.get("PANNIER_LAB_RUN", "/run/pannier-lab"))


def data_root() -> Path:
    """Folder of the machines' disks."""
    return Path(os.environ.get("PANNIER_LAB_DATA", "/var/lib/pannier-lab"))


def cache_root() -> Path:
    """Folder of the root file systems, shared by all labs."""
    return Path(os.environ.get("PANNIER_LAB_CACHE", "/var/cache/pannier-lab"))


@dataclass(frozen=True, slots=True)
class Names:
    """The names that belong to one lab.

    Attributes:
        lab: the lab's name.
    """

    lab: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.lab):
            raise LabError(
                f"{self.lab!r} cannot name a lab",
                remedy="use up to 31 of a-z, 0-9 and -, a letter first",
            )

    @property
    def run(self) -> Path:
        return run_root() / self.lab

    @property
    def data(self) -> Path:
        return data_root() / self.lab

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def group(self) -> str:
        return f"pannier-lab/{self.lab}"

    @property
    def link_prefix(self) -> str:
        """What the lab's network interfaces begin with."""
        if len(self.lab) <= _LONGEST_LINK_NAME:
            return f"pl-{self.lab}"
        return f"pl-{self.lab[:3]}-{hashlib.sha256(self.lab.encode()).hexdigest()[:4]}"

    @property
    def bridge(self) -> str:
        return self.link_prefix

    def link(self, index: int) -> str:
        """The host's end of the cable to machine ``index``."""
        return f"{self.link_prefix}_{index}"

    def netns(self, node: str) -> Path:
        """The file that keeps a machine's network namespace; for ``nsenter --net=FILE``."""
        return self.run / "netns" / node

    def nspawn(self, node: str) -> str:
        """What systemd-nspawn calls a machine."""
        return f"pl.{self.lab}.{node}"

    @property
    def ssh_key(self) -> Path:
        return self.data / "ssh_key"

    @property
    def known_hosts(self) -> Path:
        return self.data / "known_hosts"
