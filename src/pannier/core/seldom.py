"""Saying something seldom that happens often. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Seldom:
    """Lets the first of several alike events be said at once, and then one for each while.

    It remembers each kind of event that it was asked about.
    """

    _said: dict[str, float] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)

    def due(self, kind: str, *, now: float, every: float) -> int | None:
        """Whether an event is to be said.

        Args:
            every: seconds from one that is said to the next.

        Returns:
            How many of its kind were left out since the last one that was said; None: leave this one out, too.
        """
        said = self._said.get(kind)
        if said is not None and now - said < every:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        self._said[kind] = now
        return self._left_out.pop(kind, 0)
