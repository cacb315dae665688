"""Put the barrier into a container's bundle, then become runc.

Started by ``pannier-runtime`` as ``python -I -S edit.py FEATURES RUNC BUNDLE ARGUMENT...`` for bundles that
may mount a held volume; FEATURES is what ``runc features`` says. It uses the standard library only, and
little of it, because the container's start waits for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, NoReturn

MOUNT_ROOT = "/var/lib/pannier/mounts"
HELD = "/run/pannier/barrier/held"
SOCKET = "/run/pannier/barrier.sock"

SYNC_CALLS = ("fsync", "fdatasync", "sync", "syncfs", "msync")
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
"""Refused: operations in a ring do not pass the seccomp filter, so an fsync there would not be held."""

ENOSYS = 38
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_WAIT_KILLABLE = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


class RefusedError(Exception):
    """The container uses a held volume and cannot be given the barrier."""


def held_volumes(config: Any) -> list[str]:
    """The held volumes that a bundle mounts, whole or in part, sorted by name."""
    held = os.listdir(HELD)
    mounts = _own_mounts()
    trees = {name: _place(f"{MOUNT_ROOT}/{name}", mounts) for name in held}
    found = set()
    for mount in config.get("mounts") or ():
        source = os.path.realpath(mount.get("source") or "/")
        device, path = _place(source, mounts)
        for name in held:
            inside = (path + "/").startswith(trees[name][1].rstrip("/") + "/")
            if (device == trees[name][0] and inside) or _is_at(source, f"{MOUNT_ROOT}/{name}"):
                found.add(name)
    return sorted(found)


def _is_at(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")


def _own_mounts() -> list[tuple[str, str, str]]:
    """Device, directory in the file system, and mount point of all mounts, in order."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.split() for line in file]
    return [(row[2], _unescaped(row[3]), _unescaped(row[4])) for row in rows]


def _unescaped(field: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, letter)
    return field


def _place(path: str, mounts: list[tuple[str, str, str]]) -> tuple[str, str]:
    """The device of a path, and the path inside its file system: the same for all its mounts."""
    seen_first = reversed(mounts)  # of two at one point, the later one is seen
    device, root, point = max(
        (mount for mount in seen_first if mount[2] == "/" or _is_at(path, mount[2])),
        key=lambda mount: len(mount[2]),
    )
    return device, root.rstrip("/") + path[len(point.rstrip("/")) :]


def add_barrier(config: Any, volumes: list[str], *, machine: str, features: Any) -> None:
    """Let the sync calls that the container may make wait for ``SOCKET``'s answer.

    Args:
        config: the decoded config.json (OCI runtime specification); changed in place.
        machine: as uname(2) names the processor.
        features: what ``runc features`` says, decoded.

    Raises:
        RefusedError: the profile has a listener of its own, and a process can have only one; or
            sync calls cannot be held on this processor.
    """
    if machine not in _ARCHITECTURES:
        raise RefusedError(f"sync calls cannot be held on a {machine} processor")
    linux = config.setdefault("linux", {})
    native, *compatible = _ARCHITECTURES[machine]
    seccomp = linux.get("seccomp") or {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": compatible,
    }
    if seccomp.get("listenerPath") not in (None, "", SOCKET):
        raise RefusedError(
            f"its seccomp profile has a listener of its own ({seccomp['listenerPath']}), "
            "and a container can have only one"
        )
    rules = seccomp.get("syscalls") or []
    named = {name for rule in rules for name in rule["names"]}
    allowed = {name for rule in rules if _permits(rule["action"]) for name in rule["names"]}
    if _permits(seccomp["defaultAction"]):
        allowed |= set(SYNC_CALLS) - named
    waiting = [name for name in SYNC_CALLS if name in allowed]
    kept = []
    for rule in rules:  # a call has one rule; what a profile refuses stays refused
        moved = {*IO_URING, *(waiting if _permits(rule["action"]) else ())}
        names = [name for name in rule["names"] if name not in moved]
        if names:
            kept.append({**rule, "names": names})
    kept.append({"names": list(IO_URING), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    if waiting:
        kept.append({"names": waiting, "action": "SCMP_ACT_NOTIFY"})
    seccomp["syscalls"] = kept
    known = seccomp.get("architectures") or []
    seccomp["architectures"] = [*([] if native in known else [native]), *known]
    flags = set(seccomp.get("flags") or ())
    if _WAIT_KILLABLE in _supported_flags(features):
        flags.add(_WAIT_KILLABLE)  # a call that waits is then not interrupted by signals
    if flags:
        seccomp["flags"] = sorted(flags)
    seccomp["listenerPath"] = SOCKET
    seccomp["listenerMetadata"] = json.dumps({"volumes": volumes})
    linux["seccomp"] = seccomp


def _supported_flags(features: Any) -> list[str]:
    linux = features.get("linux") or {}
    return (linux.get("seccomp") or {}).get("supportedFlags") or []


def _permits(action: str) -> bool:
    return action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY")


def replace(path: str, config: Any) -> None:
    """Write ``config`` to ``path``: the old file or the new one, never a part."""
    draft = f"{path}.pannier-{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), os.stat(path).st_mode & 0o777)
        json.dump(config, file)
    os.rename(draft, path)


def fail(message: str, arguments: list[str]) -> NoReturn:
    """Say why on stderr and, as runc does, in the log file from which Docker reads it."""
    text = f"pannier-runtime: {message}"
    print(text, file=sys.stderr)
    log = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word in ("--log", "-log"):
            log = following
        elif word.startswith(("--log=", "-log=")):
            log = word.split("=", 1)[1]
    if log:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"level": "error", "msg": text, "time": now}) + "\n")
    sys.exit(1)


def main(features: str, runc: str, bundle: str, *arguments: str) -> NoReturn:
    """Edit the bundle if it is one of ours, and become runc."""
    path = os.path.join(bundle, "config.json")
    volumes = []
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        volumes = held_volumes(config)
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # not a bundle that we understand: runc will say what it thinks of it
    if volumes:
        try:
            known = json.loads(features) if features else {}
            add_barrier(config, volumes, machine=os.uname().machine, features=known)
            replace(path, config)
        except (RefusedError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            names = ", ".join(volumes)
            reason = error if isinstance(error, RefusedError) else repr(error)
            fail(f"volume {names}: its sync calls cannot be held: {reason}", list(arguments))
    os.execv(runc, [runc, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
