"""The store's address, as people write it in the configuration.

``etcd://host:port,host:port`` (port 2379 where none is given) or ``sqlite:/absolute/path``.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pannier.core.errors import InvalidInput
from pannier.store.base import Store
from pannier.store.etcd import EtcdStore
from pannier.store.etcd_gateway import Timing
from pannier.store.sqlite import SqliteStore

ETCD_PORT: Final = 2379

_EXAMPLES: Final = (
    "write etcd://host1:2379,host2:2379,host3:2379 or sqlite:/var/lib/pannier/store.db"
)

_HOST: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """The members of an etcd cluster, each as ``host:port``."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SqliteAddress:
    """A file on this node."""

    path: Path


StoreAddress = EtcdAddress | SqliteAddress


def parse_address(address: str) -> StoreAddress:
    """Read an address.

    Raises:
        InvalidInput: it is not one; says what is wrong with it.
    """
    scheme, colon, rest = address.partition(":")
    if not colon:
        raise _not_an_address(address, "it has no scheme")
    match scheme:
        case "etcd":
            return EtcdAddress(_endpoints(address, rest))
        case "sqlite":
            return SqliteAddress(_path(address, rest))
    close = difflib.get_close_matches(scheme.lower(), ["etcd", "sqlite"], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise _not_an_address(address, f"there is no store {scheme!r}{hint}")


def open_store(
    address: str, *, tls: ssl.SSLContext | None = None, timing: Timing | None = None
) -> Store:
    """The store at an address; nothing is connected or opened before its ``session()``.

    Args:
        address: see :func:`parse_address`.
        tls: client context with the cluster's CA and this client's certificate; etcd needs it.
        timing: how long to wait for etcd.

    Raises:
        InvalidInput: the address is not one, or it is etcd's and ``tls`` is None.
    """
    match parse_address(address):
        case EtcdAddress(endpoints):
            if tls is None:
                raise InvalidInput(
                    f"the store {address} needs a client certificate",
                    remedy="give the CA, the certificate and its key; etcd without TLS is not used",
                )
            return EtcdStore(endpoints, tls=tls, timing=timing)
        case SqliteAddress(path):
            return SqliteStore(path)


def _endpoints(address: str, rest: str) -> tuple[str, ...]:
    if not rest.startswith("//"):
        raise _not_an_address(address, "after etcd: come two slashes")
    members = [_endpoint(address, member) for member in rest.removeprefix("//").split(",")]
    if twice := {member for member in members if members.count(member) > 1}:
        raise _not_an_address(address, f"{', '.join(sorted(twice))} is in it twice")
    return tuple(members)


def _endpoint(address: str, member: str) -> str:
    if not member:
        raise _not_an_address(address, "a member's name is empty")
    if member.startswith("["):
        host, bracket, port = member.partition("]")
        if not bracket or (port and not port.startswith(":")) or not _is_ipv6(host[1:]):
            raise _not_an_address(address, f"{member!r} is not [IPv6-address]:port")
        host, colon, port = host + "]", port[:1], port[1:]
    else:
        host, colon, port = member.partition(":")
        if not _HOST.fullmatch(host):
            raise _not_an_address(address, f"{member!r} is not host:port")
    if not colon:
        return f"{host}:{ETCD_PORT}"
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise _not_an_address(address, f"{port!r} is not a port")
    return f"{host}:{int(port)}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _path(address: str, rest: str) -> Path:
    if rest.startswith("//") or not rest.startswith("/"):
        raise _not_an_address(address, "after sqlite: comes an absolute path with one slash")
    if rest.endswith("/") or "\0" in rest:
        raise _not_an_address(address, "it does not name a file")
    return Path(rest)


def _not_an_address(address: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{address!r} is not a store's address: {reason}", remedy=_EXAMPLES)
