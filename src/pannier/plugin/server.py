"""The Docker volume plugin: a unix socket that dockerd and podman call.

It reads a request, calls a use case, and answers in time. What it adds:

* Docker gives up on Mount after 120 s and on the rest after 60 s, and then shows a useless message.
  So each call has an earlier deadline, with a message of ours.
* Docker sends no Unmount for a Mount whose answer it did not get. A Mount is therefore abandoned
  when the engine hangs up, when the deadline passes, and when its answer cannot be delivered.
* podman hangs up early on Remove and Unmount: these go on until they are done or out of time.
* Docker repeats a call whose connection broke without its body, so that its volume is unknown. So each
  connection is for one call, and a daemon that is about to end accepts no more: later calls wait in the
  socket's queue, which systemd keeps, for the next daemon.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from pannier.contract.docker_volumes import DockerVolumes
from pannier.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PannierError,
    Unavailable,
    VolumeNotFound,
)
from pannier.plugin import wire
from pannier.plugin.endpoints import ENDPOINTS, MOUNT, Answer, Endpoint

_log = structlog.get_logger(__name__)

_DOOR_SECONDS = 1.0
"""How long calls that were accepted already may go on before a daemon begins to end: most take milliseconds."""
_DOOR_LOOK_SECONDS = 0.01
"""Between two looks at whether they have been answered."""
_SHUTDOWN_SECONDS = 5.0
_SHOWN_NAME = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds after which a call is answered with an error."""

    mount_seconds: float = 100.0  # Docker: 120
    other_seconds: float = 50.0  # Docker: 60

    def of(self, endpoint: str) -> float:
        """Seconds for ``endpoint``, such as ``VolumeDriver.Mount``."""
        return self.mount_seconds if endpoint == MOUNT else self.other_seconds


@dataclass(slots=True, kw_only=True)
class _Call:
    """One request on its way, and what its log line will say."""

    id: str
    endpoint: str
    started: float
    body: wire.Body | None = None
    status: int = 0
    outcome: str = "hung-up"
    error: str | None = None

    @property
    def volume(self) -> str | None:
        name = getattr(self.body, "name", None)
        return None if name is None else str(name)[:_SHOWN_NAME]

    @property
    def mount_id(self) -> str | None:
        return self.body.mount_id if isinstance(self.body, wire.MountBody) else None


