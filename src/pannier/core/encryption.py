"""What the records say of keys: those of volumes, and the cluster's, which encrypts them. No record has a key in clear text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from pannier.core.errors import InvalidInput
from pannier.core.record import Part, Record

LEAST_PASSPHRASE_LETTERS = 12
"""Who has a copy of the store can try passphrases for as long as he likes."""
MOST_PASSPHRASE_LETTERS = 1024
_PASSPHRASE = re.compile(rf"[ -~]{{{LEAST_PASSPHRASE_LETTERS},{MOST_PASSPHRASE_LETTERS}}}")
"""Other letters may be other bytes where they are typed elsewhere."""
NEW_PASSPHRASE_PATTERN = f"^({_PASSPHRASE.pattern})?$"
"""For the API's document: empty is none."""
LOCKED_FORMAT = 2
"""Of the record of keys that are locked: an older node would write them into a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedKey(Part):
    """A volume's key, encrypted.

    Attributes:
        by: the id of the cluster's key with which that was done.
        sealed: base64.
    """

    by: str
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedKeys(Part):
    """Keys of the cluster, encrypted with a passphrase.

    Attributes:
        ids: of the keys.
        salt: base64.
        cost: the logarithm of scrypt's N.
        sealed: base64.
    """

    ids: tuple[str, ...]
    salt: str
    cost: int
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterKey(Record):
    """Names the key with which everything new is encrypted. Nodes have the key itself, and the store does not.

    Attributes:
        locked: keys that are in no file of any node: a node has them in memory only. Format 2. None: each node has all keys
            that it knows in a file.
    """

    known_format: ClassVar[int] = 2

    id: str
    locked: LockedKeys | None = None


def about_volume(cluster: str, volume_id: str) -> str:
    """What a volume's key belongs to: it is decrypted together with the same text only."""
    return f"{cluster}\nvolume\n{volume_id}"


def check_passphrase(passphrase: str) -> None:
    """Refuse what is no passphrase for keys.

    Raises:
        InvalidInput: it is too short, or has letters that not every keyboard has, or several lines.
    """
    if not _PASSPHRASE.fullmatch(passphrase):
        raise InvalidInput(
            f"the passphrase has less than {LEAST_PASSPHRASE_LETTERS} letters, or some that are not printable ASCII",
            remedy="use several words in one line, and keep them where no node is",
        )
