"""The lab's network: a bridge on the host, and one cable from it into each machine's namespace."""

from __future__ import annotations

import contextlib
import ipaddress
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pannier.lab.errors import LabError
from pannier.lab.mounts import unmount_below
from pannier.lab.paths import DEFAULT_NAME, Names, run_root
from pannier.lab.process import run
from pannier.lab.state import locked

_INTERFACES = Path("/sys/class/net")


def node_address(subnet: str, index: int) -> str:
    """The address of machine ``index``, counted from 1: .11, .12 and so on."""
    return str(ipaddress.IPv4Network(subnet)[10 + index])


def host_address(subnet: str) -> str:
    """The host's own address on the bridge: the subnet's first."""
    return str(ipaddress.IPv4Network(subnet)[1])


@contextlib.contextmanager
def choosing_subnet() -> Iterator[None]:
    """Keep other labs of this host from choosing a subnet, until this lab's bridge has its own."""
    with locked(run_root() / ".subnet.lock"):
        yield


def free_subnet(name: str) -> str:
    """A /24 of 10.89.0.0/16 that this host does not use; if possible the same for the same name.

    Until this lab's bridge is there, another lab could choose the same one: see
    :func:`choosing_subnet`.

    Raises:
        LabError: all of them are in use.
    """
    used = [
        ipaddress.IPv4Network(word, strict=False)
        for line in run(["ip", "-4", "route", "show", "table", "all"]).stdout.splitlines()
        if (word := _network_of(line)) and word != "default"
    ]
    first = 0 if name == DEFAULT_NAME else 1 + zlib.crc32(name.encode()) % 254
    for step in range(256):
        subnet = ipaddress.IPv4Network(f"10.89.{(first + step) % 256}.0/24")
        if not any(subnet.overlaps(other) for other in used if other.prefixlen > 8):
            return str(subnet)
    raise LabError("no free /24 in 10.89.0.0/16", remedy="remove a lab: `pannier lab ls --all`")


def _network_of(route: str) -> str:
    words = [word for word in route.split() if word not in ("local", "broadcast", "unreachable")]
    return words[0] if words and words[0][0].isdigit() else ""


@dataclass(frozen=True, slots=True)
class Network:
    """The bridge, cables and network namespaces of one lab."""

    names: Names
    subnet: str

    def create(self) -> None:
        """Make the bridge; the host is the subnet's first address."""
        bridge, gateway = self.names.bridge, host_address(self.subnet)
        run(["ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0"])
        run(["ip", "addr", "add", f"{gateway}/24", "dev", bridge])
        run(["ip", "link", "set", bridge, "up"])

    def plug_in(self, node: str, index: int, *, up: bool) -> None:
        """Give a machine a fresh network namespace and a cable.

        Namespace and cable of an earlier boot are removed: they hold its routes and filters.
        """
        self.unplug(node, index)
        namespace, link = self.names.netns(node), self.names.link(index)
        address, gateway = node_address(self.subnet, index), host_address(self.subnet)
        namespace.parent.mkdir(parents=True, exist_ok=True)
        namespace.touch()
        run(["unshare", f"--net={namespace}", "true"])
        # A machine keeps its hardware address over a boot, or others look for the old one.
        mac = "02:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)
        peer = ["peer", "name", "eth0", "address", mac, "netns", str(namespace)]
        run(["ip", "link", "add", link, "type", "veth", *peer])
        inside = f"""
            link set lo up
            addr add {address}/24 dev eth0
            link set eth0 up
            route add default via {gateway}
        """
        run(["nsenter", f"--net={namespace}", "ip", "-batch", "-"], input=inside)
        run(["ip", "link", "set", link, "master", self.names.bridge])
        if up:
            self.set_link(index, up=True)

    def unplug(self, node: str, index: int) -> None:
        """Remove a machine's cable and namespace, if they are there."""
        _remove_link(self.names.link(index))
        namespace = self.names.netns(node)
        unmount_below(namespace)
        namespace.unlink(missing_ok=True)

    def set_link(self, index: int, *, up: bool) -> None:
        """Connect or disconnect a machine at the host's end of its cable, if there is one."""
        link = self.names.link(index)
        if (_INTERFACES / link).exists():
            run(["ip", "link", "set", link, "up" if up else "down"])


def remove_all(names: Names) -> None:
    """Remove everything in the network that carries the lab's name."""
    for path in _INTERFACES.glob(f"{names.link_prefix}_*"):
        _remove_link(path.name)
    _remove_link(names.bridge)
    unmount_below(names.run / "netns")


def _remove_link(link: str) -> None:
    if (_INTERFACES / link).exists():
        run(["ip", "link", "del", link], check=False)
        if (_INTERFACES / link).exists():
            raise LabError(f"network interface {link} cannot be removed")
