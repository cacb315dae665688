"""The controller's script for moves, against pages that answer as Jenkins does."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SCRIPT = Path(__file__).parents[2] / "stacks/jenkins/controller/quiet.sh"
PASSWORD = 'say "friend" \\ and enter'
LOGIN = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()


@dataclass
class Jenkins:
    """What it is told and asked.

    Attributes:
        looks: how often it is still asked for builds until none runs.
        broken: it does not answer that question.
        wrong_proof: requests that changed something and came without proof.
    """

    address: str = ""
    quiet: list[bool] = field(default_factory=list)
    looks: int = 2
    asked: str = ""
    broken: bool = False
    wrong_proof: int = 0


class Server(ThreadingHTTPServer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.jenkins = Jenkins()


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        jenkins = cast("Server", self.server).jenkins
        if self.headers["Authorization"] != LOGIN:
            return self._answer(401, "who are you?")
        parts = urlsplit(self.path)
        if parts.path == "/crumbIssuer/api/xml":
            return self._answer(200, "Jenkins-Crumb:proof", cookie="JSESSIONID=session; Path=/")
        assert parts.path == "/computer/api/xml"
        jenkins.asked = parse_qs(parts.query)["xpath"][0]
        if jenkins.broken:
            return self._answer(503, "")
        jenkins.looks -= 1
        builds = "<url>http://j/job/slow/7/</url>" if jenkins.looks >= 0 else ""
        return self._answer(200, f"<running>{builds}</running>")

    def do_POST(self) -> None:
        jenkins = cast("Server", self.server).jenkins
        proof = (self.headers["Jenkins-Crumb"], self.headers["Cookie"])
        if proof != ("proof", "JSESSIONID=session") or self.headers["Authorization"] != LOGIN:
            jenkins.wrong_proof += 1
            return self._answer(403, "")
        jenkins.quiet.append({"/quietDown": True, "/cancelQuietDown": False}[self.path])
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
def jenkins() -> Iterator[Jenkins]:
    server = Server(("127.0.0.1", 0), Pages)
    server.jenkins.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.jenkins
    server.shutdown()
    thread.join()
    server.server_close()


def run(jenkins: Jenkins, folder: Path, word: str) -> subprocess.CompletedProcess[str]:
    (folder / "password").write_text(PASSWORD + "\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(folder),
        "CONTROLLER": jenkins.address,
        "ADMIN_PASSWORD_FILE": str(folder / "password"),
    }
    command = ["sh", str(SCRIPT), word]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_it_makes_jenkins_quiet_and_waits_until_the_builds_have_ended(
    jenkins: Jenkins, tmp_path: Path
) -> None:
    done = run(jenkins, tmp_path, "begin")
    assert done.returncode == 0, done.stderr
    assert (jenkins.quiet, jenkins.looks, jenkins.wrong_proof) == ([True], -1, 0)
    assert done.stdout.split() == ["http://j/job/slow/7/"] * 2
    assert 'not(contains(@_class,"Placeholder"))' in unquote(jenkins.asked)
    assert [path.name for path in tmp_path.iterdir()] == ["password"]


def test_it_ends_the_quiet(jenkins: Jenkins, tmp_path: Path) -> None:
    assert run(jenkins, tmp_path, "end").returncode == 0
    assert (jenkins.quiet, jenkins.wrong_proof) == ([False], 0)


def test_a_controller_that_does_not_answer_is_no_quiet_one(
    jenkins: Jenkins, tmp_path: Path
) -> None:
    jenkins.broken = True
    done = run(jenkins, tmp_path, "begin")
    assert done.returncode != 0
    assert "503" in done.stderr
    jenkins.address = "http://127.0.0.1:1"
    assert run(jenkins, tmp_path, "end").returncode != 0
