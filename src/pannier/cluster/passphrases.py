"""Keys of the cluster that are locked with a passphrase: the store has them so, and no node has them on its disk."""

from __future__ import annotations

import base64
import hashlib
import secrets as random
from collections.abc import Sequence

import msgspec

from pannier.cluster.sealing import id_of, seal, unseal
from pannier.core.encryption import LockedKeys
from pannier.core.errors import Corrupt, Denied

_COST = 16
"""2^16 rounds of scrypt take 64 MiB and a quarter of a second: a node pays that once, and who tries passphrases for each."""
_MOST_COST = 20
"""What a record may ask for: 1 GiB. Who can write the store must not make a node run out of memory."""
_BLOCK = 8
_SALT_BYTES = 16
_ABOUT = "keys of the cluster"


def lock(keys: Sequence[bytes], passphrase: str) -> LockedKeys:
    """Encrypt keys with a passphrase. It takes a while."""
    salt = random.token_bytes(_SALT_BYTES)
    sealed = seal(_key_of(passphrase, salt, _COST), msgspec.json.encode(list(keys)), about=_ABOUT)
    return LockedKeys(
        ids=tuple(map(id_of, keys)),
        salt=base64.b64encode(salt).decode(),
        cost=_COST,
        sealed=sealed,
    )


def unlocked(locked: LockedKeys, passphrase: str) -> list[bytes]:
    """The keys. It takes a while.

    Raises:
        Denied: it is another passphrase, or somebody has changed what is locked with it. Corrupt: it cannot be read.
    """
    try:
        salt = base64.b64decode(locked.salt, validate=True)
    except ValueError as error:
        raise _unreadable() from error
    if not 1 <= locked.cost <= _MOST_COST:
        raise _unreadable()
    key = _key_of(passphrase, salt, locked.cost)
    try:
        plain = unseal(key, locked.sealed, about=_ABOUT, otherwise=_unreadable())
    except Corrupt as error:
        raise Denied(
            "this is not the passphrase that the cluster's keys are locked with",
            remedy="give the one of the last pannier key rotate; a node that has the keys can lock them with another one",
        ) from error
    return msgspec.json.decode(plain, type=list[bytes])


def _key_of(passphrase: str, salt: bytes, cost: int) -> bytes:
    memory = (256 * _BLOCK) << cost  # twice what it takes
    return hashlib.scrypt(
        passphrase.encode(), salt=salt, n=1 << cost, r=_BLOCK, p=1, maxmem=memory, dklen=32
    )


def _unreadable() -> Corrupt:
    return Corrupt(
        "the keys in the store that are locked with a passphrase cannot be read",
        remedy="restore the store from a snapshot, or start a node that has the keys",
    )
