"""The commands, against a real server with a cluster that is made up."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from click.testing import CliRunner, Result

from pannier.api.caller import identify_local
from pannier.api.listen import serve_unix
from pannier.api.server import build_application
from pannier.cli.main import cli
from pannier.contract.views import (
    CopyView,
    EventView,
    FindingView,
    JournalView,
    SpreadView,
    SyncView,
    TransferView,
)
from pannier.contract.words import EventKind, Level, MovePhase, SyncWay
from pannier.core.errors import (
    BackupFailed,
    NeedsCopy,
    OutcomeUnknown,
    PoolFull,
    StorageError,
    StoreUnavailable,
)
from pannier.testing.api import FakeCluster, NotedCall


@dataclass
class Shell:
    """Types commands to a daemon that runs in a thread of its own, as the program has its own loop."""

    cluster: FakeCluster
    socket: Path
    loop: asyncio.AbstractEventLoop

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        environment = {"PANNIER_SOCKET": str(self.socket), "COLUMNS": "20", **(env or {})}
        return CliRunner(env=environment).invoke(cli, arguments, prog_name="pannier")

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments))

    def json_lines(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self.ok(*arguments).splitlines()]

    def more_events(self, *events: EventView | None) -> None:
        for event in events:
            self.loop.call_soon_threadsafe(self.cluster.more_events.put_nowait, event)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """The daemon's log lines would go to the same stdout as the program's output."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent)
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    cluster = FakeCluster()
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_local, keepalive_seconds=0.05
    )
    path = tmp_path_factory.mktemp("run") / "api.sock"
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(_serve(application, path, started, stop))
    )
    thread.start()
    assert started.wait(10)
    yield Shell(cluster, path, loop)
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


async def _serve(
    application: web.Application, path: Path, started: threading.Event, stop: asyncio.Event
) -> None:
    async with serve_unix(application, path=path):
        started.set()
        await stop.wait()


@pytest.fixture
def shell(daemon: Shell) -> Shell:
    cluster = daemon.cluster
    for kept in (
        cluster.volumes_by_name,
        cluster.removed,
        cluster.failing,
        cluster.in_use,
        cluster.targets,
        cluster.drills,
    ):
        kept.clear()
    cluster.snapshots_of.clear()
    for noted in (cluster.calls, cluster.past, cluster.findings, cluster.backups_made):
        noted.clear()
    cluster.nodes_by_name.clear()
    cluster.__post_init__()
    return daemon


@pytest.fixture
def data(shell: Shell) -> Shell:
    """With a volume."""
    shell.ok("volume", "create", "data", "-o", "size=10G")
    return shell


# Volumes


def test_create(shell: Shell) -> None:
    created = shell.ok("volume", "create", "data", "-o", "size=10G", "-o", "labels=a=b,c=d")
    assert created == "created: data on node1\n"
    assert shell.cluster.volumes_by_name["data"].options == {"size": "10G", "labels": "a=b,c=d"}
    assert shell.cluster.calls == [NotedCall("create_volume", "data", "local")]


def test_set(data: Shell) -> None:
    said = data.ok("volume", "set", "data", "-o", "labels=team=web", "-o", "interval=5s")
    assert said == "data: size=10G labels=team=web interval=5s\n"
    said = data.ok("volume", "set", "data", "interval=2s", "-o", "labels=team=ops")
    assert said == "data: size=10G labels=team=ops interval=2s\n"
    assert data.run("volume", "set", "data").exit_code == 2
    assert data.run("volume", "set", "data", "interval").exit_code == 2
    assert data.run("volume", "set", "data", "interval=1s", "-o", "interval=2s").exit_code == 2


def test_set_what_needs_a_copy(data: Shell) -> None:
    data.cluster.failing["set_volume"] = NeedsCopy("volume data: layout is tree: that needs a copy")
    done = data.run("volume", "set", "data", "layout=tree")
    assert (done.exit_code, done.stdout) == (0, "data: size=10G layout=tree\n")
    told = done.stderr.splitlines()
    assert "needs a copy" in told[0]
    assert told[-1] == "what it was: pannier volume trash, data.1; nobody could use it for 1.2 s"
    assert data.json("volume", "set", "data", "layout=image", "--format", "json")["name"] == "data"
    data.cluster.in_use["data"] = ["container ci"]
    assert data.run("volume", "set", "data", "layout=tree").exit_code == 4
    assert data.run("volume", "set", "data", "layout=tree", "--stop-service").exit_code == 0


