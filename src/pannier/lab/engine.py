"""A machine's Docker engine, asked through its socket on the host: no process per question.

The APIs of the machine's pannierd are JSON over HTTP on sockets too, and are asked in the same way.
"""

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
    """A Docker engine, or another server that answers as one does.

    Attributes:
        socket: its unix socket, as the host sees it.
        what: what to call it in an error.
    """

    socket: Path
    what: str = "Docker engine"

    def answers(self) -> bool:
        """Whether the engine is there."""
        try:
            return bool(self.exchange("GET", "/_ping", timeout=2)[0] == 200)
        except OSError:
            return False

    def get(self, path: str, *, timeout: float = 30) -> Any:
        """The decoded JSON answer to a GET."""
        return self._request("GET", path, None, timeout)

    def post(self, path: str, body: object, *, timeout: float = 60) -> Any:
        """The decoded JSON answer to a POST, None if there is none."""
        return self._request("POST", path, body, timeout)

    def delete(self, path: str, *, timeout: float = 60) -> Any:
        """The decoded JSON answer to a DELETE, None if there is none."""
        return self._request("DELETE", path, None, timeout)

    def read(self, path: str, *, timeout: float = 30) -> bytes:
        """The answer to a GET, not decoded."""
        status, data = self._answer("GET", path, None, timeout)
        if status >= 400:
            raise self._refusal(status, data)
        return data

    def _request(self, method: str, path: str, body: object, timeout: float) -> Any:
        status, data = self._answer(method, path, body, timeout)
        if status >= 400:
            raise self._refusal(status, data)
        return json.loads(data) if data.strip() else None

    def _answer(self, method: str, path: str, body: object, timeout: float) -> tuple[int, bytes]:
        payload = None if body is None else json.dumps(body).encode()
        try:
            return self.exchange(method, path, payload, timeout=timeout)
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"{self.what} at {self.socket}: {error}") from error

    def _refusal(self, status: int, data: bytes) -> LabError:
        said, remedy = data.decode(errors="replace"), ""
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            said, remedy = str(answer.get("message", "")), str(answer.get("remedy", ""))
        return LabError(f"{self.what} at {self.socket} answers {status}: {said}", remedy=remedy)

    def exchange(
        self, method: str, path: str, payload: bytes | None = None, *, timeout: float = 30
    ) -> tuple[int, bytes]:
        """The status and the content of an answer, whatever they are.

        Raises:
            OSError: nobody answers.
        """
        connection = _Connection(self.socket, timeout)
        try:
            headers = {"Content-Type": "application/json"} if payload else {}
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
