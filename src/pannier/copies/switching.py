"""Which of this node's volumes are just being given away."""

from __future__ import annotations

from pannier.core.volume import Volume


class Switching:
    """The volumes whose hand-over has come to its switch: no generation of them may be made any more."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def begin(self, volume: Volume) -> None:
        """The volume is given away from now on."""
        self._ids.add(volume.id)

    def end(self, volume: Volume) -> None:
        """It was given away, or stays. Ending what did not begin is no error."""
        self._ids.discard(volume.id)

    def __contains__(self, volume: Volume) -> bool:
        return volume.id in self._ids
