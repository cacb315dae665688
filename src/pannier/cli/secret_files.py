"""Secrets that a command is given: from files or stdin, since everybody sees what is in its line."""

from __future__ import annotations

import sys
from pathlib import Path

from pannier.core.errors import InvalidInput

_STDIN = "-"
_MOST_LETTERS = 65_536
"""Of a file with a secret: more is none, but a wrong file."""


def read_secret(file: str | None) -> str:
    """The content of a file with a secret; empty for none.

    Raises:
        InvalidInput: it cannot be read, or is no such file.
    """
    if file is None:
        return ""
    try:
        stream = sys.stdin.buffer if file == _STDIN else Path(file).open("rb")  # noqa: SIM115
        with stream:
            content = stream.read(_MOST_LETTERS + 1)
        if len(content) > _MOST_LETTERS:
            raise ValueError("it is too large for a secret")
        return content.decode()
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{file} cannot be read: {error}", remedy="name the right file"
        ) from None


def read_s3_keys(file: str | None) -> tuple[str, str]:
    """The id and the key with which S3 lets somebody in, of a file; both empty for none.

    Raises:
        InvalidInput: it cannot be read, or does not have both.
    """
    if file is None:
        return "", ""
    pairs = dict(line.partition("=")[::2] for line in read_secret(file).splitlines())
    found = pairs.get("AWS_ACCESS_KEY_ID", ""), pairs.get("AWS_SECRET_ACCESS_KEY", "")
    if all(found):
        return found
    raise InvalidInput(
        f"{file} does not have the two keys of S3",
        remedy="write two lines: AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=...",
    )
