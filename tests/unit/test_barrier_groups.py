"""Group commit: who is in which group, what happens when it fails, and how restarted calls get on."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Sequence

import pytest
from world import event_loop_policy

from pannier.barrier.calls import BY_KERNEL, DONE, Answer, SyncCall
from pannier.barrier.groups import GATHER_SECONDS, Groups, Waiting
from pannier.core.errors import NotHolder, Unavailable, VolumeNotFound
from pannier.host.clock import Clock

__all__ = ["event_loop_policy"]


class Strategy:
    """Takes ``seconds`` for each group, and fails as often as ``failures`` has errors."""

    def __init__(self, *failures: Exception, seconds: float = 1.0, clean: bool = False) -> None:
        self.groups: list[tuple[float, str, list[int]]] = []
        self.looks = 0
        self.answers: dict[tuple[str, int], Answer] = {}
        self.clean = clean
        self.seconds = seconds
        self._failures = list(failures)

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> Sequence[Answer]:
        self.groups.append((now(), volume, [call.pid for call in calls]))
        await asyncio.sleep(self.seconds)
        if self._failures:
            raise self._failures.pop(0)
        return [self.answers.get((volume, call.pid), DONE) for call in calls]

    async def unchanged(self, volume: str) -> bool:
        self.looks += 1
        await asyncio.sleep(self.seconds / 10)
        return self.clean


class Caller:
    """Calls with numbers; remembers when each was answered."""

    def __init__(self, strategy: Strategy) -> None:
        self.groups = Groups(strategy, clock=Clock(now=now, unix=now))
        self.answered: dict[int, float] = {}
        self.told: dict[int, Answer] = {}
        self.gone: set[int] = set()
        self.lapsed: list[int] = []
        self._numbers = itertools.count(1)

    def call(
        self, *volumes: str, first: float | None = None, passing: Sequence[str] = ()
    ) -> Waiting:
        """A call comes; ``first`` is when it came for the first time."""
        number = next(self._numbers)
        arrival = now() if first is None else first

        def answer(told: Answer) -> None:
            self.answered[number] = now()
            self.told[number] = told
            self.groups.discard(waiting)

        waiting = Waiting(
            call=SyncCall(
                "c", number, "fsync", 3, arrival, is_there=lambda: number not in self.gone
            ),
            volumes={*(volumes or ("v",)), *passing},
            passing=passing,
            answer=answer,
            lapse=lambda: self.lapsed.append(number),
        )
        self.groups.add(waiting)
        return waiting


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_the_first_call_begins_a_group_at_once_and_the_rest_form_the_next() -> None:
    strategy = Strategy()
    caller, begin = Caller(strategy), now()
    caller.call()
    caller.call()
    await asyncio.sleep(0.5)
    caller.call()
    caller.call()
    await asyncio.sleep(10)
    then = begin + 1 + GATHER_SECONDS  # those who were let go might have called again
    assert strategy.groups == [(begin, "v", [1, 2]), (pytest.approx(then), "v", [3, 4])]
    assert caller.answered == pytest.approx({1: begin + 1, 2: begin + 1, 3: then + 1, 4: then + 1})


@pytest.mark.parametrize("error", [NotHolder("v"), VolumeNotFound("v")])
async def test_who_only_passes_by_does_not_wait_for_a_volume_that_has_left(
    error: Exception,
) -> None:
    """It would wait for ever: nobody ends it. And it is told no success."""
    strategy = Strategy(error, seconds=1.0)
    caller, begin = Caller(strategy), now()
    caller.call("v", passing=["v"])
    caller.call("v")
    await asyncio.sleep(10)
    assert caller.answered[1] == begin + 1
    assert (caller.told[1], caller.told[2]) == (Answer(errno.EIO), DONE)


async def test_volumes_do_not_wait_for_each_other_but_a_call_waits_for_all_its_volumes() -> None:
    strategy = Strategy()
    caller, begin = Caller(strategy), now()
    caller.call("slow")
    await asyncio.sleep(0.5)
    caller.call("slow", "quick")
    caller.call("quick")
    await asyncio.sleep(10)
    assert [(volume, calls) for _when, volume, calls in strategy.groups] == [
        ("slow", [1]),
        ("quick", [2, 3]),
        ("slow", [2]),
    ]
    assert caller.answered == pytest.approx(
        {1: begin + 1, 3: begin + 1.5, 2: begin + 2 + GATHER_SECONDS}
    )


@pytest.mark.parametrize(
    "error", [Unavailable("no"), VolumeNotFound("no"), NotHolder("no"), ValueError("a mistake")]
)
async def test_a_group_that_fails_waits_longer_each_time_and_takes_in_who_came(
    error: Exception,
) -> None:
    strategy = Strategy(*[error] * 7, seconds=0.0)
    caller, begin = Caller(strategy), now()
    caller.call()
    await asyncio.sleep(0.05)
    caller.call()
    await asyncio.sleep(60)
    starts = [when - begin for when, _volume, _calls in strategy.groups]
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert [calls for _when, _volume, calls in strategy.groups] == [[1]] + [[1, 2]] * 7
    assert set(caller.answered) == {1, 2}


async def test_a_call_that_is_gone_is_not_counted_and_not_answered() -> None:
    strategy = Strategy(Unavailable("no"))
    caller, begin = Caller(strategy), now()
    for _ in range(3):
        caller.call()
    caller.gone = {2}
    await asyncio.sleep(0.5)
    assert caller.groups.backlog("v").calls == 2
    caller.gone = {1, 2}
    await asyncio.sleep(10)
    assert [calls for _when, _volume, calls in strategy.groups] == [[1, 3], [3]]
    assert (set(caller.answered), caller.lapsed) == ({3}, [2, 1])
    assert now() == begin + 10.5


async def test_when_all_are_gone_nothing_is_tried_any_more() -> None:
    strategy = Strategy(*[Unavailable("no")] * 100)
    caller = Caller(strategy)
    caller.call()
    await asyncio.sleep(0.5)
    caller.gone = {1}
    await asyncio.sleep(100)
    assert len(strategy.groups) == 1
    caller.call()
    await asyncio.sleep(0.5)
    assert strategy.groups[-1][2] == [2]


async def test_the_backlog_says_how_many_wait_and_since_when() -> None:
    caller = Caller(Strategy(*[Unavailable("no")] * 100))
    assert caller.groups.backlog("v").calls == 0
    caller.call()
    await asyncio.sleep(3)
    caller.call()
    backlog = caller.groups.backlog("v")
    assert (backlog.calls, backlog.oldest_seconds) == (2, 3)
    assert caller.groups.backlog("other").calls == 0


async def test_closing_answers_nobody() -> None:
    caller = Caller(Strategy())
    caller.call()
    await asyncio.sleep(0.5)
    await caller.groups.close()
    await asyncio.sleep(10)
    assert caller.answered == {}


# -- restarted calls: a signal comes before the group's end, each time -------------------------------


async def restarting(caller: Caller, *, every: float, until: float) -> None:
    """One caller whose call is withdrawn and restarted again and again."""
    first, end = now() - 0.001, now() + until  # in reality time passes before the group begins
    while now() < end and not caller.answered:
        waiting = caller.call(first=first)
        await asyncio.sleep(every)
        caller.groups.discard(waiting)


@pytest.mark.parametrize("every", [0.21, 0.25, 0.3, 0.37, 0.4, 0.7])
async def test_a_restarted_call_goes_on_after_the_first_group_that_covers_it(every: float) -> None:
    """A group takes 1 s and a look 0.1 s, and no call lives as long as a group."""
    strategy = Strategy(clean=True)
    caller, begin = Caller(strategy), now()
    await restarting(caller, every=every, until=100)
    (answered,) = caller.answered.values()
    assert answered - begin < 1.35
    assert len(strategy.groups) == 1


async def test_a_restarted_call_waits_while_others_write() -> None:
    strategy = Strategy(clean=False)
    caller = Caller(strategy)
    await restarting(caller, every=0.3, until=20)
    assert caller.answered == {}
    assert strategy.looks > 0
    strategy.clean = True
    await restarting(caller, every=0.3, until=20)
    assert len(caller.answered) == 1


async def test_a_call_that_came_after_the_group_began_is_not_covered_by_it() -> None:
    """Nothing says that what it wrote before is in that group, however unchanged the volume is."""
    strategy = Strategy(clean=True)
    caller, begin = Caller(strategy), now()
    caller.call()
    await asyncio.sleep(0.5)
    caller.call()
    await asyncio.sleep(10)
    assert caller.answered == pytest.approx({1: begin + 1, 2: begin + 2 + GATHER_SECONDS})
    assert strategy.looks == 0


async def test_looks_at_a_volume_keep_others_waiting_for_a_moment_only() -> None:
    strategy = Strategy(clean=True)
    caller, begin = Caller(strategy), now()
    caller.call()
    await asyncio.sleep(2)
    late = caller.call()
    for _ in range(100):
        caller.call(first=begin - 1)
        await asyncio.sleep(0.05)
    await asyncio.sleep(10)
    assert caller.answered[late.call.pid] - begin == pytest.approx(3.3)
    assert len(caller.answered) == 102


async def in_turn(caller: Caller, *pauses: float) -> None:
    """Calls with pauses before them."""
    for pause in pauses:
        await asyncio.sleep(pause)
        caller.call()


async def test_those_whom_a_group_let_go_are_in_the_next_one_together() -> None:
    strategy = Strategy()
    caller, begin = Caller(strategy), now()
    for _ in range(3):
        caller.call()
    await in_turn(caller, 1.001, 0.003, 0.004)
    await asyncio.sleep(10)
    assert strategy.groups[1:] == [(pytest.approx(begin + 1.008), "v", [4, 5, 6])]


async def test_writers_in_two_groups_that_take_turns_come_together() -> None:
    strategy = Strategy(seconds=0.02)
    caller = Caller(strategy)

    async def writer(pause: float) -> None:
        await asyncio.sleep(pause)
        for _ in range(20):
            call = caller.call()
            while call.call.pid not in caller.answered:
                await asyncio.sleep(0.0005)

    await asyncio.gather(*(writer(0.01 * (number % 2)) for number in range(6)))
    sizes = [len(calls) for _at, _volume, calls in strategy.groups]
    assert sizes[:2] == [3, 6]
    assert set(sizes[1:-2]) == {6}


async def test_writers_who_come_again_late_are_waited_for_ever_more_seldom() -> None:
    strategy = Strategy(seconds=0.02)
    caller, came = Caller(strategy), dict[int, float]()

    async def writer(pause: float) -> None:
        await asyncio.sleep(pause)
        for _ in range(300):
            number = caller.call().call.pid
            came[number] = now()
            while number not in caller.answered:
                await asyncio.sleep(0.0005)
            await asyncio.sleep(GATHER_SECONDS + 0.005)

    await asyncio.gather(writer(0), writer(0.01))
    waits, ended = 0, 0.0
    for at, _volume, calls in strategy.groups:
        waits += at - max(ended, *(came[each] for each in calls[:1]), 0.0) > 0.001
        ended = at + 0.02
    assert waits < 0.1 * len(strategy.groups)


async def test_nobody_waits_for_those_who_do_not_come_again() -> None:
    strategy = Strategy()
    caller, begin = Caller(strategy), now()
    for _ in range(3):
        caller.call()
    await in_turn(caller, 1.001, 0.001)
    await asyncio.sleep(0.5)
    assert strategy.groups[1:] == [(pytest.approx(begin + 1.01), "v", [4, 5])]
    await asyncio.sleep(2)
    await in_turn(caller, 0)
    await asyncio.sleep(2)
    assert strategy.groups[2:] == [(pytest.approx(begin + 3.502), "v", [6])]


async def test_one_writer_alone_is_never_held_up() -> None:
    strategy = Strategy(seconds=0.02)
    caller, begin = Caller(strategy), now()
    await in_turn(caller, 0, 0.021, 0.021)
    await asyncio.sleep(1)
    assert [at - begin for at, _, _ in strategy.groups] == pytest.approx([0, 0.021, 0.042])


# -- what they are told ------------------------------------------------------------------------------


async def test_each_call_is_told_what_its_own_volumes_said() -> None:
    strategy = Strategy()
    strategy.answers = {("v", 2): Answer(5), ("w", 3): BY_KERNEL}
    caller = Caller(strategy)
    caller.call("v")
    await asyncio.sleep(0.5)
    caller.call("v")
    caller.call("v", "w")
    caller.call("v", "w")
    await asyncio.sleep(10)
    assert caller.told == {1: DONE, 2: Answer(5), 3: BY_KERNEL, 4: DONE}


async def test_a_failure_is_told_at_once_and_only_once() -> None:
    """The other volume, whose group has it too, may be unable to confirm anything for hours."""
    strategy = Strategy()
    strategy.answers = {("quick", 2): Answer(28), ("slow", 2): Answer(5)}
    caller, begin = Caller(strategy), now()
    caller.call("slow")
    await asyncio.sleep(0.5)
    caller.call("slow", "quick")
    await asyncio.sleep(10)
    assert caller.told == {1: DONE, 2: Answer(28)}
    assert caller.answered[2] == begin + 1.5
