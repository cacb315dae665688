"""pannier-runtime in Docker's configuration: registered only where Docker takes it in, and taken back exactly.

Docker is a model here: how it reads its flags and its file at a start and at a reload. ``tests/system`` has
the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pannier.core.errors import Conflict, Corrupt, InvalidInput, NotFound, ProgramFailed
from pannier.engine.command_line import CommandLine, read_words
from pannier.engine.configuration import PROGRAM
from pannier.engine.file import configured_default
from pannier.engine.registration import Registration
from pannier.engine.service import ServiceState

ODD = '{ "log-driver":"json-file",\r\n\t"runtimes": {"gpu": {"path": "GPU"}} }'
"""A text that no program would write."""
FEATURES = {"linux": {"seccomp": {"enabled": True, "actions": ["SCMP_ACT_NOTIFY"]}}}


@dataclass
class Docker:
    """dockerd as a service: its flags, its file, and what it has taken in.

    Attributes:
        deaf: it takes nothing in at a reload.
        refuses: what it says to a file before it is there.
        default: the default runtime of the engine that runs.
    """

    folder: Path
    words: str = "dockerd"
    runs: bool = True
    deaf: bool = False
    refuses: str = ""
    features_text: str = json.dumps(FEATURES)
    default: str = "runc"
    there: bool = True
    running_words: str | None = None
    installed: dict[Path, str | None] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "docker/daemon.json"

    @property
    def note(self) -> Path:
        return self.folder / "state/note.json"

    @property
    def registration(self) -> Registration:
        return Registration(self, note=self.note, install=self._install)

    def _install(self, target: Path, next_program: str | None) -> None:
        self.installed[target] = next_program

    def program(self, name: str) -> str:
        """A runtime's program."""
        file = self.folder / name
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
        return str(file)

    def line(self, words: str) -> CommandLine:
        line = read_words(words.split())
        return line if "--config-file" in words else replace(line, file=self.file)

    def says(self, text: str | None) -> None:
        self.file.parent.mkdir(exist_ok=True)
        if text is not None:
            self.file.write_bytes(text.encode())

    def now(self) -> str | None:
        return self.file.read_bytes().decode() if self.file.exists() else None

    def settings(self) -> Any:
        """What its file says."""
        file = self.line(self.words).file
        return json.loads(file.read_text() or "{}") if file.exists() else {}

    def start(self) -> None:
        """As at a boot: the program ends where flag and file say the same setting."""
        named, flagged = (
            self.settings().get("default-runtime"),
            self.line(self.words).default_runtime,
        )
        assert named is None or flagged is None, "specified both as a flag and in the configuration"
        self.default = flagged or named or "runc"
        known = {"runc", *self.settings().get("runtimes", {}), *self.line(self.words).runtimes}
        assert self.default in known, "specified default runtime does not exist"
        self.running_words, self.runs = self.words, True

    # -- EngineService

    async def state(self) -> ServiceState:
        if not self.there:
            return ServiceState(next_start=None, running=None)
        running = self.line(self.words if self.running_words is None else self.running_words)
        return ServiceState(
            next_start=self.line(self.words),
            running=running if self.runs else None,
            sources=(self.folder / "drop-in.conf", self.folder / "docker.service"),
        )

    async def objection(self, line: CommandLine, file: Path) -> str:
        json.loads(file.read_text())
        return self.refuses

    async def reload(self) -> None:
        named = self.settings().get("default-runtime")
        if not self.deaf and named is not None and self.line(self.words).default_runtime is None:
            self.default = named

    async def takes(self, default: str, *, seconds: float) -> str:
        return self.default

    async def features(self, program: str) -> str:
        assert os.path.isabs(program)
        return self.features_text


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


# -- there and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "{}", ODD, '{"default-runtime": "runc"}'])
@pytest.mark.parametrize("runs", [True, False])
async def test_there_and_back_to_the_byte(docker: Docker, text: str | None, runs: bool) -> None:
    docker.says(text)
    docker.runs = runs
    before = text and json.loads(text)
    assert await docker.registration.register()
    after = docker.settings()
    assert after["runtimes"]["pannier"] == {"path": str(PROGRAM)}
    assert {**after, "runtimes": None} == {
        **(before or {}),
        "runtimes": None,
        "default-runtime": "pannier",
    }
    docker.start()
    assert docker.default == "pannier"
    docker.runs = runs
    assert not await docker.registration.register(), "the second time changes nothing"
    assert await docker.registration.unregister()
    assert docker.now() == text
    assert docker.default == ("runc" if runs else "pannier"), "a running engine takes it in at once"
    docker.start()
    assert docker.default == "runc"
    assert not await docker.registration.unregister()
    assert docker.now() == text
    assert not docker.note.exists()


