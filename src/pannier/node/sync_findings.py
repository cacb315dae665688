"""What ``pannier doctor`` says of the sync path: the kernel's trace, and the journal of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.copies.replicated import Replicated
from pannier.core.errors import PannierError
from pannier.core.line import Doubt
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.storage.lines import JournalState


def doubt_findings(all_replicated: Iterable[Replicated], *, node: str) -> Iterator[FindingView]:
    """Why sync calls of volumes that are held here wait for generations, where a person can end that."""
    found: dict[Doubt, list[str]] = {}
    for replicated in all_replicated:
        if replicated.doubt is not None and replicated.doubt.remedy:
            found.setdefault(replicated.doubt, []).append(replicated.volume.name)
    for doubt, names in found.items():
        yield FindingView(
            level=Level.WARNING,
            subject=f"sync calls on {node}",
            what=f"those of {', '.join(sorted(names))} each wait for a generation, which is slow and right: "
            f"{doubt.reason}",
            remedy=doubt.remedy,
        )


def journal_findings(
    state: JournalState, volumes: Iterable[Volume], *, node: str, is_up: Callable[[str], bool]
) -> Iterator[FindingView]:
    """What is wrong with this node's journal, or how full it is.

    Args:
        volumes: those that the cluster knows.
        is_up: whether a node's lease is alive.
    """
    subject = f"journal on {node}"
    copies = [volume for volume in volumes if node in volume.replicas]
    trouble = state.trouble
    if trouble is None:
        yield FindingView(level=Level.OK, subject=subject, what=_how_full(state))
    elif state.taken:
        yield _taken(subject, trouble, copies)
    elif state.unreadable:
        yield _unreadable(subject, trouble, copies)
    elif state.total_bytes is None:
        yield FindingView(
            level=Level.WARNING,
            subject=subject,
            what=f"there is none: {trouble.message}. Sync calls of volumes with a copy here each wait for a "
            f"generation, which is slow and right",
            remedy=f"{trouble.remedy or 'end what is in its way'}; then restart pannierd on {node}",
        )
    else:
        yield FindingView(
            level=Level.PROBLEM,
            subject=subject,
            what=f"{trouble.message}. Sync calls of volumes with a copy here each wait for a generation",
            remedy=trouble.remedy,
        )
    for volume in copies:
        if why := state.damaged.get(volume.id):
            yield _damaged(volume, why, node, holder_is_up=is_up(volume.grant.node))


def _how_full(state: JournalState) -> str:
    live = format_size(state.live_bytes or 0)
    kept = sum(bool(size) for size in state.volumes.values())
    return f"needs {live} of at most {format_size(state.most_bytes or 0)}, for {kept} volumes"


def _taken(subject: str, why: PannierError, copies: list[Volume]) -> FindingView:
    names = ", ".join(sorted(volume.name for volume in copies)) or "none at the moment"
    return FindingView(
        level=Level.PROBLEM,
        subject=subject,
        what=f"{why.message}. Until it is gone, sync calls of volumes with a copy here ({names}) each wait for a generation, "
        f"and none of these volumes is taken over from this copy",
        remedy=why.remedy,
    )


def _unreadable(subject: str, why: PannierError, copies: list[Volume]) -> FindingView:
    names = ", ".join(sorted(volume.name for volume in copies)) or "none at the moment"
    return FindingView(
        level=Level.PROBLEM,
        subject=subject,
        what=f"it cannot be read: {why.message}. It may have had confirmed records of every volume with a copy here "
        f"({names}): none of them is taken over from this copy",
        remedy=why.remedy or "see dmesg and the disk, then restart pannierd here",
    )


def _damaged(volume: Volume, why: str, node: str, *, holder_is_up: bool) -> FindingView:
    holder = volume.grant.node
    what = (
        f"its copy on {node} may lack records that it has confirmed ({why}): no takeover begins there until "
        f"{holder} has sent a generation that it makes after it was told so"
    )
    if holder_is_up:
        return FindingView(
            level=Level.WARNING,
            subject=f"volume {volume.name}",
            what=what,
            remedy=f"nothing need be done while {holder} and {node} are up: it comes within seconds",
        )
    return FindingView(
        level=Level.PROBLEM,
        subject=f"volume {volume.name}",
        what=what,
        remedy=f"start {holder}; another copy in sync may take it over meanwhile",
    )
