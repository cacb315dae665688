"""Whatever people and strangers send: a clear error that names the thing, and nothing has changed."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_world import World
from demo import looks

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

IMPOSTOR = (Path(__file__).parent / "impostor.py").read_text()
GARBAGE = {
    "no HTTP": b"\000\377garbage\r\n\r\n",
    "half a request": b"POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\n",
    "a length that lies": (
        b"POST /VolumeDriver.Create HTTP/1.1\r\nHost:\r\nContent-Length: -5\r\n\r\n{}"
    ),
    "a mebibyte of nothing": bytes(2**20),
}


# -- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("siez=10G", ["unknown option 'siez'", "did you mean 'size'?"]),
        ("colour=blue", ["unknown option 'colour'", "the options are size"]),
        ("size=10Q", ["size=10Q is not a size", "such as 10G"]),
        ("size=-1", ["size=-1 is not a size", "such as 10G"]),
        ("size=NaN", ["size=NaN is not a size"]),
        ("size=0", ["size=0 is out of range", "1M to 64P"]),
        ("size=99999999P", ["out of range", "1M to 64P"]),
        ("size=", ["is not a size"]),
        ("copies=0", ["copies=0 is not allowed", "whole number from 1"]),
        ("copies=9", ["copies=9 needs as many nodes, and the cluster has 3"]),
        ("durability=interval", ["needs a second copy", "copies=2"]),
        ("interval=5s", ["more than one copy", "copies=2"]),
        ("durability=fsink", ["durability=fsink is not allowed", "did you mean 'fsync'?"]),
        ("durability=fsync", ["needs a second copy", "copies=2"]),
        ("min_copies=2", ["could never be met"]),
        ("driver=zfs", ["driver=zfs is not allowed", "btrfs or directory"]),
        ("driver=directory", ["node1 has no directory driver"]),
        ("mode=rwx", ["mode=rwx is not a mode", "octal"]),
        ("uid=root", ["uid=root is not allowed"]),
        ("nodes=node9", ["node9, which is no node of this cluster", "node1, node2, node3"]),
        ("nodes=$(reboot)", ["cannot name a node"]),
        ("labels=x", ["labels=x cannot be read"]),
    ],
)
def test_f81_an_option_that_cannot_be(calm: World, option: str, says: list[str]) -> None:
    name = calm.name()
    key, _, text = option.partition("=")
    calm.check_not_created(name, {key: text}, says=says)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("siez=10G", ["unknown option 'siez'", "did you mean 'size'?"]),
        ("size=", ["is not a size"]),
        ("copies=9", ["copies=9 needs as many nodes, and the cluster has 3"]),
    ],
)
def test_f81_whoever_types_such_an_option_is_told(
    calm: World, option: str, says: list[str]
) -> None:
    """By both commands: in their words the daemon's are whole."""
    name = calm.name()
    calm.refused("node1", "pannier", "volume", "create", name, "-o", option, says=says, status=2)
    create = ["docker", "volume", "create", "-d", "pannier", "-o", option, name]
    calm.refused("node1", *create, says=says)
    assert name not in calm.volumes_known()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a/b", ["'a/b' cannot name a volume", "letters, digits"]),
        ("..", ["cannot name a volume"]),
        ("../../etc", ["cannot name a volume"]),
        (".hidden", ["cannot name a volume"]),
        ("x", ["two or more letters"]),
        ("größe", ["cannot name a volume"]),
        ("two words", ["cannot name a volume"]),
        ("n" * 300, ["has 300 characters", "at most 128"]),
    ],
)
def test_f81_a_name_that_cannot_be(calm: World, name: str, says: list[str]) -> None:
    before = calm.json("node1", "volume", "ls")
    calm.check_not_created(name, {}, says=says)
    assert calm.json("node1", "volume", "ls") == before


def test_f81_whoever_types_such_a_name_is_told(calm: World) -> None:
    says = ["'two words' cannot name a volume"]
    calm.refused("node1", "pannier", "volume", "create", "two words", says=says, status=2)


@pytest.mark.parametrize(
    "body",
    [
        '{"Name": "nul\\u0000name", "Opts": {}}',
        '{"Name": "", "Opts": {}}',
        '{"Name": 7}',
        '{"Opts": {}}',
        "[]",
        "{",
        "",
        '{"Name": "half\\ud800", "Opts": {}}',
        "[" * 10_000,
    ],
)
def test_f80_a_body_that_cannot_be(calm: World, body: str) -> None:
    before = calm.json("node1", "volume", "ls")
    for verb in ("Create", "Mount", "Remove", "Get"):
        assert calm.plugin("node1", verb, body)["Err"]
    assert calm.json("node1", "volume", "ls") == before