async def test_the_file_keeps_its_permissions(docker: Docker) -> None:
    docker.says(ODD)
    docker.file.chmod(0o600)
    await docker.registration.register()
    assert docker.file.stat().st_mode & 0o777 == 0o600


async def test_a_link_to_the_file_stays_one(docker: Docker) -> None:
    docker.says(None)
    (docker.folder / "managed.json").write_text("{}")
    docker.file.symlink_to("../managed.json")
    await docker.registration.register()
    assert docker.file.is_symlink()
    assert docker.settings()["default-runtime"] == "pannier"
    await docker.registration.unregister()
    assert (docker.folder / "managed.json").read_text() == "{}"


async def test_what_a_person_changed_since_stays(docker: Docker) -> None:
    docker.says('{"default-runtime": "runc", "debug": false}')
    await docker.registration.register()
    docker.says(json.dumps({**docker.settings(), "debug": True}))
    await docker.registration.unregister()
    assert docker.settings() == {"default-runtime": "runc", "debug": True}


async def test_another_default_that_a_person_chose_since_stays(docker: Docker) -> None:
    docker.says(None)
    await docker.registration.register()
    docker.says(json.dumps({**docker.settings(), "default-runtime": "runc"}))
    await docker.registration.unregister()
    assert docker.settings() == {"default-runtime": "runc"}


async def test_a_default_that_went_meanwhile_does_not_come_back(docker: Docker) -> None:
    """Docker would not start with it."""
    gpu = {"gpu": {"path": docker.program("gpu")}}
    docker.says(json.dumps({"default-runtime": "gpu", "runtimes": gpu}))
    await docker.registration.register(before="gpu")
    settings = docker.settings()
    del settings["runtimes"]["gpu"]
    docker.says(json.dumps(settings))
    await docker.registration.unregister()
    assert docker.settings() == {}
    docker.start()


async def test_what_an_earlier_version_registered_can_be_taken_back(docker: Docker) -> None:
    """It has kept no note."""
    ours = {"runtimes": {"pannier": {"path": str(PROGRAM)}}, "default-runtime": "pannier"}
    docker.says(json.dumps({**ours, "debug": True}))
    docker.default = "pannier"
    assert not await docker.registration.register()
    assert await docker.registration.unregister()
    assert docker.settings() == {"debug": True}


# -- it runs twice, power fails ---------------------------------------------------------------------


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("work", ["register", "unregister"])
async def test_power_fails_after_each_write(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, work: str, writes: int
) -> None:
    """Docker starts with whatever is there, and a repetition ends in the same state."""
    from pannier.engine import file as engine_file
    from pannier.engine import registration

    docker.says(ODD)
    if work == "unregister":
        await docker.registration.register()
    left = writes
    real = engine_file.write_text

    def write(file: Path, text: str | None) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        real(file, text)

    async def cut() -> None:
        raise PowerCutError

    monkeypatch.setattr(registration, "write_text", write)
    monkeypatch.setattr(docker, "reload", cut if writes == 3 else docker.reload)
    try:
        await getattr(docker.registration, work)()
    except PowerCutError:
        pass
    monkeypatch.undo()
    docker.start()
    await getattr(docker.registration, work)()
    docker.start()
    assert docker.default == ("pannier" if work == "register" else "runc")
    await docker.registration.unregister()
    assert docker.now() == ODD


