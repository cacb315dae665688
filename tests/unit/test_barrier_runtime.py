"""pannier-runtime: which bundles it touches, what it puts into them, and that all else is runc's.

Run for real, with a stand-in for runc that writes down what it was asked and what was in the bundle.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from pannier.runtime.edit import RefusedError, add_barrier, held_volumes

SOCKET = "/run/pannier/barrier.sock"
SYNC = ["fsync", "fdatasync", "sync", "syncfs", "msync"]
IO_URING = ["io_uring_setup", "io_uring_enter", "io_uring_register"]
WAIT = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
_RUNC = """#!/bin/sh
if [ "$1" = features ]; then
  echo '{features}'
  exit
fi
for word; do echo "$word"; done >{record}
exit 7
"""


@dataclass
class Host:
    """A host with a held volume ``one`` and another ``loose``."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "held").mkdir()
        (self.folder / "held/one").touch()
        self.install()

    @property
    def mounts(self) -> Path:
        return self.folder / "pannier/mounts"

    def install(
        self, features: str = "{}", python: str = sys.executable, following: str = ""
    ) -> None:
        """Put the runtime there, with this host's paths instead of a real one's."""
        changes = {
            "/usr/sbin/runc": str(self.folder / "runc"),
            "/run/pannier/barrier/held": str(self.folder / "held"),
            "/var/lib/pannier/mounts": str(self.mounts),
            "@PYTHON@": python,
            "@NEXT@": shlex.quote(following),
            "@EDIT@": str(self.folder / "edit.py"),
        }
        for name in ("pannier-runtime.sh", "edit.py"):
            text = resources.files("pannier.runtime").joinpath(name).read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            (self.folder / name).write_text(text)
        runc = self.folder / "runc"
        runc.write_text(_RUNC.format(features=features, record=self.folder / "record"))
        runc.chmod(0o755)

    def bundle(self, *sources: str, **more: Any) -> Path:
        """A bundle that mounts ``sources``."""
        bundle = self.folder / "a bundle"
        bundle.mkdir(exist_ok=True)
        mounts = [{"destination": f"/{n}", "source": s} for n, s in enumerate(sources)]
        config = {"ociVersion": "1.0.2", "mounts": mounts, "linux": {}, **more}
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def config(self) -> Any:
        return json.loads((self.folder / "a bundle/config.json").read_text())

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Call the runtime; runc ends with 7."""
        (self.folder / "record").unlink(missing_ok=True)
        command = ["sh", str(self.folder / "pannier-runtime.sh"), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd or self.folder
        )

    def asked_of_runc(self) -> list[str]:
        return (self.folder / "record").read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# -- the script ------------------------------------------------------------------------------------

LIKE_CONTAINERD = ("--root", "/run/x", "--log", "/dev/null", "--log-format", "json")


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--bundle", "BUNDLE", "--pid-file", "/x", "id"),
        (*LIKE_CONTAINERD, "create", "--bundle", "BUNDLE", "id"),
        ("--systemd-cgroup", "--root=/run/x", "create", "--bundle=BUNDLE", "id"),
        ("--debug", "create", "-b", "BUNDLE", "id"),
        ("run", "--detach", "-b=BUNDLE", "id"),
        ("run", "--bundle", "BUNDLE", "id"),
    ],
)
def test_a_container_of_a_held_volume_gets_the_barrier(host: Host, words: tuple[str, ...]) -> None:
    bundle = host.bundle(f"{host.mounts}/one")
    words = tuple(word.replace("BUNDLE", str(bundle)) for word in words)
    assert host.run(*words).returncode == 7
    assert host.asked_of_runc() == list(words)
    seccomp = host.config()["linux"]["seccomp"]
    assert seccomp["listenerPath"] == SOCKET
    assert json.loads(seccomp["listenerMetadata"]) == {"volumes": ["one"]}


def test_the_bundle_is_the_working_directory_where_none_is_named(host: Host) -> None:
    bundle = host.bundle(f"{host.mounts}/one")
    assert host.run("create", "id", cwd=bundle).returncode == 7
    assert "seccomp" in host.config()["linux"]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--version",),
        ("features",),
        ("--root", "create", "list"),
        ("--root", "/x", "start", "id"),
        ("exec", "--process", "p.json", "id"),
        ("exec", "id", "create", "--bundle", "BUNDLE"),
        ("delete", "--force", "id"),
        ("create", "--bundle", "/nowhere", "id"),
    ],
)
def test_whatever_else_is_left_to_runc(host: Host, words: tuple[str, ...]) -> None:
    bundle = host.bundle(f"{host.mounts}/one")
    before = host.config()
    words = tuple(word.replace("BUNDLE", str(bundle)) for word in words)
    host.run(*words, cwd=bundle)
    if words[:1] != ("features",):
        assert host.asked_of_runc() == list(words)
    assert host.config() == before


@pytest.mark.parametrize(
    "source", ["/srv", "/pannier/mounts/one", "{mounts}", "{mounts}/loose", "{mounts}/on"]
)
def test_a_bundle_without_a_held_volume_is_not_touched(host: Host, source: str) -> None:
    bundle = host.bundle(source.format(mounts=host.mounts))
    inode = (bundle / "config.json").stat().st_ino
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert (bundle / "config.json").stat().st_ino == inode
    assert host.asked_of_runc()[0] == "create"


@pytest.mark.parametrize(
    "text",
    [
        '{"/pannier/mounts/',
        '"/pannier/mounts/"',
        '["/pannier/mounts/"]',
        '{"mounts": "/pannier/mounts/"}',
        '{"mounts": ["/pannier/mounts/"]}',
        '{"mounts": [{"source": ["/pannier/mounts/"]}]}',
    ],
)
def test_a_bundle_that_nobody_understands_is_runcs_to_refuse(host: Host, text: str) -> None:
    bundle = host.bundle()
    (bundle / "config.json").write_text(text)
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert (bundle / "config.json").read_text() == text


def test_nothing_is_started_while_no_volume_is_held(host: Host) -> None:
    """Not even the interpreter has to be there."""
    (host.folder / "held/one").unlink()
    host.install(python="/nowhere/python")
    bundle = host.bundle(f"{host.mounts}/one")
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert "seccomp" not in host.config()["linux"]


def test_a_container_that_cannot_be_held_is_refused_where_docker_reads_it(host: Host) -> None:
    own = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/other.sock"}
    bundle = host.bundle(f"{host.mounts}/one", linux={"seccomp": own})
    log = host.folder / "log.json"
    done = host.run("--log", str(log), "--log-format", "json", "create", "-b", str(bundle), "id")
    assert done.returncode == 1
    assert not (host.folder / "record").exists()
    assert "volume one" in done.stderr
    assert "/run/other.sock" in done.stderr
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", done.stderr.strip())
    assert host.config()["linux"]["seccomp"] == own


def test_the_same_bundle_may_be_created_again(host: Host) -> None:
    bundle = host.bundle(f"{host.mounts}/one", linux={"seccomp": _docker_profile()})
    host.run("create", "--bundle", str(bundle), "id")
    first = host.config()
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert host.config() == first
    assert [path.name for path in bundle.iterdir()] == ["config.json"]


def test_runcs_features_decide_on_flags(host: Host) -> None:
    features = {"linux": {"seccomp": {"supportedFlags": [WAIT]}}}
    host.install(features=json.dumps(features))
    bundle = host.bundle(f"{host.mounts}/one")
    host.run("create", "--bundle", str(bundle), "id")
    assert host.config()["linux"]["seccomp"]["flags"] == [WAIT]


@pytest.mark.parametrize("held", [True, False])
def test_it_goes_before_another_runtime(host: Host, held: bool) -> None:
    """That one gets the same words, and is asked for its features."""
    features = {"linux": {"seccomp": {"supportedFlags": [WAIT]}}}
    (host.folder / "of others").mkdir()
    other = host.folder / "of others/runtime"
    host.install(features=json.dumps(features), following=str(other))
    (host.folder / "runc").rename(other)
    bundle = host.bundle(f"{host.mounts}/{'one' if held else 'loose'}")
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert host.asked_of_runc() == ["create", "--bundle", str(bundle), "id"]
    seccomp = host.config()["linux"].get("seccomp", {})
    assert seccomp.get("flags") == ([WAIT] if held else None)


# -- the edit --------------------------------------------------------------------------------------


def _docker_profile() -> dict[str, Any]:
    """The shape of Docker's default profile, as it is in a bundle."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", *SYNC, *IO_URING, "write"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }


