"""What the copies of a generation say of each other, where a file system has no checksums. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pannier.contract.views import CheckView
from pannier.contract.words import CheckState
from pannier.storage.blocks import Piece


def compared(holder: CheckView, copies: Sequence[CheckView]) -> tuple[CheckView, list[CheckView]]:
    """Compare digests of the same generation.

    Args:
        holder: what the holder read.
        copies: what the others read.

    Returns:
        The same, in order: two with the same bytes are whole, and a copy that has other bytes than the holder
        differs. Which of them is right, the digests do not say.
    """
    same = [copy for copy in copies if _comparable(holder, copy) and copy.digest == holder.digest]
    others = [copy for copy in copies if _comparable(holder, copy) and copy.digest != holder.digest]
    if same:
        holder = replace(holder, state=CheckState.WHOLE)
    return holder, [
        replace(copy, state=CheckState.WHOLE)
        if copy in same
        else replace(copy, state=CheckState.DIFFERS, error=f"it is not what node {holder.node} has")
        if copy in others
        else copy
        for copy in copies
    ]


def _comparable(one: CheckView, other: CheckView) -> bool:
    return bool(one.digest and other.digest) and one.generation == other.generation


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be said of one node's blocks, where nodes differ; each by where it begins, ascending.

    Attributes:
        wrong: others prove that they are otherwise, and this node proves nothing.
        open: they are not what the holder has (for the holder: not what another has), and nobody can prove
            theirs, or several prove different bytes.
    """

    wrong: tuple[int, ...]
    open: tuple[int, ...]


def judged(holder: str, claims: Mapping[str, Mapping[int, Piece]]) -> dict[str, Judgement]:
    """Judge each block by the checksums that were stored when it came.

    A block that is right has a node whose stored checksum fits. How many nodes have the same bytes proves
    nothing: one may have been given its bytes by the other after a disk had changed them.

    Args:
        holder: one of the nodes.
        claims: by node, what it has of the same blocks; what is left out is zeros, and not proved.
    """
    wrong: dict[str, list[int]] = {node: [] for node in claims}
    unsettled: dict[str, list[int]] = {node: [] for node in claims}
    for at in sorted({at for blocks in claims.values() for at in blocks}):
        said = {
            node: blocks.get(at, Piece(start=at, digest="", proved=False))
            for node, blocks in claims.items()
        }
        if len({piece.digest for piece in said.values()}) == 1:
            continue
        proved = {piece.digest for piece in said.values() if piece.proved}
        for node, piece in said.items():
            if len(proved) == 1:
                if piece.digest not in proved:
                    wrong[node].append(at)
            elif node == holder or piece.digest != said[holder].digest:
                unsettled[node].append(at)
    return {node: Judgement(tuple(wrong[node]), tuple(unsettled[node])) for node in claims}