@pytest.mark.parametrize("kind", GARBAGE)
def test_f80_garbage_on_the_plugin_socket(calm: World, kind: str) -> None:
    """Docker goes on as if nothing had been there."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(3)
        caller.connect(str(looks.plugin(calm.lab, "node1").socket))
        with suppress(OSError):
            caller.sendall(GARBAGE[kind])
            caller.recv(99)
    name = calm.create("node1")
    assert name in calm.run("node1", "docker", "volume", "ls")
    assert calm.container("node1", name, "echo", "fine") == "fine\n"


def test_f80_the_same_name_again(calm: World) -> None:
    """Without options or with equal ones it is the same volume; with others an error, nothing lost."""
    name = calm.create("node1", size="10G")
    calm.container("node1", name, "sh", "-c", "echo kept >/data/note")
    for options in ([], ["-o", "size=10G"], ["-o", "size=10240M"]):
        calm.run("node2", "pannier", "volume", "create", name, *options)
    calm.refused(
        "node2", "pannier", "volume", "create", name, "-o", "size=20G",
        says=[f"volume {name} exists with other options: size is 10G, not 20G"], status=4,
    )  # fmt: skip
    assert calm.container("node3", name, "cat", "/data/note") == "kept\n"


def test_f82_one_name_created_on_three_nodes_at_once(calm: World) -> None:
    """One wins; the others are told with what options."""
    name = calm.name()
    sizes = {"node1": "1G", "node2": "2G", "node3": "3G"}
    outcomes = dict(
        zip(
            sizes,
            calm.on_all(
                lambda node: calm.attempt(
                    node, "pannier", "volume", "create", name, "-o", f"size={sizes[node]}"
                ),
            ),
            strict=True,
        )
    )
    won = [node for node, outcome in outcomes.items() if outcome.status == 0]
    assert len(won) == 1, outcomes
    for node in calm.others(*won):
        assert outcomes[node].status == 4, outcomes[node].text
        assert f"size is {sizes[won[0]]}, not {sizes[node]}" in outcomes[node].text
    assert calm.holder(name) == won[0]
    shown = calm.json("node1", "volume", "show", name)
    assert shown["options"]["size"] == sizes[won[0]]
    assert shown["copies_on"] == won
    assert calm.run("node1", "pannier", "doctor").count(name) == (won == ["node1"])


def test_f82_one_name_used_on_three_nodes_at_once(calm: World) -> None:
    """`docker run -v` on all nodes with a new name: one volume, and each sees the others' files."""
    name = calm.name()

    def leave_a_mark(node: str) -> None:
        calm.container(node, name, "touch", f"/data/{node}")

    calm.on_all(leave_a_mark)
    assert calm.container("node1", name, "ls", "/data").split() == calm.nodes


@pytest.mark.parametrize(
    ("command", "says", "status"),
    [
        (["volume", "show", "nothing"], ["there is no volume nothing"], 3),
        (["volume", "rm", "nothing"], ["there is no volume nothing"], 3),
        (["volume", "move", "nothing", "node2"], ["there is no volume nothing"], 3),
        (["volume", "restore", "nothing"], ["nothing called nothing in the trash"], 3),
        (["volume", "history", "nothing"], ["there is no volume nothing"], 3),
        (["node", "show", "node9"], ["there is no node node9", "node1, node2, node3"], 3),
        (["node", "drain", "node9"], ["there is no node node9"], 3),
        (["node", "rm", "node9"], ["there is no node node9"], 3),
        (["token", "create", "--uses", "0"], ["uses"], 2),
        (["token", "create", "--ttl", "soon"], ["soon"], 2),
        (["volume", "mvoe"], ["mvoe"], 2),
        (["volume", "create", "v1", "-o", "size"], ["size"], 2),
    ],
)
def test_f81_a_command_about_nothing(
    calm: World, command: list[str], says: list[str], status: int
) -> None:
    calm.refused("node1", "pannier", *command, says=says, status=status)


def test_a_move_to_no_node(calm: World) -> None:
    name = calm.create("node1")
    says = ["there is no node node9", "node1, node2, node3"]
    calm.refused("node1", "pannier", "volume", "move", name, "node9", says=says, status=3)
    assert calm.holder(name) == "node1"


# -- strangers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["api", "peer", "transport"])
@pytest.mark.parametrize("kind", ["foreign", "forged"])
def test_f83_a_certificate_that_is_not_the_nodes(calm: World, kind: str, port: str) -> None:
    """Of another cluster, or of our own CA but not the one that the node's record names."""
    name = calm.create("node1")
    shown = calm.json("node1", "volume", "show", name)
    python = ["/opt/pannier/venv/bin/python3", "-", kind, port, "node1", calm.lab.nodes[0].address]
    said = calm.run("node1", *python, name, shown["id"], str(shown["epoch"]), input=IMPOSTOR)
    assert said.startswith("denied: "), said
    assert calm.json("node1", "volume", "show", name)["epoch"] == shown["epoch"]
    assert calm.holder(name) == "node1"


def test_f83_no_certificate_at_all(calm: World) -> None:
    """Only what proves by itself who asks gets further, and the transport says nothing."""
    address = calm.lab.nodes[0].address
    curl = ["curl", "-sk", "--max-time", "10"]
    for path in ("volumes", "status", "nodes", "peer/node", "events"):
        said = calm.run("node1", *curl, f"https://{address}:7400/v1/{path}")
        assert json.loads(said)["code"] == "denied", said
    for path, body in (
        ("certificates/renewal", {"certificate": "PEM", "csr": "PEM"}),
        (
            "join",
            {
                "token": f"pannier1-{'a' * 8}-{'b' * 32}-{'0' * 64}",
                "name": "node2",
                "address": "10.0.0.9",
                "csr": "PEM",
                "version": "1",
            },
        ),
    ):
        said = calm.run("node1", *curl, "-d", json.dumps(body), f"https://{address}:7400/v1/{path}")
        assert json.loads(said)["code"] == "denied", said
        assert "node" not in json.loads(said)["message"], said
    stranger = calm.attempt("node1", *curl, f"https://{address}:7401/")
    assert stranger.status != 0
    assert stranger.out == ""
