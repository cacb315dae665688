"""A host's Docker engine, asked through its socket: what a token is must not be in a process list."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

SOCKET = "/var/run/docker.sock"


class EngineError(Exception):
    """The engine does not answer, or refuses."""


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


class Engine:
    """The engine's API. Answers are decoded JSON, None if there is none."""

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None, timeout=30)

    def post(self, path: str, body: object) -> Any:
        return self._ask("POST", path, body, timeout=90)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path, None, timeout=30)

    def _ask(self, method: str, path: str, body: object, timeout: float) -> Any:
        connection = _Connection("docker", timeout=timeout)
        try:
            encoded = None if body is None else json.dumps(body)
            connection.request(method, path, encoded, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the Docker engine does not answer: {error}") from error
        finally:
            connection.close()
        decoded = json.loads(data) if data.strip() else None
        if answer.status >= 400:
            said = decoded.get("message", "") if isinstance(decoded, dict) else ""
            raise EngineError(said or f"the Docker engine answers {answer.status} to {path}")
        return decoded
