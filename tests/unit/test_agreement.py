"""What a sender does with what the receiver has begun."""

from __future__ import annotations

from typing import cast

import pytest

from pannier.core.generation import Generation
from pannier.storage.base import Begun, Driver, LocalCopy, ResumingDriver
from pannier.transport.agreement import Agreement, agree
from pannier.transport.base import Offer

BASE, BEGUN, OFFERED = (Generation(2, number, f"0000000{number}") for number in (1, 2, 3))


class Resuming:
    """Has the methods of a driver that goes on with what was begun; none is called."""

    generations_in_use = False

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


class NotResuming:
    """Begins all anew."""

    generations_in_use = False


def agreed(
    begun: Begun | None,
    *,
    driver: object = None,
    ours: tuple[Generation, ...] = (BASE, BEGUN, OFFERED),
    epoch: int = 2,
) -> Agreement:
    offer = Offer(
        volume_id="v1", volume_name="web", driver="image", epoch=epoch, generation=OFFERED
    )
    return agree(
        offer,
        cast("Driver", driver or Resuming()),
        LocalCopy(generations=ours),
        LocalCopy(generations=(BASE,), begun=begun),
    )


def part(generation: Generation, base: Generation | None = BASE) -> Begun:
    return Begun(generation=generation, base=base, position=4096)


def test_the_fake_counts_as_what_it_stands_for() -> None:
    assert isinstance(Resuming(), ResumingDriver)
    assert not isinstance(NotResuming(), ResumingDriver)


def test_the_offered_generation_goes_on_where_it_was() -> None:
    assert agreed(part(OFFERED)) == Agreement(there=False, base=BASE, position=4096)


def test_another_one_is_finished_first() -> None:
    assert agreed(part(BEGUN)) == Agreement(there=False, base=BASE, first=BEGUN)


@pytest.mark.parametrize("generation", [BEGUN, OFFERED])
def test_a_part_on_another_base_is_of_no_use(generation: Generation) -> None:
    for base in (None, Generation(2, 1, "ffffffff")):
        assert agreed(part(generation, base)) == Agreement(there=False, base=BASE)


@pytest.mark.parametrize("generation", [BEGUN, OFFERED])
def test_a_driver_that_begins_all_anew_does(generation: Generation) -> None:
    assert agreed(part(generation), driver=NotResuming()) == Agreement(there=False, base=BASE)


def test_what_the_sender_no_longer_has_is_not_finished() -> None:
    assert agreed(part(BEGUN), ours=(BASE, OFFERED)) == Agreement(there=False, base=BASE)


def test_what_is_of_a_former_epoch_is_not_finished() -> None:
    """The volume may not have grown out of it."""
    assert agreed(part(BEGUN), epoch=3) == Agreement(there=False, base=BASE)


def test_without_a_part_the_difference_is_sent() -> None:
    assert agreed(None) == Agreement(there=False, base=BASE)
