"""A conversion for which a service is stopped: when that is, and that it ends with whoever reads its progress."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from pannier.contract.views import ConversionProgress
from pannier.contract.words import ConversionPhase
from pannier.core.errors import DeadlineExceeded, OutcomeUnknown, StorageError, VolumeInUse
from pannier.node.converting import _WithStop

COPYING = ConversionProgress(phase=ConversionPhase.COPYING, volume="v", node="b")
WAITING = ConversionProgress(
    phase=ConversionPhase.WAITING, volume="v", node="b", in_use_by=["ci.1"]
)
DONE = ConversionProgress(phase=ConversionPhase.DONE, volume="v", node="b", former="v.1")


class Holder:
    """Tells steps, or raises what is among them."""

    def __init__(self, *steps: ConversionProgress | Exception) -> None:
        self.left = list(steps)
        self.ended = False

    async def steps(self) -> AsyncGenerator[ConversionProgress, None]:
        try:
            while self.left:
                step = self.left.pop(0)
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.ended = True


class Service:
    """It is stopped, and ends when the work was tried so many times."""

    def __init__(self, *, patience: int = 10) -> None:
        self.patience = patience
        self.said: list[str] = []

    async def around(self, work: Callable[[], Awaitable[None]]) -> None:
        self.said.append("stopped")
        try:
            for _ in range(self.patience):
                try:
                    return await work()
                except VolumeInUse:
                    self.said.append("in use")
            raise DeadlineExceeded("it has not ended")
        finally:
            self.said.append("started")


async def test_it_is_stopped_when_all_but_the_rest_is_copied() -> None:
    holder, service = Holder(COPYING, COPYING, WAITING, WAITING, DONE), Service()
    work = _WithStop(holder.steps(), COPYING)
    await work.run(service.around)
    assert service.said == ["stopped", "in use", "started"]
    assert (await work.progress(), holder.ended) == (DONE, True)


async def test_it_is_not_stopped_where_nobody_uses_the_volume() -> None:
    holder, service = Holder(COPYING, DONE), Service()
    await _WithStop(holder.steps(), COPYING).run(service.around)
    assert not service.said


@pytest.mark.parametrize("steps", [(COPYING,), (COPYING, WAITING)])
async def test_it_runs_again_when_the_holder_fails(steps: tuple[ConversionProgress, ...]) -> None:
    holder, service = Holder(*steps, StorageError("the disk refused")), Service()
    with pytest.raises(StorageError):
        await _WithStop(holder.steps(), COPYING).run(service.around)
    assert service.said == ["stopped", "started"][: 2 * (len(steps) - 1)]


async def test_the_holder_ends_when_the_service_does_not() -> None:
    holder, service = Holder(COPYING, *[WAITING] * 5, DONE), Service(patience=3)
    with pytest.raises(DeadlineExceeded):
        await _WithStop(holder.steps(), COPYING).run(service.around)
    assert (holder.ended, holder.left) == (True, [WAITING, DONE])


async def test_a_holder_that_stops_in_the_midst_is_not_believed() -> None:
    for steps in ((COPYING,), (COPYING, WAITING)):
        service = Service()
        with pytest.raises(OutcomeUnknown):
            await _WithStop(Holder(*steps).steps(), COPYING).run(service.around)
