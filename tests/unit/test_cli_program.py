"""The program as such: help, mistakes in typing, no daemon, interruption, what is loaded when."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pannier.cli import reference
from pannier.cli.command import Command, Lazy
from pannier.cli.main import cli
from pannier.cli.session import parse_host
from pannier.core.errors import Denied, InvalidInput

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **env: str) -> Result:
    environment = {"PANNIER_SOCKET": "/nonexistent/api.sock", **env}
    return CliRunner(env=environment).invoke(cli, arguments, prog_name="pannier")


def leaves(context: click.Context) -> Iterator[tuple[str, click.Command]]:
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command is not None
        if isinstance(command, Lazy) and command.in_reference:
            command = command.load()
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from leaves(inner)
        elif not isinstance(command, Lazy):
            yield inner.command_path.removeprefix("cli "), command


LEAVES = dict(leaves(click.Context(cli, info_name="cli")))


@pytest.mark.parametrize("name", ["deploy", "stack", "lab"])
def test_a_command_that_is_loaded_late_says_in_the_list_what_it_says_itself(name: str) -> None:
    command = cli.commands[name]
    assert isinstance(command, Lazy)
    assert command.get_short_help_str() == command.load().get_short_help_str()


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_has_help_with_an_example_and_takes_format(path: str) -> None:
    command = LEAVES[path]
    assert isinstance(command, Command)
    assert command.help
    result = run(*path.split(), "--help")
    assert result.exit_code == 0
    assert all(example in result.output for example in command.examples)
    assert any(path in example for example in command.examples)
    assert "--format" in result.output


@pytest.mark.parametrize("path", LEAVES)
def test_o_is_the_form_of_the_output_except_where_a_volume_gets_options(path: str) -> None:
    options = {
        name: parameter.name
        for parameter in LEAVES[path].params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }
    of_volumes = (
        "backup restore",
        "backup restore-all",
        "service clone",
        "volume clone",
        "volume create",
        "volume import",
        "volume set",
    )
    assert options["-o"] == ("options" if path in of_volumes else "format")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["volume", "mov"], "no such command 'mov'"),
        (["volume", "ls", "--fromat", "json"], "no such option"),
        (["volume", "show"], "missing argument 'NAME'"),
        (["-o", "yaml", "volume", "ls"], "'yaml' is not one of"),
        (["--nonsense"], "no such option"),
    ],
)
def test_mistakes_in_typing(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--help'" in result.stderr.splitlines()[-1]
    assert "Usage" not in result.output


def test_mistakes_in_typing_as_json() -> None:
    result = run("-o", "json", "volume", "show")
    assert '"code":"invalid-input"' in result.stderr


def test_group_alone_shows_its_help() -> None:
    assert "create" in run("volume").output


def test_no_daemon() -> None:
    result = run("volume", "ls")
    assert result.exit_code == 6
    assert result.stderr == (
        "Error: pannierd does not answer at /nonexistent/api.sock: No such file or directory\n"
        "→ see whether it runs: systemctl status pannierd\n"
    )


def test_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("pannier.cli.session.Session.ask", broken)
    result = run("volume", "ls")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: this should not happen: ZeroDivisionError")
    assert "PANNIER_DEBUG=1" in result.stderr
    assert "Traceback" not in result.output
    assert "Traceback" in run("volume", "ls", PANNIER_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("https://10.0.0.1:7400", ("10.0.0.1", 7400)),
        ("https://node1", ("node1", 7400)),
        ("https://[fe80::1]:1/", ("fe80::1", 1)),
    ],
)
def test_host(host: str, expected: tuple[str, int]) -> None:
    assert parse_host(host) == expected


@pytest.mark.parametrize(
    "host", ["node1", "http://node1", "https://", "https://a:b", "https://a/v1", "https://[::1"]
)
def test_host_of_another_form(host: str) -> None:
    with pytest.raises(InvalidInput, match="is not an address"):
        parse_host(host)


def test_host_needs_certificates() -> None:
    result = run("--host", "https://node1", "status")
    assert (result.exit_code, "--certificates DIRECTORY" in result.stderr) == (2, True)


# Setup, which runs in the program itself


class FakeSetup:
    """Notes what it is asked to do, and does nothing to the machine."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda **arguments: self.calls.append((name, arguments))


@pytest.fixture(autouse=True)
def setup(monkeypatch: pytest.MonkeyPatch) -> FakeSetup:
    """In every test of this module: the real one formats disks and starts services.

    It replaces the one function through which the commands reach it, and fails where that has gone.
    """
    fake = FakeSetup()
    monkeypatch.setattr("pannier.cli.setup._setup", lambda: fake, raising=True)
    return fake


MACHINE = {
    "name": None,
    "pool": None,
    "pool_size": None,
    "driver": "btrfs",
    "force_format": None,
    "runtime": True,
    "runtime_before": None,
}


