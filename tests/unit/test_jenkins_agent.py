"""The agent's entry script against a controller that asks for what today's Jenkins asks for.

The controller here knows the few requests that an agent makes; Hudson, in the system tests, is real.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qs

import pytest

SCRIPT = Path(__file__).parents[2] / "stacks/jenkins/agent/agent.sh"
PASSWORD = 'say "friend" \\ and enter'
LOGIN = "Basic " + base64.b64encode(f"agent:{PASSWORD}".encode()).decode()
SECRET = "0123456789abcdef" * 4
JNLP = (
    '<jnlp><application-desc main-class="x"><argument>{}</argument><argument>node1</argument>'
    "</application-desc></jnlp>"
)


@dataclass
class Controller:
    """What it knows and is asked.

    Attributes:
        agents: what each was registered with.
        online: the agents that are connected.
        forgeries: requests that changed something and came without proof.
    """

    address: str = ""
    agents: dict[str, dict[str, Any]] = field(default_factory=dict)
    online: set[str] = field(default_factory=set)
    forgeries: int = 0


class Server(ThreadingHTTPServer):
    """Serves what its controller knows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.controller = Controller()


class Pages(BaseHTTPRequestHandler):
    """The pages that an agent asks for."""

    def do_GET(self) -> None:
        controller = cast("Server", self.server).controller
        path = self.path.partition("?")[0]
        if path == "/login":
            return self._answer(200, "")
        if self.headers["Authorization"] != LOGIN:
            return self._answer(401, "who are you?")
        _, _, name = path.partition("/computer/")
        name, _, page = name.partition("/")
        if path == "/crumbIssuer/api/xml":
            return self._answer(200, "Jenkins-Crumb:proof", cookie="JSESSIONID=session; Path=/")
        if path == "/jnlpJars/agent.jar":
            return self._answer(200, "a program")
        if name not in controller.agents:
            return self._answer(404, "")
        if page == "jenkins-agent.jnlp":
            return self._answer(200, JNLP.format(SECRET))
        offline = name not in controller.online
        return self._answer(200, json.dumps({"offline": offline}, separators=(",", ":")))

    def do_POST(self) -> None:
        controller = cast("Server", self.server).controller
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        proof = (self.headers["Jenkins-Crumb"], self.headers["Cookie"])
        if proof != ("proof", "JSESSIONID=session") or self.headers["Authorization"] != LOGIN:
            controller.forgeries += 1
            return self._answer(403, "")
        form = {key: values[0] for key, values in parse_qs(body).items()}
        if self.path == "/computer/doCreateItem":
            controller.agents[form["name"]] = json.loads(form["json"])
        else:
            controller.online.remove(self.path.split("/")[2])
        return self._answer(302, "")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, text: str, *, cookie: str = "") -> None:
        self.send_response(status)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def controller() -> Iterator[Controller]:
    server = Server(("127.0.0.1", 0), Pages)
    controller = server.controller
    controller.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield controller
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A Java that says how it was started, and an engine that answers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {"java": 'printf "%s\\n" "$@"', "docker": "true"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def run(controller: Controller, programs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder = programs.parent
    (folder / "password").write_text(PASSWORD + "\n")
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "CONTROLLER": controller.address,
        "AGENT_NAME": "node1",
        "AGENT_EXECUTORS": "3",
        "AGENT_USER": "agent",
        "AGENT_PASSWORD_FILE": str(folder / "password"),
        "AGENT_FOLDER": str(folder / "own"),
    }
    command = ["sh", str(SCRIPT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_it_registers_itself_and_starts_with_its_secret(
    controller: Controller, programs: Path
) -> None:
    done = run(controller, programs)
    assert done.returncode == 0, done.stderr
    assert controller.forgeries == 0
    registered = controller.agents["node1"]
    assert registered["numExecutors"] == "3"
    assert registered["launcher"]["stapler-class"] == "hudson.slaves.JNLPLauncher"
    assert (
        registered["retentionStrategy"]["stapler-class"] == "hudson.slaves.RetentionStrategy$Always"
    )
    words = done.stdout.split("\n")
    own = programs.parent / "own"
    assert words[words.index("-secret") + 1] == f"@{own}/secret"
    assert (own / "secret").read_text() == SECRET + "\n"
    assert words[words.index("-url") + 1] == f"{controller.address}/"
    assert "-webSocket" in words
    assert (own / "agent.jar").read_text() == "a program"


def test_it_registers_itself_once(controller: Controller, programs: Path) -> None:
    controller.agents["node1"] = {"changed": "by a person"}
    assert run(controller, programs).returncode == 0
    assert controller.agents["node1"] == {"changed": "by a person"}


def test_a_former_self_whose_node_lost_power_is_disconnected(
    controller: Controller, programs: Path
) -> None:
    run(controller, programs)
    controller.online.add("node1")
    assert run(controller, programs).returncode == 0
    assert (controller.online, controller.forgeries) == (set(), 0)


def test_it_is_healthy_while_its_controller_sees_it_or_is_away(
    controller: Controller, programs: Path
) -> None:
    run(controller, programs)
    controller.online.add("node1")
    assert run(controller, programs, "healthy").returncode == 0
    controller.online.clear()
    assert run(controller, programs, "healthy").returncode != 0
    controller.agents.clear()
    assert run(controller, programs, "healthy").returncode != 0, "a home that is older than it"
    controller.address = "http://127.0.0.1:1"
    assert run(controller, programs, "healthy").returncode == 0
    (programs / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert run(controller, programs, "healthy").returncode != 0
