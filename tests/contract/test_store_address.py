"""The store's address, as people write it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from pannier.core.errors import InvalidInput
from pannier.store.address import EtcdAddress, SqliteAddress, open_store, parse_address
from pannier.store.etcd import EtcdStore
from pannier.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("address", "endpoints"),
    [
        ("etcd://a:2379,b:2380", ("a:2379", "b:2380")),
        ("etcd://node-1.example.org", ("node-1.example.org:2379",)),
        ("etcd://10.0.0.1:1,[fd00::1]:2,[::1]", ("10.0.0.1:1", "[fd00::1]:2", "[::1]:2379")),
    ],
)
def test_etcd_address_names_members(address: str, endpoints: tuple[str, ...]) -> None:
    assert parse_address(address) == EtcdAddress(endpoints)


def test_sqlite_address_names_a_file() -> None:
    path = Path("/var/lib/pannier/store.db")
    assert parse_address("sqlite:/var/lib/pannier/store.db") == SqliteAddress(path)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "no scheme"),
        ("/var/lib/store.db", "no scheme"),
        ("etc://a:1", "did you mean etcd"),
        ("ETCD://a:1", "did you mean etcd"),
        ("sqlite3:/a", "did you mean sqlite"),
        ("zookeeper://a:1", "there is no store 'zookeeper'"),
        ("etcd:a:1", "two slashes"),
        ("etcd://", "empty"),
        ("etcd://a,,b", "empty"),
        ("etcd://a,b,", "empty"),
        ("etcd://a:0", "not a port"),
        ("etcd://a:65536", "not a port"),
        ("etcd://a:", "not a port"),
        ("etcd://a:x", "not a port"),
        ("etcd://a:1/path", "not a port"),
        ("etcd://a/path", "not host:port"),
        ("etcd://user@a:1", "not host:port"),
        ("etcd://a b:1", "not host:port"),
        ("etcd://fd00::1", "not a port"),
        ("etcd://[fd00::g]:1", "IPv6"),
        ("etcd://[::1:1", "IPv6"),
        ("etcd://[::1]1", "IPv6"),
        ("etcd://a:1,a:1", "twice"),
        ("etcd://a,a:2379", "twice"),
        ("etcd://a:1, b:1", "not host:port"),
        ("sqlite:", "absolute path"),
        ("sqlite:store.db", "absolute path"),
        ("sqlite:///var/store.db", "absolute path"),
        ("sqlite:/var/", "name a file"),
    ],
)
def test_wrong_address_is_refused_with_a_reason_and_an_example(address: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        parse_address(address)
    assert "etcd://host1" in caught.value.remedy
    assert repr(address) in caught.value.message


def test_open_store_gives_the_store_of_the_scheme() -> None:
    assert isinstance(open_store("sqlite:/nowhere/store.db"), SqliteStore)
    assert isinstance(open_store("etcd://a:1", tls=ssl.create_default_context()), EtcdStore)


def test_etcd_without_a_certificate_is_refused() -> None:
    with pytest.raises(InvalidInput, match="certificate"):
        open_store("etcd://a:1")