def edited(seccomp: Any, *, features: Any = None, machine: str = "x86_64") -> Any:
    config = {"linux": {"seccomp": copy.deepcopy(seccomp)}} if seccomp else {}
    add_barrier(config, ["one"], machine=machine, features=features or {})
    return config["linux"]["seccomp"]


def actions(seccomp: Any) -> dict[str, list[str]]:
    """The rules' actions by call."""
    found: dict[str, list[str]] = {}
    for rule in seccomp["syscalls"]:
        for name in rule["names"]:
            found.setdefault(name, []).append(rule["action"])
    return found


@pytest.mark.parametrize("seccomp", [None, {}, _docker_profile()], ids=["none", "empty", "docker"])
def test_each_call_has_one_rule(seccomp: Any) -> None:
    after = edited(seccomp)
    found = actions(after)
    assert {name: found[name] for name in SYNC} == {name: ["SCMP_ACT_NOTIFY"] for name in SYNC}
    assert {name: found[name] for name in IO_URING} == {
        name: ["SCMP_ACT_ERRNO"] for name in IO_URING
    }
    assert [rule["errnoRet"] for rule in after["syscalls"] if "errnoRet" in rule] == [38]


def test_without_a_profile_everything_else_stays_allowed() -> None:
    """Also to 32-bit programs, which a filter without their architecture would kill."""
    after = edited(None)
    assert after["defaultAction"] == "SCMP_ACT_ALLOW"
    assert after["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert set(actions(after)) == {*SYNC, *IO_URING}


def test_a_profile_keeps_its_other_rules_and_architectures() -> None:
    before = _docker_profile()
    after = edited(before)
    assert after["defaultAction"] == before["defaultAction"]
    assert after["architectures"] == before["architectures"]
    assert actions(after)["read"] == actions(after)["write"] == ["SCMP_ACT_ALLOW"]
    assert before["syscalls"][1] in after["syscalls"]


def test_the_native_architecture_is_added_where_it_is_missing() -> None:
    profile = {**_docker_profile(), "architectures": ["SCMP_ARCH_X86"]}
    assert edited(profile)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert edited(None, machine="aarch64")["architectures"][0] == "SCMP_ARCH_AARCH64"
    with pytest.raises(RefusedError, match="riscv64"):
        edited(None, machine="riscv64")


def test_what_a_profile_refuses_stays_refused() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sync", "syncfs"], "action": "SCMP_ACT_ERRNO"}],
    }
    found = actions(edited(profile))
    assert found["sync"] == found["syncfs"] == ["SCMP_ACT_ERRNO"]
    assert found["fsync"] == ["SCMP_ACT_NOTIFY"]
    strict = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["fsync"], "action": "SCMP_ACT_LOG"}],
    }
    found = actions(edited(strict))
    assert [name for name in SYNC if name in found] == ["fsync"]


