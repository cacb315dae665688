"""Copies that differ: in which blocks, who is right where that can be proved, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.cluster import Cluster
from pannier.contract.views import CheckView
from pannier.contract.words import CheckState
from pannier.copies.comparison import Judgement, judged
from pannier.copies.differences import Differences
from pannier.core import damage
from pannier.core.errors import PannierError
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)


class Settling:
    """Settles it, and writes the lines of the volume's history."""

    def __init__(self, *, cluster: Cluster, custody: Custody, differences: Differences) -> None:
        self._cluster = cluster
        self._custody = custody
        self._differences = differences

    async def settled(
        self, volume: Volume, checks: Sequence[CheckView]
    ) -> tuple[list[CheckView], frozenset[str]]:
        """Find what the copies differ in, and say who is right, where that can be proved.

        Args:
            checks: what each node read, the holder's first.

        Returns:
            The same, judged; and the nodes whose copies are proved to be wrong, and are to be made anew.
        """
        names = [check.node for check in checks if check.digest]
        try:
            said = judged(volume.grant.node, await self._differences.between(volume, names))
        except PannierError as error:
            log.warning("copy.not-compared", volume=volume.name, error=str(error))
            why = error.message
            return [
                replace(check, error=f"{check.error}; {why}", remedy=look_at_both(volume))
                if check.state is CheckState.DIFFERS
                else check
                for check in checks
            ], frozenset()
        holder = await self._holder(volume, checks[0], said)
        sound = holder.state is not CheckState.DAMAGED
        wrong = frozenset(
            node for node, its in said.items() if its.wrong and not its.open and sound
        )
        copies = [
            await self._copy(volume, copy, said[copy.node], is_made_anew=copy.node in wrong)
            if copy.node in said
            else copy
            for copy in checks[1:]
        ]
        return [holder, *copies], wrong

    async def _holder(
        self, volume: Volume, holder: CheckView, said: Mapping[str, Judgement]
    ) -> CheckView:
        mine = said[holder.node]
        if not mine.wrong:
            return replace(holder, state=CheckState.READ if mine.open else CheckState.WHOLE)
        right = _right(said, mine.wrong)
        error = f"{these_blocks(mine.wrong)} not what node {right[0]} was sent"
        log.error("volume.damaged", volume=volume.name, node=holder.node, error=error)
        await self.note(volume, holder.node, damage.DAMAGED, error)
        for node in right:
            if said[node] == Judgement((), ()):
                why = f"it has what node {holder.node} has otherwise"
                await self.note(volume, node, damage.PROVED, why)
        remedy = move_there(volume, right[0])
        return replace(holder, state=CheckState.DAMAGED, error=error, remedy=remedy)

    async def _copy(
        self, volume: Volume, copy: CheckView, mine: Judgement, *, is_made_anew: bool
    ) -> CheckView:
        if not mine.wrong and not mine.open:
            return replace(copy, state=CheckState.WHOLE, error="", remedy="")
        error = f"{these_blocks(mine.wrong or mine.open)} not what node {volume.grant.node} has"
        differs = replace(copy, state=CheckState.DIFFERS, error=error)
        if is_made_anew:
            return differs
        error += ", and nobody can prove theirs" if mine.open else ", and both are wrong"
        log.error("copy.differs", volume=volume.name, node=copy.node, error=error)
        await self.note(volume, copy.node, damage.DIFFERS, error)
        return replace(differs, error=error, remedy=look_at_both(volume))

    async def note_whole(self, volume: Volume, checks: Sequence[CheckView]) -> None:
        """End what is told of nodes that are whole by now."""
        record = self._cluster.catalog.volume(volume.name) or volume
        whole = frozenset(check.node for check in checks if check.state is CheckState.WHOLE)
        for node in sorted(whole):
            if damage.is_whole_again(record, node, whole):
                await self.note(volume, node, damage.WHOLE, "")

    async def note(self, volume: Volume, node: str, what: str, detail: str) -> None:
        """Add a line to the volume's history, unless it would repeat the last one of the node.

        Args:
            what: a word of :mod:`pannier.core.damage`.
        """
        volume = self._cluster.catalog.volume(volume.name) or volume
        if damage.is_worth_a_line(volume, node, what, detail):
            await self._custody.note(volume, what, detail, of=node)


def _right(said: Mapping[str, Judgement], blocks: Sequence[int]) -> list[str]:
    """Nodes that have these blocks right, those first of which nothing else is to be said. There is one for each
    block; where none has all of them, it is that which has most."""
    missing = {node: len(set(its.wrong) & set(blocks)) for node, its in said.items()}
    best = min(missing.values())
    found = [node for node in said if missing[node] == best]
    return sorted(found, key=lambda node: len(said[node].wrong) + len(said[node].open))


def these_blocks(starts: Sequence[int]) -> str:
    """The beginning of a sentence, up to its "is" or "are": "the image's block at 4096 is"."""
    if len(starts) == 1:
        return f"the image's block at {starts[0]} is"
    return f"{len(starts)} blocks of the image, the first at {starts[0]}, are"


def move_there(volume: Volume, node: str) -> str:
    """The remedy where a node has the right bytes."""
    return f"pannier volume move {volume.name} {node}"


def look_at_both(volume: Volume) -> str:
    """The remedy where nobody can prove what is right."""
    name = volume.name
    return (
        f"look at the files on each node: pannier volume check {name}, pannier volume mount {name}@GENERATION. If a "
        f"copy is right, pannier volume move {name} NODE. Then pannier volume verify {name} --trust-holder makes the "
        f"others anew"
    )