def test_df(data: Shell) -> None:
    data.cluster.silent.add("node3")
    said = data.run("volume", "df")
    assert said.stdout.splitlines()[1].split() == ["data", "node1", "holder", "4K", "2K", "1K"]
    assert "node3 did not say anything" in said.stderr
    first, second = data.json("volume", "df", "-o", "json")
    assert (first["files_bytes"], second["error"]) == (4096, "node node3 does not answer")


def test_df_over_time(data: Shell) -> None:
    data.cluster.silent.add("node3")
    said = data.run("volume", "df", "data")
    rows = [line.split()[2:] for line in said.stdout.splitlines()[1:]]
    assert rows == [["node1", f"{day}G", "-", "-", "0B"] for day in range(1, 5)]
    assert said.stderr.splitlines() == [
        "its files grow by 1G a day; of its size of 10G, all is full in about 6 days",
        "node3 did not say anything",
    ]
    found = data.json("volume", "df", "data", "-o", "json")
    assert (found["growth_bytes_per_day"], len(found["samples"])) == (2**30, 4)
    assert data.json("volume", "df", "data", "--since", "30d", "-o", "json")["samples"] == []
    assert "no samples yet" in data.run("volume", "df", "data", "--since", "30d").stderr
    assert data.run("volume", "df", "--since", "30d").exit_code == 2
    assert data.run("volume", "df", "nosuch").exit_code == 3


def test_import(data: Shell) -> None:
    done = data.run(
        "volume", "import", "new", "--from", "local:old", "-o", "size=1G", "--switch-service", "web"
    )
    assert done.stdout == "imported: new on node1, pause 0.4 s, service web has it\n"
    assert "copying local:old to new" in done.stderr
    phases = [
        step["phase"]
        for step in data.json_lines(
            "volume", "import", "other", "--from", "dir:/srv", "--output", "json"
        )
    ]
    assert phases == ["copying", "done"]
    for source in ("old", "dir:srv", "local:", "nfs:/srv"):
        wrong = data.run("volume", "import", "third", "--from", source)
        assert (wrong.exit_code, "nothing that can be imported" in wrong.stderr) == (2, True)


