"""Whether a driver is of a kind: what isinstance says of a protocol, remembered for each class.

Asking a protocol with many methods takes some 50 us, and each sync call asks several times.
"""

from __future__ import annotations

from collections.abc import Callable

from pannier.storage.base import Driver


def by_class(check: Callable[[Driver], bool]) -> Callable[[Driver], bool]:
    """The same check, asked once for each class of driver."""
    known: dict[type, bool] = {}

    def remembered(driver: Driver) -> bool:
        kind = type(driver)
        if kind not in known:
            known[kind] = check(driver)
        return known[kind]

    return remembered
