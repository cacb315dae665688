"""Clients: the API's use cases, and those between nodes, on the far side of a connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from types import NoneType
from urllib.parse import quote

from pannier.api.connection import CHANGE_SECONDS, Connection
from pannier.contract.operations import HandoverReply, JoinReply, JoinRequest
from pannier.contract.views import (
    CheckView,
    EventView,
    FindingView,
    HookView,
    MoveProgress,
    NodeView,
    ServiceMoveProgress,
    ServiceView,
    StatusView,
    TokenView,
    TrashView,
    VolumeView,
)
from pannier.core.errors import OutcomeUnknown
from pannier.core.hooks import Moment

HANDOVER_SECONDS = 15.0
"""The holder answers within about 5 s."""
PROMISE_ANSWER_SECONDS = 2.0
VERIFY_SECONDS = 24 * 3600.0
"""Terabytes are read at the disk's leisure."""
_LAST_PHASES = frozenset({"done", "failed"})


def _segment(text: str) -> str:
    return quote(text, safe="")


class ApiClient(Connection):
    """The API of one daemon: the same methods as ``Operations``, which it can stand in for.

    ``actor`` is for nodes that pass on a user's request; the server ignores it from anybody else.
    The errors are those of :meth:`~pannier.api.connection.Connection.ask`, and the server's own.
    """

    async def status(self) -> StatusView:
        """The cluster at a glance."""
        return await self.ask("GET", "/v1/status", answer=StatusView)

    async def nodes(self) -> list[NodeView]:
        """All nodes."""
        return await self.ask("GET", "/v1/nodes", answer=list[NodeView])

    async def node(self, name: str) -> NodeView:
        """One node."""
        return await self.ask("GET", f"/v1/nodes/{_segment(name)}", answer=NodeView)

    async def drain_node(self, name: str, *, drained: bool, actor: str | None = None) -> NodeView:
        """Take a node out of placement, or put it back."""
        path = f"/v1/nodes/{_segment(name)}"
        return await self.ask(
            "PATCH", path, body={"drained": drained}, answer=NodeView, actor=actor
        )

    async def remove_node(self, name: str, *, lost: bool, actor: str | None = None) -> None:
        """Forget a node; with ``lost`` one that is down for ever, and its volumes with it."""
        path = f"/v1/nodes/{_segment(name)}" + ("?lost=true" if lost else "")
        await self.ask("DELETE", path, answer=NoneType, actor=actor)

    async def create_token(
        self, *, ttl_seconds: float, uses: int, actor: str | None = None
    ) -> TokenView:
        """Make a join token."""
        body = {"ttl_seconds": ttl_seconds, "uses": uses}
        return await self.ask("POST", "/v1/tokens", body=body, answer=TokenView, actor=actor)

    async def join(self, request: JoinRequest) -> JoinReply:
        """Become a node."""
        return await self.ask("POST", "/v1/join", body=asdict(request), answer=JoinReply)

    async def volumes(self) -> list[VolumeView]:
        """All volumes."""
        return await self.ask("GET", "/v1/volumes", answer=list[VolumeView])

    async def volume(self, name: str) -> VolumeView:
        """One volume."""
        return await self.ask("GET", f"/v1/volumes/{_segment(name)}", answer=VolumeView)

    async def create_volume(
        self, name: str, options: Mapping[str, str], *, actor: str | None = None
    ) -> VolumeView:
        """Create a volume; options as people type them."""
        body = {"name": name, "options": dict(options)}
        return await self.ask("POST", "/v1/volumes", body=body, answer=VolumeView, actor=actor)

    async def remove_volume(self, name: str, *, actor: str | None = None) -> TrashView:
        """Move a volume to the trash."""
        path = f"/v1/volumes/{_segment(name)}"
        return await self.ask("DELETE", path, answer=TrashView, actor=actor)

    async def recover_volume(
        self, name: str, *, accept_loss: bool, actor: str | None = None
    ) -> VolumeView:
        """Give a lost holder's volume to the newest copy."""
        path = f"/v1/volumes/{_segment(name)}/recover"
        body = {"accept_loss": accept_loss}
        return await self.ask("POST", path, body=body, answer=VolumeView, actor=actor)

    async def verify_volume(self, name: str) -> list[CheckView]:
        """Have every copy of a volume read to the last byte; may take hours."""
        path = f"/v1/volumes/{_segment(name)}/verify"
        return await self.ask("POST", path, answer=list[CheckView], timeout_seconds=VERIFY_SECONDS)

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str | None = None
    ) -> AsyncGenerator[MoveProgress, None]:
        """Move a volume; the last value's phase is ``done`` or ``failed``."""
        body = {"node": node, "wait_seconds": wait_seconds}
        path = f"/v1/volumes/{_segment(name)}/move"
        async with aclosing(_move(self, path, body=body, actor=actor)) as stream:
            async for progress in stream:
                yield progress

    async def services(self) -> list[ServiceView]:
        """The Swarm's services with volumes of ours."""
        return await self.ask("GET", "/v1/services", answer=list[ServiceView])

    async def move_service(
        self,
        name: str,
        node: str,
        *,
        now: bool,
        stay: bool,
        timeout_seconds: float,
        actor: str | None = None,
    ) -> AsyncGenerator[ServiceMoveProgress, None]:
        """Move a Swarm service with its volumes; the last value's phase is ``done``."""
        body = {"node": node, "now": now, "stay": stay, "timeout_seconds": timeout_seconds}
        path = f"/v1/services/{_segment(name)}/move"
        phase = ""
        stream = self.stream("POST", path, item=ServiceMoveProgress, body=body, actor=actor)
        async with aclosing(stream) as lines:
            async for progress in lines:
                phase = progress.phase
                yield progress
        if phase != "done":
            raise OutcomeUnknown(
                f"{self.endpoint} stopped reporting the move of service {name}",
                remedy="the same command, given again, brings it to its end",
            )

    async def history(self, name: str) -> list[EventView]:
        """What happened to a volume, oldest first."""
        path = f"/v1/volumes/{_segment(name)}/history"
        return await self.ask("GET", path, answer=list[EventView])

    async def trash(self) -> list[TrashView]:
        """Removed volumes."""
        return await self.ask("GET", "/v1/trash", answer=list[TrashView])

    async def restore_volume(self, name_or_id: str, *, actor: str | None = None) -> VolumeView:
        """Bring a volume back from the trash."""
        path = f"/v1/trash/{_segment(name_or_id)}/restore"
        return await self.ask("POST", path, answer=VolumeView, actor=actor)

    async def doctor(self) -> list[FindingView]:
        """Checks of everything; takes as long as the slowest node."""
        return await self.ask(
            "GET", "/v1/doctor", answer=list[FindingView], timeout_seconds=CHANGE_SECONDS
        )

    async def explain_volume(self, name: str) -> list[FindingView]:
        """Who holds a volume, what will happen next, and the one safe command."""
        path = f"/v1/volumes/{_segment(name)}/doctor"
        return await self.ask("GET", path, answer=list[FindingView])

    async def events(self, *, follow: bool) -> AsyncGenerator[EventView, None]:
        """What happened; with ``follow`` also what happens, without end."""
        path = "/v1/events?follow=true" if follow else "/v1/events"
        async with aclosing(self.stream("GET", path, item=EventView)) as stream:
            async for event in stream:
                yield event


