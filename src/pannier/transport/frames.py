"""The transport's language: frames on the wire, and the messages in some of them.

A frame is one byte of kind, four bytes of length (big endian) and that many bytes::

    DATA       bytes of the generation's stream, at most FRAME_BYTES
    MESSAGE    one message below, as JSON
    KEEPALIVE  nothing: this end is alive and has nothing to say

A conversation::

    sender                      receiver
    Offered   ------------->               which generation of which volume, at which epoch
              <-------------    Have       the whole generations there, the one begun, the newest record (or Failed)
    Start     ------------->               what the stream is a difference to
    DATA ...  ------------->
    End       ------------->               how many bytes the stream had
              <-------------    Done       whole and durable (or Failed)

A sender that knows how goes on with what was begun there, if that is the offered generation on top of
the same base: the stream itself says where it begins. Ends that do not know `begun` ignore it, or never
say it, and all is sent.

After Done, or after a Have with the offered generation in it, which says the same, the sender may
make its next offer on the same connection, or close it.

There is no half-close: End ends the stream. Either end may say Failed at any time in place of what
is due, and then says nothing more. A stream without its End is never whole. An end that has said
nothing for a while says KEEPALIVE, whatever it is busy with, so silence means a dead peer.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import TypeAlias

import msgspec

from pannier.core.errors import InvalidInput, PannierError, from_code
from pannier.core.generation import Generation
from pannier.core.line import LinePlace
from pannier.core.volume import check_name
from pannier.storage.base import Begun, LocalCopy
from pannier.transport.base import Offer

PROTOCOL = "pannier-transport/2"
"""The ALPN name: ends of different versions, and our other servers, are told apart in the handshake."""

HEADER = struct.Struct(">BI")
FRAME_BYTES = 512 * 1024
"""Largest DATA frame: large enough to make calls rare, small enough to stay in the CPU's cache."""
MESSAGE_BYTES = 1024 * 1024
"""Largest MESSAGE frame: a Have with a hundred thousand generations."""

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)


class Kind(IntEnum):
    """What a frame holds."""

    DATA = 0
    MESSAGE = 1
    KEEPALIVE = 2


class Offered(msgspec.Struct, tag="offer", frozen=True, kw_only=True):
    """See :class:`~pannier.transport.base.Offer`."""

    volume_id: str
    volume_name: str
    driver: str
    epoch: int
    generation: str

    @classmethod
    def of(cls, offer: Offer) -> Offered:
        """The message for ``offer``."""
        return cls(
            volume_id=offer.volume_id,
            volume_name=offer.volume_name,
            driver=offer.driver,
            epoch=offer.epoch,
            generation=str(offer.generation),
        )

    def offer(self) -> Offer:
        """The offer, its names checked: they become file names.

        Raises:
            InvalidInput: an id, name or number in it is not valid.
        """
        if not _ID.fullmatch(self.volume_id) or self.epoch < 0:
            raise InvalidInput(
                f"{self.volume_id[:40]!r} at epoch {self.epoch} is not a volume's id",
                remedy="check that both nodes run the same version",
            )
        return Offer(
            volume_id=self.volume_id,
            volume_name=check_name(self.volume_name),
            driver=self.driver,
            epoch=self.epoch,
            generation=Generation.parse(self.generation),
        )


class BegunPart(msgspec.Struct, frozen=True, kw_only=True):
    """See :class:`~pannier.storage.base.Begun`."""

    generation: str
    base: str | None
    position: int

    @classmethod
    def of(cls, begun: Begun) -> BegunPart:
        """The message for ``begun``."""
        base = None if begun.base is None else str(begun.base)
        return cls(generation=str(begun.generation), base=base, position=begun.position)

    def parsed(self) -> Begun:
        """What was begun. Raises InvalidInput."""
        if self.position <= 0:
            raise InvalidInput(
                f"the other side has begun a generation up to byte {self.position}",
                remedy="check that both nodes run the same version",
            )
        base = None if self.base is None else Generation.parse(self.base)
        generation = Generation.parse(self.generation)
        return Begun(generation=generation, base=base, position=self.position)


class KeptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The newest record that the receiver keeps; see :class:`~pannier.core.line.LinePlace`."""

    epoch: int
    run: str
    number: int
    generation: str
    included: int
    acknowledged: int

    @classmethod
    def of(cls, place: LinePlace) -> KeptRecord:
        """The message for ``place``."""
        return cls(
            epoch=place.epoch,
            run=place.run,
            number=place.number,
            generation=str(place.generation),
            included=place.included,
            acknowledged=place.acknowledged,
        )

    def parsed(self) -> LinePlace:
        """Its place; the volume is the one that was offered. Raises InvalidInput."""
        return LinePlace(
            volume="",
            epoch=self.epoch,
            run=self.run,
            number=self.number,
            generation=Generation.parse(self.generation),
            included=self.included,
            acknowledged=self.acknowledged,
        )


class Have(msgspec.Struct, tag="have", frozen=True, omit_defaults=True):
    """What the receiver has of the volume: whole generations, and the one of which it has a part."""

    generations: tuple[str, ...]
    begun: BegunPart | None = None
    last: KeptRecord | None = None

    @classmethod
    def of(cls, copy: LocalCopy) -> Have:
        """The message for what is here."""
        generations = tuple(str(generation) for generation in copy.generations)
        return cls(
            generations,
            None if copy.begun is None else BegunPart.of(copy.begun),
            None if copy.last is None else KeptRecord.of(copy.last),
        )

    def parsed(self) -> LocalCopy:
        """What the receiver has. Raises InvalidInput."""
        generations = tuple(Generation.parse(text) for text in self.generations)
        begun = None if self.begun is None else self.begun.parsed()
        last = None if self.last is None else self.last.parsed()
        return LocalCopy(generations=generations, begun=begun, last=last)


class Start(msgspec.Struct, tag="start", frozen=True):
    """The stream follows; it is a difference to ``base``, or whole where that is None."""

    base: str | None

    def parsed(self) -> Generation | None:
        """The base. Raises InvalidInput."""
        return None if self.base is None else Generation.parse(self.base)


class End(msgspec.Struct, tag="end", frozen=True):
    """The stream was complete and had ``bytes`` bytes."""

    bytes: int


class Done(msgspec.Struct, tag="done", frozen=True):
    """The generation is whole and durable."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The speaker's side failed."""

    code: str
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, error: PannierError) -> Failed:
        """The message for ``error``, cut to a length that always fits."""
        return cls(error.code, error.message[:4000], error.remedy[:4000])

    def error(self, *, peer: str) -> PannierError:
        """The error as its own class; ``peer`` is who reported it."""
        return from_code(self.code, f"{peer}: {self.message}", remedy=self.remedy)


Message: TypeAlias = Offered | Have | Start | End | Done | Failed

_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """A whole frame."""
    body = msgspec.json.encode(message)
    return HEADER.pack(Kind.MESSAGE, len(body)) + body


KEEPALIVE_FRAME = HEADER.pack(Kind.KEEPALIVE, 0)


def decode(body: bytes | memoryview) -> Message:
    """The message in a MESSAGE frame.

    Raises:
        InvalidInput: it is not a message.
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            "the other side sent what is not a message",
            remedy="check that both nodes run the same version",
        ) from error


def check_header(kind: int, length: int) -> Kind:
    """The kind of the frame that follows.

    Raises:
        InvalidInput: no such frame, or a longer one than is allowed.
    """
    limits = {Kind.DATA: FRAME_BYTES, Kind.MESSAGE: MESSAGE_BYTES, Kind.KEEPALIVE: 0}
    try:
        known = Kind(kind)
    except ValueError:
        known = None
    if known is None or length > limits[known]:
        raise InvalidInput(
            f"the other side sent a frame of kind {kind} with {length} bytes",
            remedy="check that both nodes run the same version",
        )
    return known
