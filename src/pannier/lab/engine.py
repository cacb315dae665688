"""A machine's Docker engine, asked through its socket on the host: no process per question."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pannier.lab.errors import LabError


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class MachineEngine:
    """A Docker engine.

    Attributes:
        socket: its unix socket on the host.
    """

    socket: Path

    def answers(self) -> bool:
        """Whether the engine is there."""
        try:
            return bool(self._ask("GET", "/_ping", None, timeout=2)[0] == 200)
        except OSError:
            return False

    def get(self, path: str, *, timeout: float = 30) -> Any:
        """The decoded JSON answer to a GET."""
        return self._request("GET", path, None, timeout)

    def post(self, path: str, body: object, *, timeout: float = 60) -> Any:
        """The decoded JSON answer to a POST, None if there is none."""
        return self._request("POST", path, body, timeout)

    def _request(self, method: str, path: str, body: object, timeout: float) -> Any:
        try:
            status, data = self._ask(method, path, body, timeout=timeout)
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"Docker engine at {self.socket}: {error}") from error
        answer = json.loads(data) if data.strip() else None
        if status >= 400:
            said = answer.get("message", "") if isinstance(answer, dict) else data.decode()
            raise LabError(f"Docker engine at {self.socket} answers {status}: {said}")
        return answer

    def _ask(self, method: str, path: str, body: object, *, timeout: float) -> tuple[int, bytes]:
        connection = _Connection(self.socket, timeout)
        try:
            payload = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} if payload else {}
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
