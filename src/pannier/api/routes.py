"""All routes of the server and who may use them: the contract's operations, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pannier.api.caller import Anonymous, Caller, LocalCaller, NodeCaller, UserCaller
from pannier.contract.operation import Access, Operation
from pannier.contract.operations import OPERATIONS
from pannier.contract.peers import PEER_OPERATIONS

ALLOWED: Mapping[Access, frozenset[type[Caller]]] = {
    Access.JOIN: frozenset({Anonymous, NodeCaller, UserCaller, LocalCaller}),
    Access.CLUSTER: frozenset({NodeCaller, UserCaller, LocalCaller}),
    Access.LOCAL: frozenset({LocalCaller}),
    Access.PEER: frozenset({NodeCaller}),
}
"""Who may do what; there is no other rule. A caller that is not in a row's set is refused."""

DOCUMENT = Operation(
    name="openapi",
    method="GET",
    path="/v1/openapi.json",
    access=Access.CLUSTER,
    summary="This document",
    answer=dict[str, Any],
)
ROUTES: tuple[Operation, ...] = (*OPERATIONS.rows, DOCUMENT, *PEER_OPERATIONS.rows)
