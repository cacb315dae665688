"""Acting only on what has been so for a while: a clock that was wrong, or a mistake, is put right by then."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Lasting(Generic[Key]):
    """Knows since when things have been so, as this node saw it. A restart begins anew."""

    def __init__(self) -> None:
        self._since: dict[Key, float] = {}

    def for_long(self, found: Collection[Key], *, now: float, seconds: float) -> frozenset[Key]:
        """Those that were found each time for so long.

        Args:
            found: all that are so now. What is missing once begins anew.
            now: seconds since boot.
        """
        self._since = {key: self._since.get(key, now) for key in found}
        return frozenset(key for key, since in self._since.items() if now - since >= seconds)
