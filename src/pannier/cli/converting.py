"""What `pannier volume set` does where options need a copy of a volume's files."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from pannier.cli import output
from pannier.cli.move import Line
from pannier.contract.words import ConversionPhase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pannier.contract.operations import Operations
    from pannier.contract.views import ConversionProgress


async def convert(
    client: Operations, name: str, options: Mapping[str, str], *, stop_service: bool, json: bool
) -> None:
    """Convert a volume, and show on stderr how far it is.

    Raises:
        PannierError: as :meth:`~pannier.contract.operations.Operations.convert_volume`.
    """
    steps = client.convert_volume(name, options, stop_service=stop_service)
    async with aclosing(steps):
        last = await _follow(steps, live=not json and sys.stderr.isatty())
    if last is not None and last.ended:
        pause = (
            f"; nobody could use it for {last.pause_seconds:.1f} s" if last.pause_seconds else ""
        )
        output.print_hint(f"what it was: pannier volume trash, {last.former}{pause}")


async def _follow(
    steps: AsyncIterator[ConversionProgress], *, live: bool
) -> ConversionProgress | None:
    progress = None
    with Line(live=live) as line:
        async for progress in steps:
            if not progress.ended:
                line.show(describe(progress), key=(progress.phase, tuple(progress.in_use_by)))
    return progress


def describe(progress: ConversionProgress) -> str:
    """One step, as a sentence."""
    what = f"{progress.volume}, {output.show_size(progress.used_bytes)}"
    match progress.phase:
        case ConversionPhase.WAITING:
            users = output.show_names(progress.in_use_by)
            return f"copied {what}; waiting for {users} on {progress.node} to stop"
        case ConversionPhase.REST:
            return f"copying the rest of {what}"
        case other:
            return f"{other} {what}"