def test_an_export_writes_over_nothing(data: Shell, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for target, status in (
        (f"tar:{tmp_path}/there/file", 4),
        (f"dir:{tmp_path}/there", 4),
        (f"tar:{tmp_path}/no/file", 3),
        ("zip:file", 2),
        ("tar:", 2),
    ):
        assert data.run("volume", "export", "data", "--to", target).exit_code == status
    away = data.run(
        "--host", "https://node1", "volume", "export", "data", "--to", f"tar:{tmp_path}/x"
    )
    assert (away.exit_code, "on the machine on which" in away.stderr) == (2, True)
    assert [call.operation for call in data.cluster.calls] == ["create_volume"]


def test_snapshots(data: Shell) -> None:
    data.cluster.silent.add("node3")
    made = data.run(
        "volume", "snapshot", "create", "data", "first", "--keep", "30d", "--label", "by=cron"
    )
    assert made.stdout == "snapshot: data first on node1\n"
    assert "not known to be on node3 yet" in made.stderr
    listed = data.ok("volume", "snapshot", "ls", "data").splitlines()
    assert listed[0].split() == ["NAME", "GENERATION", "MADE", "KEPT", "UNTIL", "LABELS"]
    assert listed[1].split()[0::4] == ["first", "by=cron"]
    shown = data.ok("volume", "snapshot", "show", "data", "first").splitlines()
    assert ["on", "node1"] in [line.split() for line in shown]
    (found,) = data.json("volume", "snapshot", "ls", "data", "-o", "json")
    assert (found["name"], found["labels"]) == ("first", {"by": "cron"})
    assert data.ok("volume", "snapshot", "rm", "data", "first") == "removed: data first\n"
    assert data.ok("volume", "snapshot", "ls", "data") == ""
    gone = data.run("volume", "snapshot", "rm", "data", "first")
    assert (gone.exit_code, "has no snapshot first" in gone.stderr) == (3, True)
    assert [call.operation for call in data.cluster.calls][-3:] == [
        "create_snapshot",
        "remove_snapshot",
        "remove_snapshot",
    ]


def test_snapshots_of_a_service(data: Shell) -> None:
    data.ok("volume", "create", "more")
    data.cluster.silent.add("node3")
    made = data.run("service", "snapshot", "web", "both", "--keep", "1h", "--label", "by=me")
    lines = [line.split() for line in made.stdout.splitlines()]
    assert lines == [
        ["VOLUME", "SNAPSHOT", "ON"],
        ["data", "both", "node1"],
        ["more", "both", "node1"],
    ]
    assert "data: not known to be on node3 yet" in made.stderr
    found = data.json("service", "snapshot", "web", "-o", "json")
    assert [(each["volume"], each["name"]) for each in found] == [
        ("data", "web-now"),
        ("more", "web-now"),
    ]
    assert data.run("service", "snapshot", "nosuch").exit_code == 3


def test_all_volumes_of_a_service_are_cloned_and_backed_up(data: Shell, tmp_path: Path) -> None:
    data.ok("volume", "create", "more")
    made = data.run("service", "clone", "web", "--name-as", "test-{}", "-o", "size=20G")
    assert made.stdout.splitlines()[1:] == ["test-data  node1", "test-more  node1"]
    assert "service web itself is not cloned" in made.stderr
    assert "source=test-data" in made.stderr
    assert data.cluster.volumes_by_name["test-more"].options == {"size": "20G"}
    assert data.run("service", "clone", "web", "--name-as", "test").exit_code == 2
    assert data.run("service", "clone", "web").exit_code == 2
    assert data.run("service", "clone", "nosuch", "--name-as", "{}-2").exit_code == 3
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    data.ok("backup", "target", "add", "offsite", "/srv", "--password-file", str(secret))
    found = data.run("service", "backup", "web")
    assert [line.split()[:3] for line in found.stdout.splitlines()[1:]] == [
        [each, "1f0c5a2e", "offsite"] for each in ("data", "more", "test-data", "test-more")
    ]
    assert "web, more: reading on node2, 50 %, 1K" in found.stderr
    assert len(data.json("service", "backup", "web", "-o", "json")) == 4
    assert data.run("service", "backup", "nosuch").exit_code == 3


def test_backups(data: Shell, tmp_path: Path) -> None:
    secret, keys = tmp_path / "password", tmp_path / "s3.env"
    secret.write_text("s3cret\n")
    keys.write_text("AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=key\n")
    add = ("backup", "target", "add", "offsite", "s3:https://host/bucket")
    assert data.run(*add).exit_code == 2, "no password"
    words = (*add, "--password-file", str(secret), "--s3-key-file", str(keys))
    assert data.ok(*words).startswith("target: offsite at s3:https://host/bucket, repository 5e")
    assert data.ok("backup", "target", "ls").splitlines()[1].split()[0::4] == ["offsite", "all"]
    made = data.ok("backup", "run", "data")
    assert made.startswith("backup: data 1f0c5a2e at offsite; read on node2, 1K new, 1 files read")
    assert data.ok("backup", "ls", "other") == ""
    (found,) = data.json("backup", "ls", "data", "-o", "json")
    assert (found["id"], found["volume"]) == ("1f0c5a2e", "data")
    back = data.ok("backup", "restore", "data@1f0c5a2e", "again", "-o", "size=20G")
    assert back == "restored: again on node1, from offsite\n"
    assert data.cluster.volumes_by_name["again"].options == {"size": "20G"}
    all_there = data.json("backup", "restore-all", "offsite", "--format", "json")
    assert [each["state"] for each in all_there] == ["there already"]
    data.ok("volume", "rm", "data")
    assert data.ok("backup", "restore-all", "offsite").splitlines()[1].split() == [
        "data", "1f0c5a2e", "restored", "-",
    ]  # fmt: skip
    assert "data" in data.cluster.volumes_by_name
    data.ok("volume", "rm", "data")
    data.cluster.failing["restore_backup"] = StorageError("the disk is full")
    failed = data.run("backup", "restore-all", "offsite")
    assert failed.exit_code == BackupFailed.exit_status
    assert "1 of 1 volumes were not brought back: data" in failed.stderr
    assert "the disk is full" in failed.stdout
    del data.cluster.failing["restore_backup"]
    good = data.ok("backup", "drill", "data", "--check", "true", "--image", "busybox")
    assert good == "good: data 1f0c5a2e from offsite, in 1.5 s\n"
    assert data.run("backup", "drill", "data", "--check", "true").exit_code == 2
    assert "never" not in data.ok("backup", "drills")
    assert data.ok("backup", "verify", "offsite").startswith("sound: offsite")
    assert data.run("backup", "prune", "offsite").exit_code == 2
    assert data.ok("backup", "prune", "offsite", "--keep-daily", "7").startswith("pruned: offsite")
    assert data.ok("backup", "target", "rm", "offsite").startswith("forgotten: offsite")
    none = data.run("backup", "restore", "data", "more")
    assert (none.exit_code, "add one" in none.stderr) == (2, True)


@pytest.mark.parametrize(
    ("option", "content"),
    [("--password-file", b"\xff\xfe"), ("--password-file", b"x" * 70_000), ("--s3-key-file", b"x")],
)
def test_a_file_that_has_no_secret_is_named_and_not_shown(
    shell: Shell, tmp_path: Path, option: str, content: bytes
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("s3cret")
    bad.write_bytes(content)
    files = {"--password-file": good, option: bad}
    words = [str(word) for pair in files.items() for word in pair]
    refused = shell.run("backup", "target", "add", "offsite", "s3:https://host/bucket", *words)
    assert (refused.exit_code, str(bad) in refused.stderr) == (2, True)
    assert "xx" not in refused.output.replace(str(bad), "")
    assert shell.cluster.calls == []


def test_the_cluster_key(shell: Shell, tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a horse, a battery\n")
    words = ("--passphrase-file", str(passphrase))
    shown = [line.split() for line in shell.ok("key", "show").splitlines()]
    assert shown[0][:2] == ["key", "9f9f9f9f,"]
    assert shown[1] == ["node", "node1", "has", "all", "keys"]
    refused = shell.run("key", "unlock", *words)
    assert (refused.exit_code, "not locked" in refused.stderr) == (4, True)
    rotated = shell.run("key", "rotate", *words)
    assert "7d7d7d7d, locked with a passphrase" in rotated.stdout
    assert "keep the passphrase" in rotated.stderr
    refused = shell.run("key", "rotate")
    assert (refused.exit_code, "are locked" in refused.stderr) == (2, True)
    assert shell.run("key", "unlock", *words).exit_code == 0
    assert "battery" not in rotated.output + shell.ok("key", "show")
    assert shell.json("key", "rotate", "--in-files", "-o", "json")["locked"] is False
    refused = shell.run("key", "rotate", *words, "--in-files")
    assert (refused.exit_code, "one of two ways" in refused.stderr) == (2, True)
    passphrase.write_text("short")
    refused = shell.run("key", "rotate", *words)
    assert (refused.exit_code, "12 letters" in refused.stderr) == (2, True)


def test_rollback(data: Shell) -> None:
    data.ok("volume", "snapshot", "create", "data", "first")
    back = data.run("volume", "rollback", "data", "first")
    assert back.stdout == "rolled back: data to first\n"
    assert "pannier volume rollback data before-rollback-20260102T030405Z" in back.stderr
    data.cluster.in_use["data"] = ["container ci"]
    assert data.run("volume", "rollback", "data", "first").exit_code == 4
    data.ok("volume", "rollback", "data", "first", "--stop-service")
    data.cluster.failing["roll_back_volume"] = OutcomeUnknown("no answer came")
    cut_off = data.run("volume", "rollback", "data", "first", "--stop-service")
    assert (cut_off.exit_code, "pannier doctor" in cut_off.stderr) == (6, True)
    del data.cluster.failing["roll_back_volume"]
    data.cluster.in_use["data"] = ["container web"]
    refused = data.run("volume", "rollback", "data", "first")
    assert (refused.exit_code, "in use by container web" in refused.stderr) == (4, True)


def test_clone(data: Shell) -> None:
    data.ok("volume", "snapshot", "create", "data", "first")
    made = data.ok("volume", "clone", "data@first", "test", "-o", "copies=1")
    assert made == "cloned: test from data@first on node1\n"
    shown = [line.split() for line in data.ok("volume", "show", "test").splitlines()]
    assert ["cloned", "from", "data@first"] in shown
    assert data.json("volume", "clone", "data", "now", "--format", "json")["cloned_from"] == "data"
    for what, new, status in (
        ("data@second", "more", 3),
        ("data", "test", 4),
        ("data@", "more", 2),
    ):
        refused = data.run("volume", "clone", what, new)
        assert (refused.exit_code, "Traceback" in refused.stderr) == (status, False), refused.stderr
    assert "more" not in data.cluster.volumes_by_name


@pytest.mark.parametrize("form", ["--format", "--output"])
def test_create_as_json(shell: Shell, form: str) -> None:
    assert shell.json("volume", "create", "data", "-o", "size=1G", form, "json")["id"] == "id-data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "size"], "'size' is not of the form key=value"),
        (["-o", "=1"], "not of the form"),
        (["-o", "size=1G", "-o", "size=2G"], "size is given twice"),
        (["-o", "sise=1G"], "did you mean 'size'?"),
    ],
)
def test_create_with_a_bad_option(shell: Shell, options: list[str], words: str) -> None:
    result = shell.run("volume", "create", "data", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert shell.cluster.volumes_by_name == {}


def test_ls(data: Shell) -> None:
    assert data.ok("volume", "ls").splitlines() == [
        "NAME  HOLDER  STATE  EPOCH  DRIVER  OPTIONS",
        "data  node1   up         1  btrfs   size=10G",
    ]
    assert [each["name"] for each in data.json("volume", "ls", "-o", "json")] == ["data"]


def test_ls_of_nothing(shell: Shell) -> None:
    result = shell.run("volume", "ls")
    assert (result.stdout, result.stderr) == ("", "no volumes\n")
    assert shell.json("volume", "ls", "-o", "json") == []


def test_json_can_be_asked_for_everywhere(data: Shell) -> None:
    asked = data.json("volume", "ls", "--format", "json")
    assert data.json("-o", "json", "volume", "ls") == asked
    assert data.json("--format", "json", "volume", "ls") == asked
    assert data.ok("-o", "json", "volume", "ls", "-o", "table").startswith("NAME")


def test_show(data: Shell) -> None:
    data.cluster.in_use["data"] = ["web", "pid 17 (bash)"]
    lines = dict(line.split("  ", 1) for line in data.ok("volume", "show", "data").splitlines())
    shown = {label: text.strip() for label, text in lines.items()}
    assert shown["holder"] == "node1 (up)"
    assert shown["in use by"] == "web, pid 17 (bash)"
    assert shown["used"] == "4K"
    assert shown["copies on"] == "node1"


def details(text: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {label: text.strip() for label, text in pairs}


def test_show_of_sync_calls_by_records(data: Shell) -> None:
    times = SpreadView(median=0.00052, worst=0.0301)
    data.cluster.syncs["data"] = SyncView(
        way=SyncWay.RECORDS, groups=100, by_generation=2, last_reason="the trace has a gap",
        total=times, local=times, turn=times, cut=times, copies=times,
    )  # fmt: skip
    data.cluster.copies["data"] = [
        CopyView(node="node2", generation="1.1", lag_seconds=0.0, in_sync=True, follows=True)
    ]
    shown = details(data.ok("volume", "show", "data"))
    assert shown["sync calls"] == "durable by records"
    for part in ("time", "local", "turn", "cut", "copies"):
        assert shown[f"sync {part}"] == "0.52 ms, at worst 30.10 ms"
    assert (
        shown["by generation"] == "2 of the last 100 groups, the last because the trace has a gap"
    )
    assert shown["copy"] == "node2: generation 1.1, 0 s behind, in sync, follows the records"


def test_show_of_sync_calls_by_generations(data: Shell) -> None:
    data.cluster.syncs["data"] = SyncView(
        way=SyncWay.GENERATIONS, reason="copy on node2: this node has no journal"
    )
    data.cluster.copies["data"] = [
        CopyView(node="node2", generation="1.1", follows=True, record_error="it has no journal")
    ]
    shown = details(data.ok("volume", "show", "data"))
    why = "durable by generations, because copy on node2: this node has no journal"
    assert shown["sync calls"] == why
    assert "sync time" not in shown
    assert shown["copy"] == "node2: generation 1.1, kept no record: it has no journal"


def test_show_of_a_node_s_journal(shell: Shell) -> None:
    assert details(shell.ok("node", "show", "node2"))["journal"] == "-"
    nodes = shell.cluster.nodes_by_name
    journal = JournalView(
        total_bytes=2**28, live_bytes=2**20, most_bytes=2**27, volumes={"data": 2**20}
    )
    nodes["node2"] = replace(nodes["node2"], journal=journal)
    shown = details(shell.ok("node", "show", "node2"))
    assert shown["journal"] == "1M of 128M needed (data 1M)"
    lacking = JournalView(trouble="the pool is too small", damaged=["data: a part is damaged"])
    nodes["node2"] = replace(nodes["node2"], journal=lacking)
    shown = details(shell.ok("node", "show", "node2"))
    assert shown["journal"] == "none: the pool is too small"
    assert shown["damaged"] == "data: a part is damaged"
    nodes["node2"] = replace(nodes["node2"], journal=None)


def test_show_has_the_same_fields_whether_the_holder_answers_or_not(data: Shell) -> None:
    live = json.loads(data.ok("volume", "show", "data", "-o", "json"))
    data.cluster.silent.add("node1")
    remembered = json.loads(data.ok("volume", "show", "data", "-o", "json"))
    data.cluster.silent.clear()
    assert live.keys() == remembered.keys()
    assert (live["facts"], remembered["facts"]) == ("live", "remembered")
    assert live["in_use_by"] == []
    assert remembered["in_use_by"] is None


def test_show_while_the_holder_does_not_answer(data: Shell) -> None:
    data.cluster.silent.add("node1")
    lines = dict(line.split("  ", 1) for line in data.ok("volume", "show", "data").splitlines())
    data.cluster.silent.clear()
    shown = {label: text.strip() for label, text in lines.items()}
    assert shown["in use by"] == "?"
    assert shown["used"] == "-"
    assert "mountpoint" not in shown


def test_show_of_a_volume_that_moves(data: Shell) -> None:
    transfer = TransferView(
        target="node2", phase=MovePhase.COPYING, round=3, sent_bytes=2**30, started_at="10:00"
    )
    data.cluster.transfers["data"] = transfer
    shown = data.ok("volume", "show", "data")
    data.cluster.transfers.clear()
    assert "moving      to node2 since 10:00: copying, round 3, 1G sent" in shown


def test_move(data: Shell) -> None:
    result = data.run("volume", "move", "data", "node2")
    assert result.exit_code == 0
    assert result.stdout == "moved: node1 → node2, pause 0.21 s, generation 2.1\n"
    assert result.stderr.splitlines() == [
        "copying data: node1 → node2, round 1, 0B sent",
        "switching data: node1 → node2, round 3, 6M sent",
    ]


def test_move_as_json(data: Shell) -> None:
    lines = data.json_lines("volume", "move", "data", "node2", "-o", "json")
    assert [line["phase"] for line in lines] == ["copying", "copying", "switching", "done"]


def test_move_of_a_volume_in_use(data: Shell) -> None:
    data.cluster.in_use["data"] = ["web"]
    result = data.run("volume", "move", "data", "node2", "--wait", "1m")
    assert result.exit_code == 4
    assert "waiting for web on node1 to stop; round 2, 5M sent" in result.stderr
    assert "Error: volume data is still used by web on node1\n→ stop it, then" in result.stderr
    assert result.stdout == ""


def test_failed_move_as_json_says_it_in_the_stream_and_as_the_error(data: Shell) -> None:
    data.cluster.in_use["data"] = ["web"]
    result = data.run("volume", "move", "data", "node2", "-o", "json")
    assert json.loads(result.stdout.splitlines()[-1])["code"] == "volume-in-use"
    assert json.loads(result.stderr)["code"] == "volume-in-use"
    assert result.exit_code == 4


def test_services_and_where_they_could_start(data: Shell) -> None:
    listed = data.run("service", "ls")
    assert listed.exit_code == 0, listed.stderr
    heading, row = listed.stdout.splitlines()
    assert heading.split()[:3] == ["SERVICE", "RUNS", "ON"]
    assert row.split()[:3] == ["web", "node1", "data"]
    assert json.loads(data.run("service", "ls", "-o", "json").stdout)[0]["copies_on"] == ["node1"]


def test_a_service_s_move_shows_each_step_once(data: Shell) -> None:
    moved = data.run("service", "move", "web", "node2", "--now", "--timeout", "3h")
    assert moved.exit_code == 0, moved.stderr
    assert moved.stdout.splitlines() == [
        "    0.0 s  web runs on node1",
        "    1.5 s  web runs on node2",
        "moved: web: node1 → node2, pause 0.4 s",
    ]
    assert "copying data: node1 → node2" in moved.stderr


def test_a_service_s_move_as_json(data: Shell) -> None:
    lines = data.run("service", "move", "web", "node2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["copying", "done"]


def test_a_service_s_move_that_is_refused(data: Shell) -> None:
    refused = data.run("service", "move", "wep", "node2")
    assert refused.exit_code == 3
    assert "has no service wep" in refused.stderr


def test_remove_and_restore(data: Shell) -> None:
    result = data.run("volume", "rm", "data")
    assert result.stdout == "removed: data\n"
    assert result.stderr == "until 2026-01-03T03:04:05Z: pannier volume restore data\n"
    assert data.ok("volume", "trash").splitlines()[1].startswith("data  id-data  node1")
    assert data.ok("volume", "restore", "id-data") == "restored: data on node1\n"
    assert data.json("volume", "trash", "-o", "json") == []


def test_the_trash_is_emptied_one_by_one_or_as_a_whole(data: Shell) -> None:
    data.ok("volume", "rm", "data")
    assert data.ok("trash", "ls") == data.ok("volume", "trash")
    assert data.ok("trash", "rm", "data") == "given up: data\n"
    assert data.json("trash", "ls", "-o", "json") == []
    assert data.json("trash", "empty", "-o", "json") == []


def test_files_of_what_stands_still_are_removed(data: Shell) -> None:
    assert data.ok("volume", "clean", "data", "old", "b/1") == "removed from data: old b/1\n"


def test_files_are_taken_out(data: Shell) -> None:
    assert (
        data.ok("volume", "cp", "data@first:dir/file", "/root") == "copied: /root/dir/file, 10B\n"
    )
    steps = data.ok("volume", "cp", "data:dir/file", "/root", "-o", "json").splitlines()
    assert [json.loads(step)["to"] for step in steps] == ["", "/root/dir/file"]
    for wrong in ("data", "data:", ":file", "data@:file"):
        refused = data.run("volume", "cp", wrong, "/root")
        assert "does not say what to copy" in refused.stderr


def test_policies(data: Shell) -> None:
    made = data.ok("schedule", "set", "nightly", "daily:7", "--label", "a=b")
    assert made == "schedule: nightly daily:7 of data\n"
    assert data.json("schedule", "ls", "-o", "json")[0]["labels"] == {"a": "b"}
    assert "a=b" in data.ok("schedule", "ls")
    refused = data.run("schedule", "set", "nightly", "hourly:-1", "--label", "a=b")
    assert "'hourly:-1' cannot be a schedule" in refused.stderr
    assert data.ok("schedule", "rm", "nightly") == "removed: nightly\n"


def test_history(data: Shell) -> None:
    assert "volume.created" in data.ok("volume", "history", "data")
    assert data.json("volume", "history", "data", "-o", "json")[0]["subject"] == "data"


# Nodes, tokens, the whole


def test_nodes(shell: Shell) -> None:
    lines = shell.ok("node", "ls").splitlines()
    assert lines[0] == (
        "NAME   STATE  ADDRESS   DRIVERS           VOLUMES  POOL              VERSION"
    )
    assert lines[1] == (
        "node1  up     10.0.0.1  btrfs, directory        0  75G of 100G free  0.1.0"
    )
    assert "address  10.0.0.2" in shell.ok("node", "show", "node2")
    assert shell.ok("node", "drain", "node2") == "node2 is drained\n"
    assert shell.ok("node", "drain", "node2", "--undo") == "node2 is up\n"
    assert shell.ok("node", "rm", "node3") == "removed: node3\n"
    assert shell.json("node", "rm", "node2", "-o", "json") == {"removed": "node2"}
    assert [each["name"] for each in shell.json("node", "ls", "-o", "json")] == ["node1"]


def test_node_with_volumes_is_not_removed(data: Shell) -> None:
    result = data.run("node", "rm", "node1")
    assert (result.exit_code, result.stderr) == (
        4,
        "Error: node node1 holds volumes\n→ move them first\n",
    )


def test_token_alone_is_on_stdout(shell: Shell) -> None:
    result = shell.run("token", "create", "--ttl", "1h30m", "--uses", "3")
    assert result.stdout.startswith("token-")
    assert len(result.stdout.splitlines()) == 1
    assert "pannier join ADDRESS" in result.stderr
    assert shell.cluster.calls == [NotedCall("create_token", "5400s", "local")]


@pytest.mark.parametrize("ttl", ["", "soon", "1w", "1h 5m", "5m3", "-5m"])
def test_durations_are_read_strictly(shell: Shell, ttl: str) -> None:
    result = shell.run("token", "create", f"--ttl={ttl}")
    assert result.exit_code == 2
    assert "is not a duration: write 90s" in result.stderr


def test_status(data: Shell) -> None:
    shown = data.ok("status")
    assert "store    kind memory (ok)" in shown
    assert "node3  up" in shown
    assert data.json("status", "-o", "json")["cluster"] == "test"


def test_doctor(data: Shell) -> None:
    data.cluster.findings += [
        FindingView(level=Level.OK, subject="volume data", what="held by node1, idle"),
        FindingView(level=Level.WARNING, subject="clock", what="is off", remedy="set it"),
    ]
    assert data.ok("doctor").splitlines()[2].split() == [
        "warning",
        "clock",
        "is",
        "off",
        "set",
        "it",
    ]
    assert [each["subject"] for each in data.json("doctor", "data", "-o", "json")] == [
        "volume data"
    ]
    assert data.run("doctor", "none").exit_code == 3


def test_doctor_that_finds_a_problem_exits_with_10(shell: Shell) -> None:
    shell.cluster.findings.append(FindingView(level=Level.PROBLEM, subject="pool", what="is full"))
    assert shell.run("doctor").exit_code == 10
    result = shell.run("doctor", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)[0]["what"]) == (10, "is full")


def test_events(data: Shell) -> None:
    (line,) = data.ok("events").splitlines()
    assert line.split() == ["2026-01-02T03:04:05Z", "volume.created", "data", "node1"]
    assert data.json_lines("events", "-o", "json")[0]["kind"] == "volume.created"


def test_events_follow(data: Shell) -> None:
    event = EventView(at="now", kind=EventKind.NODE_DOWN, subject="node2", node="node1")
    data.more_events(event, None)
    lines = data.json_lines("events", "-f", "-o", "json")
    assert [line["kind"] for line in lines] == ["volume.created", "node.down"]


def test_names_from_elsewhere_cannot_steer_the_terminal(data: Shell) -> None:
    data.cluster.in_use["data"] = ["web\x1b[2J", "[bold]x[/bold]"]
    shown = data.ok("volume", "show", "data")
    assert "web\\x1b[2J, [bold]x[/bold]" in shown


# Errors


def test_error_is_a_sentence_and_a_remedy(shell: Shell) -> None:
    result = shell.run("volume", "show", "none")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        "Error: there is no volume none\n→ 'pannier volume ls' shows what there is\n"
    )


def test_error_as_json(shell: Shell) -> None:
    result = shell.run("volume", "show", "none", "-o", "json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert json.loads(result.stderr)["code"] == "volume-not-found"


@pytest.mark.parametrize(
    ("error", "status"), [(StoreUnavailable("away"), 6), (PoolFull("full"), 7), (OSError(5), 1)]
)
def test_exit_status_is_the_errors(shell: Shell, error: Exception, status: int) -> None:
    shell.cluster.failing["volumes"] = error
    assert shell.run("volume", "ls").exit_code == status
