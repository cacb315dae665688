"""``pannier doctor VOLUME``: who holds it, since when, what will happen next, and the one safe command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pannier.contract.views import CopyView, FindingView
from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import Level
from pannier.core.damage import open_damage
from pannier.core.volume import Volume
from pannier.host.clock import rfc3339

UNHELD_REMEDY = (
    "make the container anew with Docker's default runtime (docker rm, then docker run), and end other "
    "processes; what they have written is on the copies within an interval"
)
UNHELD_WRITES_REMEDY = (
    "set the program so that it makes its writes durable by fsync or fdatasync (the page on databases has settings; "
    "Linux AIO is harmless where the program submits no fsync by it); a volume made with unheld_writes=refuse lets "
    "its containers do neither"
)
LONG_WAIT_SECONDS = 10.0
"""Sync calls that wait for longer than this are reported as a problem."""


def explain(
    record: Volume,
    live: LiveVolumeView | None,
    *,
    is_up: Callable[[str], bool],
    fresh: bool,
    suspended: bool,
    doubt: float,
) -> list[FindingView]:
    """The findings on one volume.

    Args:
        record: from the store, or from this node's memory.
        live: what the holder says; None where it does not answer.
        is_up: whether a node's lease is alive.
        fresh: whether ``record`` was just read from the store.
        suspended: whether its containers on this node are frozen.
    """
    subject = f"volume {record.name}"
    findings = []
    if not fresh:
        findings.append(
            FindingView(
                level=Level.PROBLEM,
                subject=subject,
                what="the store does not answer; what follows is what this node remembers",
                remedy="see pannier status: moving, creating and taking over need the store",
            )
        )
    findings.append(FindingView(level=Level.OK, subject=subject, what=_held(record)))
    if suspended:
        findings.append(standing_still(record, record.grant.node, doubt=doubt))
    if is_up(record.grant.node):
        findings += _of_live_holder(subject, record, live)
    else:
        findings.append(_of_lost_holder(subject, record, is_up))
    findings += _of_copies(subject, record, live)
    return [*findings, *damage_findings(record)]


def damage_findings(record: Volume) -> list[FindingView]:
    """The findings on bytes that a disk did not give back as they were written, as far as they are open."""
    return [
        FindingView(
            level=Level.PROBLEM,
            subject=f"volume {record.name}",
            what=f"on {line.node}: {line.detail} (found {rfc3339(line.at)})",
            remedy=f"pannier volume verify {record.name} says what to do, and whether it is so still",
        )
        for line in open_damage(record)
    ]


def refused_copy(name: str, node: str, why: str) -> FindingView:
    """The finding on a copy that cannot take in even everything: see :mod:`pannier.core.delivery`."""
    return FindingView(
        level=Level.PROBLEM,
        subject=f"volume {name}",
        what=f"copy on {node}: it cannot take in the volume, not even as a whole: {why}",
        remedy=f"see journalctl -u pannierd and dmesg on {node}. It is tried again by itself, more and more seldom, "
        f"and at once after pannierd was restarted on the holder; what the copy has stays until then",
    )


def standing_still(record: Volume, node: str, *, doubt: float) -> FindingView:
    """The finding on a volume whose containers are frozen: see :mod:`pannier.agent.fencing`."""
    return FindingView(
        level=Level.PROBLEM,
        subject=f"volume {record.name}",
        what=f"its containers on {node} stand still: the node cannot prove that it holds the volume. They "
        f"go on when it can, and are ended when another node has taken the volume over, or after "
        f"{doubt:g} s",
        remedy="see pannier status: the store, or every node in sync, must answer this node",
    )


def past_the_barrier(name: str, users: Sequence[str]) -> FindingView:
    """The finding on a volume that is used past the barrier: see :mod:`pannier.node.unheld`."""
    return FindingView(
        level=Level.PROBLEM,
        subject=f"volume {name}",
        what=f"sync calls of {', '.join(users)} are not held: they return before the copies have what was written",
        remedy=UNHELD_REMEDY,
    )


def written_past_the_barrier(name: str, writers: Sequence[str]) -> FindingView:
    """The finding on writes that no sync call waits for: see :mod:`pannier.barrier.syncwrites`."""
    return FindingView(
        level=Level.WARNING,
        subject=f"volume {name}",
        what=f"{'; '.join(writers)}: what is made durable so is not held, and may not be on the copies",
        remedy=UNHELD_WRITES_REMEDY,
    )


def _held(record: Volume) -> str:
    since = next((e for e in reversed(record.history) if e.epoch == record.grant.epoch), None)
    when = f" since {rfc3339(since.at)} ({since.what} {since.detail})" if since else ""
    return f"held by node {record.grant.node}, epoch {record.grant.epoch}{when}"


def _of_live_holder(
    subject: str, record: Volume, live: LiveVolumeView | None
) -> Iterator[FindingView]:
    name, holder = record.name, record.grant.node
    if live is None:
        yield FindingView(
            level=Level.WARNING,
            subject=subject,
            what=f"node {holder} is up and does not answer this node: a Mount elsewhere waits",
            remedy=f"see the network between the nodes, and journalctl -u pannierd on {holder}",
        )
        return
    if live.transfer is not None:
        yield FindingView(
            level=Level.OK,
            subject=subject,
            what=f"on its way to node {live.transfer.target} ({live.transfer.phase}); until then "
            f"{holder} holds it",
        )
    if live.in_use_by:
        users = ", ".join(live.in_use_by)
        yield FindingView(
            level=Level.OK,
            subject=subject,
            what=f"used on {holder} by {users}; a Mount on another node waits up to 95 s for its end",
            remedy=f"to have it elsewhere: pannier volume move {name} NODE, then stop that",
        )
    else:
        yield FindingView(
            level=Level.OK,
            subject=subject,
            what="not in use: the next Mount gets it, on whatever node",
        )
    if live.not_held:
        yield past_the_barrier(name, live.not_held)
    if live.unheld_writes:
        yield written_past_the_barrier(name, live.unheld_writes)
    if live.sync is not None and live.sync.reason:
        yield FindingView(
            level=Level.WARNING if live.sync.remedy else Level.OK,
            subject=subject,
            what=f"its sync calls each wait for a generation, which is slow and right: {live.sync.reason}",
            remedy=live.sync.remedy,
        )
    if live.sync_calls and live.sync_waiting_seconds > LONG_WAIT_SECONDS:
        yield FindingView(
            level=Level.PROBLEM,
            subject=subject,
            what=f"{live.sync_calls} sync calls of its containers wait, the first one for "
            f"{live.sync_waiting_seconds:.0f} s: they return when its copies, or the store, answer",
            remedy="see the copies below, and pannier status",
        )


def _of_lost_holder(subject: str, record: Volume, is_up: Callable[[str], bool]) -> FindingView:
    name, holder = record.name, record.grant.node
    reachable = [node for node in record.in_sync if is_up(node)]
    if reachable:
        return FindingView(
            level=Level.WARNING,
            subject=subject,
            what=f"node {holder} is down; the next Mount on any node makes {' or '.join(reachable)} "
            f"its holder, with everything that was acknowledged",
            remedy=f"nothing need be done; to do it now: pannier volume recover {name}",
        )
    if record.in_sync:
        nodes = ", ".join((holder, *record.in_sync))
        return FindingView(
            level=Level.PROBLEM,
            subject=subject,
            what=f"node {holder} is down, and so is every node with all of it; a Mount is refused",
            remedy=f"start one of {nodes}",
        )
    behind = [node for node in record.replicas if is_up(node)]
    if behind:
        return FindingView(
            level=Level.PROBLEM,
            subject=subject,
            what=f"node {holder} is down, and alone had everything; {', '.join(behind)} lacks what "
            f"was written last. A Mount is refused",
            remedy=f"start {holder}; if it is lost for ever: pannier volume recover {name}",
        )
    return FindingView(
        level=Level.PROBLEM,
        subject=subject,
        what=f"node {holder} is down and has the only copy that is known; a Mount is refused",
        remedy=f"start {holder} again",
    )


def _of_copies(subject: str, record: Volume, live: LiveVolumeView | None) -> Iterator[FindingView]:
    known = {copy.node: copy for copy in (live.copies if live else [])}
    for node in record.replicas:
        copy = known.get(node, CopyView(node=node))
        if node in record.in_sync:
            yield FindingView(
                level=Level.OK, subject=subject, what=f"copy on {node}: in sync{_lag(copy)}"
            )
        elif copy.refused:
            yield refused_copy(record.name, node, copy.refused)
        else:
            yield FindingView(
                level=Level.WARNING,
                subject=subject,
                what=f"copy on {node}: not in sync{_lag(copy)}"
                + (f": {copy.error}" if copy.error else "")
                + (f"; sent anew as a whole, since {copy.sent_anew}" if copy.sent_anew else ""),
                remedy=f"it catches up by itself while {record.grant.node} and {node} are up",
            )


def _lag(copy: CopyView) -> str:
    return "" if copy.lag_seconds is None else f", {copy.lag_seconds:g} s behind"
