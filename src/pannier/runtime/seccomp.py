"""The barrier in a container's seccomp profile: its sync calls wait for whoever listens.

Where a volume asks for it, what could write past the barrier is refused.
"""

from __future__ import annotations

import json

from pannier.runtime.bundle import BundleVolumes, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/pannier/barrier.sock"

SYNC_CALLS = ("fsync", "fdatasync", "sync", "syncfs", "msync")
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
"""Refused: operations in a ring do not pass the seccomp filter, so an fsync there would not be held."""

PAST_THE_BARRIER = ("openat2", "pwritev2", "io_setup")
"""Refused for ``unheld_writes=refuse``. The first has its flags where no filter can read them. The second has them at
another place in x32 programs, and C libraries do without it. The third begins Linux AIO, which can submit an fsync."""
_OPENING = {"open": 1, "openat": 2, "open_by_handle_at": 2}
"""The calls that can open a file with O_SYNC or O_DSYNC, and which argument has their flags."""
_O_DSYNC = 0o10000
"""A bit of O_SYNC too, and the same on all processors below. fcntl(2) cannot set it later."""

EINVAL = 22
ENOSYS = 38
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_WAIT_KILLABLE = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


def add_barrier(config: Any, found: BundleVolumes, *, machine: str, features: Any) -> None:
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
    kept: list[Any] = []
    for rule in rules:  # a call has one rule; what a profile refuses stays refused
        moved = {*IO_URING, *(waiting if _permits(rule["action"]) else ())}
        names = [name for name in rule["names"] if name not in moved]
        if names:
            kept.append({**rule, "names": names})
    kept.append({"names": list(IO_URING), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    if waiting:
        kept.append({"names": waiting, "action": "SCMP_ACT_NOTIFY"})
    permitted = _permits(seccomp["defaultAction"])
    seccomp["syscalls"] = _refusing(kept, permitted=permitted) if found.refuses else kept
    known = seccomp.get("architectures") or []
    seccomp["architectures"] = [*([] if native in known else [native]), *known]
    flags = set(seccomp.get("flags") or ())
    if _WAIT_KILLABLE in _supported_flags(features):
        flags.add(_WAIT_KILLABLE)  # a call that waits is then not interrupted by signals
    if flags:
        seccomp["flags"] = sorted(flags)
    seccomp["listenerPath"] = SOCKET
    seccomp["listenerMetadata"] = json.dumps({"volumes": found.volumes, "passing": found.passing})
    linux["seccomp"] = seccomp


def _refusing(rules: list[Any], *, permitted: bool) -> list[Any]:
    """The rules of a profile with refusals of what could write past the barrier. Done twice, it is as done once.

    Args:
        permitted: the profile permits the calls that it does not name.

    Raises:
        RefusedError: the profile has conditions of its own on such a call. No other one can be added to them.
    """
    allowed = set(_OPENING) if permitted else set[str]()
    refused = set[str]()
    kept = []
    for rule in rules:
        opening = _OPENING.keys() & set(rule["names"])
        conditions = rule.get("args") or []
        ours = [
            [_condition(name, through=through)] for name in opening for through in (False, True)
        ]
        if opening and conditions and conditions not in ours:
            raise RefusedError(
                f"its seccomp profile has conditions on {', '.join(sorted(opening))}, "
                "to which those of unheld_writes=refuse cannot be added"
            )
        moved = {*PAST_THE_BARRIER}
        if _permits(rule["action"]):
            allowed |= opening
            moved |= opening
        elif conditions:
            moved |= opening
        else:
            refused |= opening
        names = [name for name in rule["names"] if name not in moved]
        if names:
            kept.append({**rule, "names": names})
    for name in sorted(allowed - refused):
        if not permitted:
            kept.append(_opening(name, "SCMP_ACT_ALLOW", through=False))
        kept.append({**_opening(name, "SCMP_ACT_ERRNO", through=True), "errnoRet": EINVAL})
    kept.append({"names": [*PAST_THE_BARRIER], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    return kept


def _opening(name: str, action: str, *, through: bool) -> dict[str, Any]:
    return {"names": [name], "action": action, "args": [_condition(name, through=through)]}


def _condition(name: str, *, through: bool) -> dict[str, Any]:
    """Whether a call opens a file with O_SYNC or O_DSYNC, as a condition of a rule.

    A call needs one rule for either case: libseccomp takes a rule without conditions for all cases.
    """
    return {
        "index": _OPENING[name],
        "value": _O_DSYNC,
        "valueTwo": _O_DSYNC if through else 0,
        "op": "SCMP_CMP_MASKED_EQ",
    }


def _supported_flags(features: Any) -> list[str]:
    linux = features.get("linux") or {}
    return (linux.get("seccomp") or {}).get("supportedFlags") or []


def _permits(action: str) -> bool:
    return action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY")
