"""What a host is like: read, never changed. Runs on the hosts, with whatever Python they have."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ansible_collections.pannier.cluster.plugins.module_utils.engine import Engine, EngineError

CONFIGURATION = "/etc/pannier/pannierd.toml"
AUTHORITY = "/etc/pannier/ca/ca.crt"
ETCD_SETTINGS = "/etc/default/etcd"
ETCD_PKI = "/etc/etcd/pki"
ETCD_FILES = ("ca.crt", "tls.key", "tls.crt")
INSTALLED = "/opt/pannier/venv/installed.json"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What a login over ssh has may be less."""
DEBIANS_DOCKER = "docker.io"
_SETTING = re.compile(r'^\s*(\w+)\s*=\s*"?([^"#]*?)"?\s*$')


def observe(pool: str | None = None, ports: Sequence[int] = ()) -> dict[str, Any]:
    """Everything that the preflight and the roles want to know about this host.

    Args:
        pool: the device or file that is to become the pool, or None.
        ports: TCP ports that are looked up among those that somebody listens on.
    """
    docker = _docker()
    swarm = _swarm()
    member = _settings(CONFIGURATION)
    return {
        "hostname": socket.gethostname(),
        "machine_id": _read("/etc/machine-id").strip(),
        "addresses": _addresses(),
        "release": _settings("/etc/os-release"),
        "python": list(sys.version_info[:3]),
        "root": os.geteuid() == 0,
        "systemd": os.path.isdir("/run/systemd/system"),
        "lacks": [what for what, there in _KERNEL.items() if not there()],
        "free_bytes": _free_bytes(),
        "listening": _listeners(ports),
        "firewall": _firewall(),
        "pool": _device(pool) if pool else None,
        "docker": docker,
        "has_docker": bool(docker),
        "foreign_docker": bool(docker) and docker["package"] != DEBIANS_DOCKER,
        "swarm": swarm,
        "in_swarm": swarm["state"] in ("active", "pending"),
        "etcd": _etcd(),
        "authority": os.path.exists(AUTHORITY),
        "member": member or None,
        "is_member": bool(member),
        "installed": _installed(),
    }


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that dpkg does not have installed."""
    show = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    said = _output(show)
    there = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in there]


def _docker() -> dict[str, Any] | None:
    """The engine's version and the package that it comes from; None without one."""
    program = shutil.which("dockerd", path=PATH)
    if not program:
        return None
    owner = _output(["dpkg-query", "--search", os.path.realpath(program)]).partition(":")[0]
    said = re.search(r"(\d+)\.(\d+)", _output([program, "--version"]))
    return {
        "package": owner or None,
        "version": [int(part) for part in said.groups()] if said else None,
    }


def _swarm() -> dict[str, Any]:
    """The engine's place in a Swarm; in none where no engine answers."""
    try:
        swarm = Engine().get("/info")["Swarm"]
    except EngineError:
        swarm = {
            "LocalNodeState": "inactive",
            "NodeID": "",
            "NodeAddr": "",
            "ControlAvailable": False,
        }
    return {
        "state": swarm["LocalNodeState"],
        "node": swarm["NodeID"],
        "address": swarm["NodeAddr"],
        "manager": swarm["ControlAvailable"],
        "cluster": (swarm.get("Cluster") or {}).get("ID"),
    }


def _etcd() -> dict[str, Any]:
    settings = _settings(ETCD_SETTINGS)
    members = settings.get("ETCD_INITIAL_CLUSTER", "").split(",")
    return {
        "members": sorted(member.partition("=")[0] for member in members if member),
        "identity": all(os.path.exists(os.path.join(ETCD_PKI, name)) for name in ETCD_FILES),
        "package": not missing_packages(["etcd-server"]),
    }


def _installed() -> Any:
    try:
        return json.loads(_read(INSTALLED))
    except ValueError:
        return None


def _device(path: str) -> dict[str, Any]:
    """What is on the pool's device or file."""
    if not os.path.exists(path):
        return {"path": path, "exists": False}
    return {
        "path": path,
        "exists": True,
        # blkid looks at the device itself and not at what it remembers.
        "holds": _settings_of(_output(["blkid", "--probe", "--output", "export", path])),
        "mounted": any(
            line.split(" ", 1)[0] in (path, os.path.realpath(path))
            for line in _read("/proc/mounts").splitlines()
        ),
    }


def _has_file_system(name: str) -> bool:
    return f"\t{name}\n" in _read("/proc/filesystems") or _has_module(name)


def _has_module(name: str) -> bool:
    modprobe = shutil.which("modprobe", path=PATH)
    return modprobe is not None and _status([modprobe, "--dry-run", name]) == 0


_KERNEL = {
    "btrfs": lambda: _has_file_system("btrfs"),
    "ext4": lambda: _has_file_system("ext4"),
    "loop devices": lambda: os.path.exists("/dev/loop-control") or _has_module("loop"),
}
"""What the kernel must have for a pool with volumes."""


def _free_bytes() -> int:
    folder = "/var/lib/pannier" if os.path.isdir("/var/lib/pannier") else "/var/lib"
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _addresses() -> list[str]:
    said = _output(["ip", "-json", "address"]) if shutil.which("ip") else ""
    links = json.loads(said) if said.strip() else []
    return [each["local"] for link in links for each in link.get("addr_info", ())]


def _firewall() -> str:
    """The firewall that runs here; rules that somebody made by hand are not looked at."""
    if _settings("/etc/ufw/ufw.conf").get("ENABLED") == "yes":
        return "ufw"
    running = (
        name
        for name in ("firewalld", "nftables")
        if _status(["systemctl", "-q", "is-active", name]) == 0
    )
    return next(running, "")


def _listeners(ports: Sequence[int]) -> dict[str, str]:
    """port -> name of the program that listens on it."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            words = line.split()
            port = int(words[1].rpartition(":")[2], 16)
            if words[3] == "0A" and port in ports:
                inodes[f"socket:[{words[9]}]"] = port
    found = {str(port): "?" for port in inodes.values()}
    for process in filter(str.isdigit, os.listdir("/proc")) if inodes else ():
        try:
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                port = inodes.get(os.readlink(f"/proc/{process}/fd/{descriptor}"))
                if port:
                    found[str(port)] = _read(f"/proc/{process}/comm").strip()
        except OSError:
            continue  # it has ended
    return found


def _settings(path: str) -> dict[str, str]:
    return _settings_of(_read(path))


def _settings_of(text: str) -> dict[str, str]:
    """``key = "value"`` per line; other lines are passed over."""
    matches = (_SETTING.match(line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    environment = dict(os.environ, LC_ALL="C.UTF-8", PATH=PATH)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _status(command: Sequence[str]) -> int:
    return subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False
    ).returncode