class PeerClient(Connection):
    """Another node: the methods of ``PeerOperations``. Who asks is in our certificate."""

    async def peer_node(self) -> NodeView:
        """Live facts of that node."""
        return await self.ask("GET", "/v1/peer/node", answer=NodeView)

    async def peer_volume(self, name: str) -> VolumeView:
        """Live facts that only the holder knows."""
        return await self.ask("GET", f"/v1/peer/volumes/{_segment(name)}", answer=VolumeView)

    async def peer_handover(self, name: str, *, epoch: int) -> HandoverReply:
        """Ask the holder for the volume."""
        return await self.ask(
            "POST",
            f"/v1/peer/volumes/{_segment(name)}/handover",
            body={"epoch": epoch},
            answer=HandoverReply,
            timeout_seconds=HANDOVER_SECONDS,
        )

    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None:
        """Have the holder move the volume to the trash."""
        path = f"/v1/peer/volumes/{_segment(name)}/remove"
        await self.ask("POST", path, body={"volume_id": volume_id, "actor": actor}, answer=NoneType)

    async def peer_verify(self, name: str) -> CheckView:
        """Have that node read its copy to the last byte."""
        path = f"/v1/peer/volumes/{_segment(name)}/verify"
        return await self.ask("POST", path, answer=CheckView, timeout_seconds=VERIFY_SECONDS)

    async def peer_lost_copy(self, name: str, *, epoch: int) -> None:
        """Tell the holder that nothing of the volume is here."""
        path = f"/v1/peer/volumes/{_segment(name)}/lost-copy"
        await self.ask("POST", path, body={"epoch": epoch}, answer=NoneType)

    async def peer_promise(self, volumes: Mapping[str, int], *, seconds: float) -> list[str]:
        """Have that node promise not to take volumes over; the ids for which it did."""
        body = {"volumes": dict(volumes), "seconds": seconds}
        return await self.ask(
            "POST",
            "/v1/peer/promises",
            body=body,
            answer=list[str],
            timeout_seconds=PROMISE_ANSWER_SECONDS,
        )

    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str
    ) -> VolumeView:
        """Let that node become the holder of a volume whose holder is lost."""
        path = f"/v1/peer/volumes/{_segment(name)}/take"
        body = {"epoch": epoch, "generation": generation, "actor": actor}
        return await self.ask("POST", path, body=body, answer=VolumeView)

    async def peer_create(self, name: str, options: Mapping[str, str], *, actor: str) -> VolumeView:
        """Make a volume on that node."""
        body = {"name": name, "options": dict(options), "actor": actor}
        return await self.ask("POST", "/v1/peer/volumes", body=body, answer=VolumeView)

    async def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """Have the holder move the volume to ``node``; ends as :meth:`ApiClient.move_volume`."""
        body = {"node": node, "wait_seconds": wait_seconds, "actor": actor}
        path = f"/v1/peer/volumes/{_segment(name)}/move"
        async with aclosing(_move(self, path, body=body)) as stream:
            async for progress in stream:
                yield progress

    async def peer_hook(self, service: str, *, moment: Moment) -> AsyncGenerator[HookView, None]:
        """Have that node run a hook of its container; after pre-move, read on during the move."""
        path = f"/v1/peer/services/{_segment(service)}/hook"
        stream = self.stream("POST", path, item=HookView, body={"hook": str(moment)})
        async with aclosing(stream) as views:
            async for view in views:
                yield view


async def _move(
    connection: Connection, path: str, *, body: Mapping[str, object], actor: str | None = None
) -> AsyncGenerator[MoveProgress, None]:
    phase = ""
    stream = connection.stream("POST", path, item=MoveProgress, body=body, actor=actor)
    async with aclosing(stream) as lines:
        async for progress in lines:
            phase = progress.phase
            yield progress
    if phase not in _LAST_PHASES:
        raise OutcomeUnknown(
            f"{connection.endpoint} stopped reporting while the volume was {phase or 'to be moved'}",
            remedy="see where it is: pannier volume show",
        )
