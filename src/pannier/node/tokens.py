"""Join tokens, on the disk of the node with the authority: they are made and redeemed there, and nowhere else.

The store knows nothing of them. So whoever can write it can make no token, and bring back none that was used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pannier.core.errors import Denied, StorageError
from pannier.core.record import Record
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.pki.token import Token, TokenRecord, redeem


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTokens(Record):
    """The file of :class:`Tokens`: the records, by the tokens' ids."""

    tokens: Mapping[str, TokenRecord] = field(default_factory=dict)


class Tokens:
    """The tokens that were made here. A change that is not on the disk was not made.

    All methods but :meth:`find` may raise StorageError: the file cannot be read or written.
    """

    def __init__(self, *, file: StateFile) -> None:
        """Read them."""
        self._file = file
        remedy = "move it away, and make new tokens with 'pannier token create'"
        self._saved = read_file(file, SavedTokens, remedy=remedy) or SavedTokens()
        self._saving = asyncio.Lock()

    def find(self, token_id: str) -> TokenRecord | None:
        """A token's record; None where it is unknown or used up."""
        return self._saved.tokens.get(token_id)

    async def add(self, record: TokenRecord) -> None:
        """A new token."""
        async with self._saving:
            await self._save({**self._saved.tokens, record.id: record})

    async def use(self, token: Token, *, now: float) -> None:
        """Use a token once that was there when it was looked at.

        Args:
            now: Unix time.

        Raises:
            Denied: it is not accepted: see :func:`~pannier.pki.token.redeem`.
        """
        async with self._saving:
            found = self.find(token.id)
            if found is None:
                raise Denied(
                    "the join token has been used up by another machine",
                    remedy="make a new one with 'pannier token create' on a node of the cluster",
                )
            left = redeem(found, secret=token.secret, now=now)
            tokens = {**self._saved.tokens}
            if left is None:
                del tokens[token.id]
            else:
                tokens[token.id] = left
            await self._save(tokens)

    async def forget(self, *, expired_before: float) -> None:
        """Remove the records of tokens that expired before that Unix time."""
        async with self._saving:
            kept = {
                each.id: each
                for each in self._saved.tokens.values()
                if each.is_newer or each.expires_at > expired_before
            }
            if len(kept) < len(self._saved.tokens):
                await self._save(kept)

    async def _save(self, tokens: Mapping[str, TokenRecord]) -> None:
        saved = replace(self._saved, tokens=tokens)
        try:
            await asyncio.to_thread(self._file.write, encode(saved))
        except OSError as error:
            raise StorageError(
                f"{self._file.path} cannot be written: {error}", remedy="see the disk"
            ) from error
        self._saved = saved
