"""Encryption of the files in an ext4, by the kernel (fscrypt, policies of version 2).

Names and content of files are encrypted. Sizes, owners, permissions, times, extended attributes and how many files there are in
which directory are not. A key is in the kernel's memory for as long as the file system that it was given to is mounted, and for
no other one: each mount of an image needs it anew.
"""

from __future__ import annotations

import errno
import struct

from pannier.core.errors import Corrupt
from pannier.host.ioctls import control

KEY_BYTES = 64
"""Of a volume's key: what the kernel asks for with AES-256-XTS."""
_SET_POLICY, _GET_POLICY, _ADD_KEY, _KEY_STATUS = 0x800C6613, 0xC0096616, 0xC0506617, 0xC080661A
_POLICY = struct.Struct("<BBBB4x16s")
_VERSION, _AES_256_XTS, _AES_256_CTS = 2, 1, 4
_PADDED = 3
"""Names are filled up to a multiple of 32 bytes, so that their lengths say less."""
_ANY_POLICY_BYTES = 24
"""Room for a policy of any version that there is."""
_SPEC = struct.Struct("<I4x16s16x")
_BY_IDENTIFIER = 2
_PRESENT = 2
_NO_POLICY = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTTY)
"""The directory has none; the file system keeps none."""


def add_key(directory: int, key: bytes) -> bytes:
    """Give the file system that a descriptor is of a key. Repeatable. Returns the key's identifier, which says nothing of it.

    Raises:
        OSError: the kernel refused.
    """
    spec = _SPEC.pack(_BY_IDENTIFIER, b"")
    block = bytearray(spec + struct.pack("<II32x", len(key), 0) + key)
    try:
        control(directory, _ADD_KEY, block)
        return bytes(block[8:24])
    finally:
        block[:] = bytes(len(block))


def has_key(directory: int, identifier: bytes) -> bool:
    """Whether the file system has the key.

    Raises:
        OSError: the kernel does not tell.
    """
    block = bytearray(_SPEC.pack(_BY_IDENTIFIER, identifier) + bytes(88))
    control(directory, _KEY_STATUS, block)
    return bool(struct.unpack_from("<I", block, 64)[0] == _PRESENT)


def set_policy(directory: int, identifier: bytes) -> None:
    """Have all that comes into an empty directory encrypted with a key. Durable with the file system's next sync.

    Raises:
        OSError: the kernel refused, as where it cannot encrypt.
    """
    control(
        directory,
        _SET_POLICY,
        _POLICY.pack(_VERSION, _AES_256_XTS, _AES_256_CTS, _PADDED, identifier),
    )


def policy_of(directory: int) -> bytes | None:
    """The identifier of the key with which a directory is encrypted; None where it is not.

    Raises:
        OSError: the kernel does not tell. Corrupt: it is encrypted in another way than ours.
    """
    block = bytearray(struct.pack("<Q", _ANY_POLICY_BYTES) + bytes(_ANY_POLICY_BYTES))
    try:
        control(directory, _GET_POLICY, block)
    except OSError as error:
        if error.errno in _NO_POLICY:
            return None
        raise
    version, content, names, flags, identifier = _POLICY.unpack_from(block, 8)
    if (version, content, names, flags) != (_VERSION, _AES_256_XTS, _AES_256_CTS, _PADDED):
        raise Corrupt(
            "the files in the image are encrypted in a way that is not Pannier's",
            remedy="take the volume's copy on another node",
        )
    return bytes(identifier)
