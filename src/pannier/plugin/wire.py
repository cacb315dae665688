"""The Docker volume plugin API, version 1, as it is on the wire.

Docker sends no Content-Type, podman sends one; an absent ``Opts`` and a null one mean the same. So
bodies are read as JSON whatever the headers say, unknown members are ignored, and known ones must
have their type.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from pannier.contract.docker_volumes import DockerVolume
from pannier.core.errors import InvalidInput

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"
LARGEST_BODY_BYTES = 2**20


class NoBody(msgspec.Struct, frozen=True):
    """A request that is nothing but its endpoint."""


class NameBody(msgspec.Struct, frozen=True, rename={"name": "Name"}):
    """Get, Path, Remove."""

    name: str


class CreateBody(msgspec.Struct, frozen=True, rename={"name": "Name", "options": "Opts"}):
    """Create."""

    name: str
    options: dict[str, str] | None = None


class MountBody(msgspec.Struct, frozen=True, rename={"name": "Name", "mount_id": "ID"}):
    """Mount and Unmount. ``mount_id`` is the engine's own; it is a hint, not a count."""

    name: str
    mount_id: str


Body = NoBody | NameBody | CreateBody | MountBody
B = TypeVar("B", bound=Body)


def decode(raw: bytes, kind: type[B], *, endpoint: str) -> B:
    """Read the body of a request to ``endpoint``. Only a ``NoBody`` may be empty.

    Raises:
        InvalidInput: it has another form.
    """
    if not raw.strip():
        if issubclass(kind, NoBody):
            return kind()
        # If the plugin goes away during a call, Docker repeats the call without its body.
        raise InvalidInput(
            f"{endpoint} came without a body, as Docker sends it after pannierd was restarted"
            " in the middle of a call",
            remedy="repeat the command",
        )
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidInput(
            f"the body of {endpoint} cannot be read: {error}",
            remedy="this socket is for Docker's volume plugin API, version 1",
        ) from error


def encode(answer: dict[str, Any]) -> bytes:
    """An answer as JSON."""
    return msgspec.json.encode(answer)


def encode_error(text: str) -> bytes:
    """An error as JSON. Docker shows the text to its user unchanged."""
    # A name in an invalid request may contain what UTF-8 cannot encode.
    return msgspec.json.encode({"Err": text.encode("utf-8", "replace").decode()})


def describe(volume: DockerVolume) -> dict[str, Any]:
    """A volume in Get and List."""
    return {
        "Name": volume.name,
        "Mountpoint": volume.mountpoint,
        "CreatedAt": volume.created_at,
        "Status": volume.status,
    }