def test_init(setup: FakeSetup) -> None:
    assert run("init").exit_code == 0
    options = [
        "--pool",
        "/nowhere/disk",
        "--force-format",
        "/nowhere/disk",
        "--store",
        "etcd://a:2379",
    ]
    assert run("init", *options, "--address", "10.0.0.1").exit_code == 0
    given = {"pool": "/nowhere/disk", "force_format": "/nowhere/disk", "address": "10.0.0.1"}
    assert setup.calls == [
        ("init", {**MACHINE, "store": "sqlite", "address": None}),
        ("init", {**MACHINE, "store": "etcd://a:2379", **given}),
    ]


@pytest.mark.parametrize("pool", [[], ["--pool", "/nowhere/else"]])
def test_format_only_what_is_named_twice(setup: FakeSetup, pool: list[str]) -> None:
    result = run("init", *pool, "--force-format", "/nowhere/disk")
    assert result.exit_code == 2
    assert "is not the pool" in result.stderr
    assert setup.calls == []


def test_join(setup: FakeSetup) -> None:
    assert run("join", "10.0.0.1", "--token", "t", "--address", "10.0.0.2").exit_code == 0
    assert run("join", "10.0.0.1", PANNIER_TOKEN="t").exit_code == 0
    assert run("join", "10.0.0.1").exit_code == 2
    expected = {**MACHINE, "address": "10.0.0.1", "token": "t"}
    assert setup.calls == [
        ("join", {**expected, "own_address": "10.0.0.2"}),
        ("join", {**expected, "own_address": None}),
    ]


def test_ca(setup: FakeSetup) -> None:
    assert run("ca", "create", "--directory", "/nowhere/ca").exit_code == 0
    issue = [
        "ca",
        "issue",
        "etcd1",
        "--address",
        "10.0.0.1",
        "--address",
        "etcd1",
        "--out",
        "/nowhere/tls",
    ]
    assert run(*issue).exit_code == 0
    assert setup.calls == [
        ("ca_create", {"directory": "/nowhere/ca"}),
        (
            "ca_issue_etcd",
            {
                "name": "etcd1",
                "addresses": ("10.0.0.1", "etcd1"),
                "out_directory": "/nowhere/tls",
                "ca_directory": "/etc/pannier/ca",
            },
        ),
    ]


def test_setup_that_refuses(setup: FakeSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise Denied("only root may do this", remedy="use sudo")

    monkeypatch.setattr(setup, "init", refuse)
    result = run("init")
    assert (result.exit_code, result.stderr) == (
        5,
        "Error: only root may do this\n→ use sudo\n",
    )


# The lab, which must not stand in the way


def test_help_does_not_load_the_lab_nor_the_http_client() -> None:
    code = (
        "import sys; from pannier.cli.main import cli\n"
        "try: cli.main(['--help'], prog_name='pannier')\n"
        "except SystemExit: pass\n"
        "heavy = {'aiohttp', 'msgspec', 'rich', 'cryptography', 'structlog', 'pannier.lab.cli'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"lab +Real machines", shown.stdout)
    assert shown.stdout.endswith("loaded: []\n")


def test_broken_lab_breaks_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pannier.lab.cli", None)
    assert "lab" in run("--help").output
    result = run("lab", "up")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 'pannier lab' cannot be loaded:")


def test_lab_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.group()
    def lab() -> None:
        pass

    @lab.command()
    @click.option("--count", type=int)
    def up(count: int) -> None:
        click.echo(f"up {count}")

    module = ModuleType("pannier.lab.cli")
    module.lab = lab  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pannier.lab.cli", module)
    assert run("lab", "up", "--count", "3").output == "up 3\n"
    assert "--count" in run("lab", "up", "--help").output


# The process


def _start(*arguments: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pannier.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PANNIER_SOCKET": str(path)},
    )


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        listener.settimeout(30)
        yield listener


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
EVENT = b'{"at":"now","kind":"node.up","subject":"node1","node":"node1"}\n'


def test_interruption_is_quiet(listener: socket.socket) -> None:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a shell's background job ignores the signal, and so would the program
        process = _start("events", "-f", path=Path(listener.getsockname()))
    finally:
        signal.signal(signal.SIGINT, inherited)
    connection, _ = listener.accept()
    connection.sendall(HEAD + EVENT)
    assert process.stdout is not None
    assert "node.up" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    connection.close()
    assert (process.returncode, errors) == (130, "")


def test_reader_that_goes_away_is_no_error(listener: socket.socket) -> None:
    process = _start("events", "-f", "-o", "json", path=Path(listener.getsockname()))
    connection, _ = listener.accept()
    connection.sendall(HEAD + EVENT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    connection.sendall(EVENT)
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    connection.close()


# The reference


def test_reference_is_current() -> None:
    assert reference.stale(ROOT / "docs" / "reference") == [], "python -m pannier.cli.reference"