@pytest.mark.parametrize("features", [{}, {"linux": None}, {"linux": {"seccomp": {}}}])
def test_flags_that_runc_does_not_know_are_not_used(features: Any) -> None:
    assert "flags" not in edited(_docker_profile(), features=features)
    log = {**_docker_profile(), "flags": ["SECCOMP_FILTER_FLAG_LOG"]}
    assert edited(log, features=features)["flags"] == ["SECCOMP_FILTER_FLAG_LOG"]


def test_a_volume_is_found_by_what_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the volume's path or one below it, by a link to it, and by name only where it is held."""
    from pannier.runtime import edit

    monkeypatch.setattr(edit, "MOUNT_ROOT", str(tmp_path / "mounts"))
    monkeypatch.setattr(edit, "HELD", str(tmp_path / "held"))
    for name in ("one", "two", "one-more"):
        (tmp_path / "mounts" / name).mkdir(parents=True)
    (tmp_path / "held").mkdir()
    for name in ("one", "two"):
        (tmp_path / "held" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "mounts/two")

    def found(*sources: str) -> list[str]:
        return held_volumes({"mounts": [{"source": source} for source in sources]})

    top = f"{tmp_path}/mounts"
    assert found(f"{top}/one") == found(f"{top}/one/below") == ["one"]
    assert found(f"{top}/two", "proc", f"{top}/one", f"{top}/one") == ["one", "two"]
    assert found(f"{tmp_path}/link") == ["two"]
    assert found(f"{top}/one-more", "tmpfs", top, "/", os.fspath(tmp_path)) == []
