"""The tables of operations: what a client sends is what the called node gets."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pytest

from pannier.contract import bodies
from pannier.contract.operation import Operation, OperationTable, cluster
from pannier.contract.operations import OPERATIONS, Operations
from pannier.contract.peers import PEER_OPERATIONS, Peer
from pannier.contract.words import TogetherPhase
from pannier.core.generation import Generation, new_identity
from pannier.core.hooks import Moment

SAMPLES: dict[Any, Any] = {
    str: "data",
    bool: True,
    int: 7,
    float: 1.5,
    str | None: None,
    int | None: 4096,
    float | None: 2592000.0,
    list[str]: ["old", "builds/1"],
    list[bodies.BlockSum]: [bodies.BlockSum(4096, 7)],
    Mapping[str, str]: {"size": "10G"},
    Mapping[str, int]: {"id": 3},
    Moment: Moment.AFTER,
    bodies.RenewalOrder: bodies.RenewalOrder(certificate="PEM", csr="PEM"),
    bodies.PeerTogetherOrder: bodies.PeerTogetherOrder(
        session="0" * 32,
        volumes=["data"],
        snapshot="early",
        keep_seconds=None,
        labels={},
        actor="anna",
        alone=True,
    ),
    bodies.PeerTogetherStep: bodies.PeerTogetherStep(session="0" * 32, phase=TogetherPhase.FROZEN),
    bodies.JoinOrder: bodies.JoinOrder(
        token="t", name="node4", address="::1", csr="PEM", version="1"
    ),
    bodies.BackupTargetOrder: bodies.BackupTargetOrder(
        name="offsite", url="/srv/backups", password="s3cret"
    ),
    bodies.RotateOrder: bodies.RotateOrder(passphrase="a horse, a battery"),
    bodies.UnlockOrder: bodies.UnlockOrder(passphrase="a horse, a battery"),
}
ROWS = [(Operations, row) for row in OPERATIONS.rows] + [
    (Peer, row) for row in PEER_OPERATIONS.rows
]


class Noting:
    """Takes any call and gives back its arguments."""

    def __getattr__(self, name: str) -> Any:
        return lambda **values: (name, values)


def _path(operation: Operation, address: str) -> dict[str, str]:
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", operation.path)
    found = re.fullmatch(pattern, urlsplit(address).path)
    assert found is not None
    return {name: unquote(text) for name, text in found.groupdict().items()}


@pytest.mark.parametrize(("protocol", "row"), ROWS, ids=lambda each: getattr(each, "name", ""))
def test_every_argument_arrives(protocol: type, row: Operation) -> None:
    function = getattr(protocol, row.name)
    hints = typing.get_type_hints(function)
    values = {name: SAMPLES[hints[name]] for name in row.arguments}
    address = row.address(values)
    query = dict(parse_qsl(urlsplit(address).query))
    body = row.body_of(values)
    if row.body is not None:
        body = msgspec.json.decode(msgspec.json.encode(body), type=row.body)
    called = row.call(
        Noting(),
        path=_path(row, address),
        flags={flag: query.get(flag) == "true" for flag in row.flags},
        body=body,
    )
    assert called == (row.name, values)


def test_a_name_cannot_leave_its_place_in_the_path() -> None:
    row = next(each for each in OPERATIONS.rows if each.name == "volume")
    assert row.address({"name": "../nodes?x=1#"}) == "/v1/volumes/..%2Fnodes%3Fx%3D1%23"


class Lacking(Protocol):
    @cluster("PATCH", "/nodes/{node}", "Its body is forgotten")
    async def drain(self, name: str, *, drained: bool) -> None: ...


class Unasked(Protocol):
    @cluster("PATCH", "/nodes/{node}", "Its argument is forgotten", body=bodies.MoveOrder)
    async def drain(self, name: str, *, node: str) -> None: ...


@pytest.mark.parametrize("protocol", [Lacking, Unasked])
def test_a_row_that_does_not_fit_its_method_is_an_error_at_once(protocol: type) -> None:
    with pytest.raises(TypeError, match="does not carry"):
        OperationTable(protocol)


@pytest.mark.parametrize("generation", [Generation(3, 17), Generation(3, 17, new_identity())])
def test_a_generation_of_any_driver_can_be_named_in_an_order(generation: Generation) -> None:
    sent = msgspec.json.encode({"epoch": 3, "generation": str(generation), "actor": "anna"})
    order = msgspec.json.decode(sent, type=bodies.PeerTakeOrder)
    assert Generation.parse(order.generation or "") == generation