class PluginServer:
    """Serves the volume plugin API on a listening unix socket.

    Args:
        volumes: the use cases. A coroutine of theirs may be cancelled at any await.
        ready: set once the daemon knows its volumes. Until then, only the introduction (Activate,
            Capabilities) is answered; other calls wait for it within their deadline, so that Docker
            may start before us and neither sees errors nor missing volumes.
    """

    def __init__(
        self, volumes: DockerVolumes, *, ready: asyncio.Event, deadlines: Deadlines | None = None
    ) -> None:
        self._volumes = volumes
        self._ready = ready
        self._deadlines = deadlines or Deadlines()
        self._background: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Future[None] | None = None
        self._server: web.Server | None = None
        self._runner: web.ServerRunner | None = None

    async def start(self, listener: socket.socket) -> None:
        """Begin to answer on ``listener``, which must be listening; it is closed by ``stop``."""
        self._stopping = asyncio.get_running_loop().create_future()
        self._server = web.Server(
            self._handle,
            handler_cancellation=True,  # how a hang-up is noticed
            access_log=None,
            logger=_http_logger(),
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close_door(self) -> None:
        """Accept no more calls: they wait for the next daemon. Calls under way go on, and most have ended then."""
        if self._runner is None or self._server is None:
            return
        for site in list(self._runner.sites):
            await site.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DOOR_SECONDS):
                while self._server.connections:
                    await asyncio.sleep(_DOOR_LOOK_SECONDS)

    async def stop(self) -> None:
        """Answer calls under way with an error that says that we stop, and close the socket."""
        if self._runner is None or self._stopping is None:
            return
        await self.close_door()
        if not self._stopping.done():
            self._stopping.set_result(None)
        await self._runner.cleanup()
        self._runner = None
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- one request -----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = _Call(
            id=secrets.token_hex(4),
            endpoint=request.path.lstrip("/")[:_SHOWN_NAME],
            started=time.monotonic(),
        )
        with structlog.contextvars.bound_contextvars(request=call.id):
            try:
                content = await self._content(request, call)
                response = web.Response(
                    status=call.status,
                    body=content,
                    headers={"Content-Type": wire.CONTENT_TYPE},
                )
                response.force_close()
                await self._deliver(request, response, call)
                return response
            finally:
                self._log_line(call)

    async def _content(self, request: web.BaseRequest, call: _Call) -> bytes:
        """The answer's body; its status and outcome go into ``call``."""
        try:
            content = wire.encode(await self._answer(request, call))
            call.status, call.outcome = 200, "ok"
            return content
        except PannierError as error:
            call.status = _status(error, understood=call.body is not None)
            call.outcome, call.error = error.code, str(error)
            return wire.encode_error(str(error))
        except Exception as error:
            _log.exception("plugin request failed", endpoint=call.endpoint, volume=call.volume)
            call.status, call.outcome, call.error = 500, "internal", repr(error)
            if call.endpoint == MOUNT and call.body is not None:
                self._abandon(call)  # Docker sees a failure, whatever had been done by then
            return wire.encode_error(
                f"internal error in pannierd at {call.endpoint} (request {call.id}):"
                " see journalctl -u pannierd"
            )

    async def _answer(self, request: web.BaseRequest, call: _Call) -> Answer:
        endpoint = ENDPOINTS.get(call.endpoint)
        if endpoint is None or request.method != "POST":
            raise NotFound(
                f"the volume plugin has no {request.method[:16]} {call.endpoint!r}",
                remedy="this socket is for Docker's volume plugin API, version 1",
            )
        raw = await self._read(request, call)
        body: wire.Body = wire.decode(raw, endpoint.body, endpoint=call.endpoint)
        call.body = body
        if endpoint.at_once is not None and (self._ready.is_set() or not endpoint.gated):
            return endpoint.at_once(self._volumes, body)
        return await self._in_time(endpoint, call)

    async def _read(self, request: web.BaseRequest, call: _Call) -> bytes:
        try:
            async with asyncio.timeout(self._left(call)):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise InvalidInput(
                f"the body of {call.endpoint} is larger than {wire.LARGEST_BODY_BYTES} bytes",
                remedy="this socket is for Docker's volume plugin API, version 1",
            ) from error
        except Exception as error:  # too slow, or whatever aiohttp raises for it
            raise InvalidInput(
                f"the body of {call.endpoint} could not be received: {str(error) or 'too slow'}",
                remedy="repeat the command",
            ) from error

    def _left(self, call: _Call) -> float:
        """Seconds until the call must have been answered."""
        return call.started + self._deadlines.of(call.endpoint) - time.monotonic()

    # --- work that takes time --------------------------------------------------------------------

    async def _in_time(self, endpoint: Endpoint, call: _Call) -> Answer:
        """Run the use case in a task of its own, so that no use case can hold up the answer."""
        assert self._stopping is not None
        task = asyncio.create_task(self._when_ready(endpoint, call.body))
        either: set[asyncio.Future[Any]] = {task, self._stopping}
        try:
            await asyncio.wait(
                either,
                timeout=self._left(call),
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:  # the engine hung up
            if call.endpoint == MOUNT:
                self._abandon(call, task)
            else:
                self._spawn(self._finish_alone(task, call))
            raise
        if task.done() and not task.cancelled():
            return task.result()
        if call.endpoint == MOUNT:
            self._abandon(call, task)
        else:
            task.cancel()
            self._spawn(self._finish_alone(task, call))
        raise self._too_late(endpoint, call)

    async def _when_ready(self, endpoint: Endpoint, body: wire.Body | None) -> Answer:
        await self._ready.wait()
        if endpoint.at_once is not None:
            return endpoint.at_once(self._volumes, body)
        assert endpoint.work is not None
        return await endpoint.work(self._volumes, body)

    def _too_late(self, endpoint: Endpoint, call: _Call) -> PannierError:
        subject = f"volume {call.volume}: " if call.volume else ""
        if self._stopping is not None and self._stopping.done():
            return Unavailable(
                f"{subject}pannierd on this node was stopped while {endpoint.doing}",
                remedy="repeat the command when it runs again (systemctl status pannierd)",
            )
        seconds = f"{self._deadlines.of(call.endpoint):g} s"
        if not self._ready.is_set():
            return DeadlineExceeded(
                f"{subject}pannierd on this node is still starting after {seconds}",
                remedy="see pannier doctor for what it waits for, and repeat the command;"
                " nothing was changed",
            )
        shown = f" (pannier volume show {call.volume})" if call.volume else " (pannier status)"
        return DeadlineExceeded(
            f"{subject}{endpoint.doing} was not finished after {seconds}",
            remedy=f"it may safely be repeated; see how things stand first{shown}",
        )

    async def _finish_alone(self, task: asyncio.Task[Answer], call: _Call) -> None:
        """Let work that nobody waits for any more go on, until the call's deadline at the latest."""
        await asyncio.wait({task}, timeout=max(self._left(call), 0.0))
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            _log.warning(
                "plugin request failed unseen",
                endpoint=call.endpoint,
                volume=call.volume,
                error=str(error),
            )

    def _abandon(self, call: _Call, task: asyncio.Task[Answer] | None = None) -> None:
        """Forget a Mount whose answer the engine will never get, once its work has ended."""
        if task is not None:
            task.cancel()
        self._spawn(self._abandon_after(call, task))

    async def _abandon_after(self, call: _Call, task: asyncio.Task[Answer] | None) -> None:
        if task is not None:
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # marks it as retrieved: Docker was told, or is gone
        assert isinstance(call.body, wire.MountBody)
        try:
            async with asyncio.timeout(self._deadlines.other_seconds):
                await self._volumes.abandon(call.body.name, call.body.mount_id)
        except Exception:
            # The id stays as a wrong hint, until a look at /proc corrects it.
            _log.exception("abandoned mount not forgotten", volume=call.volume, mount=call.mount_id)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the answer ------------------------------------------------------------------------------

    async def _deliver(self, request: web.BaseRequest, response: web.Response, call: _Call) -> None:
        """Write the answer here rather than in aiohttp, to learn whether the engine got it."""
        delivered = False
        try:
            await response.prepare(request)
            await response.write_eof()
            # On a unix socket, a write to a peer that is gone fails at once and closes the
            # transport. A peer that goes without reading its buffer cannot be noticed.
            transport = request.transport
            delivered = transport is not None and not transport.is_closing()
        except ConnectionError:
            pass
        finally:
            if not delivered:
                if call.endpoint == MOUNT and call.outcome == "ok":
                    self._abandon(call)
                call.outcome = "undelivered"

    @staticmethod
    def _log_line(call: _Call) -> None:
        facts: dict[str, Any] = {
            "request": call.id,
            "endpoint": call.endpoint,
            "volume": call.volume,
            "mount": call.mount_id,
            "seconds": round(time.monotonic() - call.started, 4),
            "outcome": call.outcome,
            "status": call.status or None,
            "error": call.error,
        }
        shown = {name: value for name, value in facts.items() if value is not None}
        if call.outcome == "ok":
            _log.info("plugin request", **shown)
        else:
            _log.warning("plugin request", **shown)


def _status(error: PannierError, *, understood: bool) -> int:
    """The HTTP status for an error: 400 or 404 for a request that is none.

    A use case's error is always 500, since Docker makes no difference; only a volume that does not
    exist must be 404.
    """
    if understood:
        return 404 if isinstance(error, VolumeNotFound) else 500
    return {InvalidInput: 400, NotFound: 404}.get(type(error), 500)


class _OneLine(logging.Filter):
    """aiohttp logs garbage on the socket with a traceback; one line says as much."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = "not a request of the volume plugin API: %s"
            record.args = (" ".join(str(record.exc_info[1]).split())[:200],)
            record.exc_info = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def _http_logger() -> logging.Logger:
    logger = logging.getLogger("pannier.plugin.http")
    if not any(isinstance(known, _OneLine) for known in logger.filters):
        logger.addFilter(_OneLine())
    return logger