async def test_power_fails_between_the_note_and_the_file(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note is about a change that never was; what a person writes then is what comes back."""
    from pannier.engine import registration

    def cut(file: Path, text: str | None) -> None:
        raise PowerCutError

    docker.says("{}")
    monkeypatch.setattr(registration, "write_text", cut)
    with pytest.raises(PowerCutError):
        await docker.registration.register()
    monkeypatch.undo()
    assert docker.note.exists()
    docker.says(ODD)
    await docker.registration.register()
    await docker.registration.unregister()
    assert docker.now() == ODD


async def test_a_note_that_cannot_be_read_is_told_before_anything_is_changed(
    docker: Docker,
) -> None:
    docker.says("{}")
    docker.note.parent.mkdir()
    docker.note.write_text("{")
    with pytest.raises(Corrupt, match=r"note\.json"):
        await docker.registration.register()
    assert docker.now() == "{}"


# -- what Docker does not take in -------------------------------------------------------------------


async def test_what_the_engine_does_not_take_in_is_undone(docker: Docker) -> None:
    docker.says(ODD)
    docker.deaf = True
    with pytest.raises(ProgramFailed, match="default runtime is runc; they were put back"):
        await docker.registration.register()
    assert docker.now() == ODD
    assert not docker.note.exists()


async def test_an_engine_that_was_late_is_brought_back(docker: Docker) -> None:
    """It took the new default in after we gave up, and the old file names none."""
    docker.says(ODD)
    asked = 0

    async def late(default: str, *, seconds: float) -> str:
        nonlocal asked
        asked += 1
        return "" if asked == 1 else docker.default

    docker.takes = late  # type: ignore[method-assign]
    with pytest.raises(ProgramFailed, match="it does not answer; they were put back"):
        await docker.registration.register()
    assert docker.now() == ODD
    assert docker.default == "runc"


async def test_a_registration_that_fails_leaves_an_earlier_one(docker: Docker) -> None:
    docker.says(json.dumps({"runtimes": {"gpu": {"path": docker.program("gpu")}}}))
    first = docker.now()
    await docker.registration.register()
    second = docker.now()
    docker.default, docker.deaf = "runc", True
    with pytest.raises(ProgramFailed):
        await docker.registration.register(before="gpu")
    assert docker.now() == second
    docker.default, docker.deaf = "pannier", False
    await docker.registration.unregister()
    assert docker.now() == first


async def test_a_registered_runtime_that_docker_does_not_have_is_told(docker: Docker) -> None:
    docker.says(None)
    await docker.registration.register()
    docker.default, docker.deaf = "runc", True
    with pytest.raises(ProgramFailed, match="default runtime is runc"):
        await docker.registration.register()
    assert docker.settings()["default-runtime"] == "pannier", (
        "nothing was changed, so nothing is undone"
    )


async def test_what_dockerd_objects_to_is_never_written(docker: Docker) -> None:
    docker.says(ODD)
    docker.refuses = "unable to configure the Docker daemon"
    with pytest.raises(InvalidInput, match="unable to configure"):
        await docker.registration.register()
    assert docker.now() == ODD
    assert not docker.note.exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", '"runc"', '{"runtimes": []}', '{"runtimes": {"a": 1}}']
)
async def test_a_file_that_cannot_be_understood_stays_as_it_is(docker: Docker, text: str) -> None:
    docker.says(text)
    with pytest.raises(InvalidInput, match=r"daemon\.json"):
        await docker.registration.register()
    with pytest.raises(InvalidInput, match=r"daemon\.json"):
        await docker.registration.unregister()
    assert docker.now() == text


async def test_a_machine_without_docker_is_told(docker: Docker) -> None:
    docker.there = False
    with pytest.raises(NotFound, match=r"docker\.service"):
        await docker.registration.register()


# -- flags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("default", ["gpu", "runc"])
async def test_a_default_on_the_command_line_is_refused(
    docker: Docker, default: str, runs: bool
) -> None:
    """Docker does not start where the file says it, too."""
    docker.says(ODD)
    docker.words = f"dockerd --add-runtime gpu=/bin/gpu --default-runtime {default}"
    docker.start()
    docker.runs = runs
    drop_in = docker.folder / "drop-in.conf"
    drop_in.write_text(f"[Service]\nEnvironment=DOCKER_OPTS='--default-runtime {default}'\n")
    with pytest.raises(Conflict, match=f"--default-runtime {default} .in {drop_in}.") as caught:
        await docker.registration.register()
    assert ("--before gpu" in caught.value.remedy) == (default == "gpu")
    assert docker.now() == ODD
    docker.start()


async def test_a_flag_that_names_us_makes_the_default(docker: Docker) -> None:
    """The file must not say it again. And without the runtime Docker would not start."""
    docker.says(ODD)
    docker.words = "dockerd --default-runtime=pannier"
    docker.default = "pannier"
    assert await docker.registration.register()
    docker.start()
    with pytest.raises(Conflict, match="would not start"):
        await docker.registration.unregister()
    docker.words = "dockerd"
    docker.start()
    await docker.registration.unregister()
    assert docker.now() == ODD


async def test_a_flag_that_counts_only_at_the_next_start_is_refused(docker: Docker) -> None:
    docker.says(ODD)
    docker.running_words, docker.words = "dockerd", "dockerd --default-runtime gpu"
    with pytest.raises(Conflict, match="its next start has --default-runtime gpu"):
        await docker.registration.register()
    assert docker.now() == ODD


async def test_what_was_registered_beside_a_flag_is_taken_back(docker: Docker) -> None:
    """As an earlier version did: Docker does not start any more."""
    ours = {"runtimes": {"pannier": {"path": str(PROGRAM)}}, "default-runtime": "pannier"}
    docker.says(json.dumps(ours))
    docker.words, docker.runs = "dockerd --add-runtime gpu=/bin/gpu --default-runtime gpu", False
    await docker.registration.unregister()
    docker.start()
    assert docker.default == "gpu"


async def test_another_configuration_file_is_found(docker: Docker) -> None:
    other = docker.folder / "other.json"
    docker.words = f"dockerd --config-file {other}"
    assert await docker.registration.register()
    assert docker.settings()["default-runtime"] == "pannier"
    assert other.exists()
    assert not docker.file.exists()
    await docker.registration.unregister()
    assert not other.exists()
    docker.running_words = "dockerd"
    with pytest.raises(Conflict, match="another configuration file"):
        await docker.registration.register()


# -- before another runtime -------------------------------------------------------------------------


async def test_a_runtime_that_a_person_chose_is_replaced_only_if_that_is_said(
    docker: Docker,
) -> None:
    gpu = docker.program("gpu")
    text = json.dumps({"default-runtime": "gpu", "runtimes": {"gpu": {"path": gpu}}})
    docker.says(text)
    docker.start()
    with pytest.raises(Conflict, match="default runtime is gpu") as caught:
        await docker.registration.register()
    assert "--before gpu" in caught.value.remedy
    assert docker.now() == text
    assert await docker.registration.register(before="gpu")
    program = Path(f"{PROGRAM}-gpu")
    assert docker.installed == {program: gpu}
    assert docker.settings()["runtimes"] == {
        "gpu": {"path": gpu},
        "pannier": {"path": str(program)},
    }
    docker.start()
    assert docker.default == "pannier"
    assert not await docker.registration.register(), "it stays before the same one"
    await docker.registration.refresh()
    assert docker.installed == {program: gpu}
    await docker.registration.unregister()
    assert docker.now() == text
    assert docker.default == "gpu"


async def test_each_next_runtime_has_a_program_of_its_own(docker: Docker) -> None:
    """A running container is ended by the program that made it."""
    docker.words = f"dockerd --add-runtime crun={docker.program('crun')}"
    docker.says(ODD)
    await docker.registration.register()
    assert await docker.registration.register(before="crun")
    assert docker.settings()["runtimes"]["pannier"] == {"path": f"{PROGRAM}-crun"}
    assert await docker.registration.register(before="runc")
    assert docker.settings()["runtimes"]["pannier"] == {"path": str(PROGRAM)}
    assert docker.installed == {
        PROGRAM: None,
        Path(f"{PROGRAM}-crun"): str(docker.folder / "crun"),
    }
    await docker.registration.unregister()
    assert docker.now() == ODD


@pytest.mark.parametrize(
    "features",
    ["", "[]", "{}", '{"linux": {"seccomp": {"enabled": false, "actions": ["SCMP_ACT_NOTIFY"]}}}'],
)
async def test_a_runtime_that_would_not_hold_sync_calls_is_refused(
    docker: Docker, features: str
) -> None:
    """As Kata, whose processes are in a virtual machine."""
    docker.features_text = features
    text = json.dumps({"runtimes": {"kata": {"path": docker.program("kata")}}})
    docker.says(text)
    with pytest.raises(InvalidInput, match="SCMP_ACT_NOTIFY"):
        await docker.registration.register(before="kata")
    assert docker.now() == text


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (None, NotFound),
        ({"path": "/nowhere/gpu"}, NotFound),
        ({"runtimeType": "io.containerd.kata.v2"}, InvalidInput),
        ({"path": "/bin/sh", "runtimeArgs": ["-x"]}, InvalidInput),
    ],
)
async def test_a_runtime_that_is_no_program_is_refused(
    docker: Docker, how: object, error: type[Exception]
) -> None:
    text = json.dumps({"runtimes": {"gpu": how}} if how else {})
    docker.says(text)
    with pytest.raises(error):
        await docker.registration.register(before="gpu")
    assert docker.now() == text


async def test_refresh_registers_nothing_by_itself(docker: Docker) -> None:
    docker.says(ODD)
    await docker.registration.refresh()
    docker.there = False
    await docker.registration.refresh()
    assert docker.now() == ODD
    assert not docker.installed


# -- what the daemon reads --------------------------------------------------------------------------


def test_the_daemon_reads_flags_of_the_engine_that_runs(docker: Docker) -> None:
    docker.says('{"default-runtime": "pannier"}')
    pid_file = docker.folder / "pid"
    assert configured_default(file=docker.file, pid_file=pid_file) == "pannier"
    command = "exec -a dockerd bash -c read dockerd --default-runtime gpu"
    with subprocess.Popen(["bash", "-c", command], stdin=subprocess.PIPE) as dockerd:
        pid_file.write_text(str(dockerd.pid))
        arguments = Path(f"/proc/{dockerd.pid}/cmdline")
        while not arguments.read_bytes().startswith(b"dockerd"):
            time.sleep(0.001)
        assert configured_default(file=docker.file, pid_file=pid_file) == "gpu"
        dockerd.communicate(b"\n")
    pid_file.write_text(str(os.getpid()))  # a number that another program has by now
    assert configured_default(file=docker.file, pid_file=pid_file) == "pannier"
