"""pannier-runtime: which bundles it touches, what it puts into them, and that all else is runc's.

Run for real, with a stand-in for runc that writes down what it was asked and what was in the bundle.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runtime_host import Host

from pannier.runtime.bundle import BundleVolumes, RefusedError
from pannier.runtime.seccomp import add_barrier

SOCKET = "/run/pannier/barrier.sock"
SYNC = ["fsync", "fdatasync", "sync", "syncfs", "msync"]
IO_URING = ["io_uring_setup", "io_uring_enter", "io_uring_register"]
WAIT = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


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
    assert json.loads(seccomp["listenerMetadata"]) == {"volumes": ["one"], "passing": False}


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


@pytest.mark.parametrize("source", ["/srv", "/pannier/mounts/one", "{mounts}/loose", "{mounts}/on"])
def test_a_bundle_without_a_held_volume_is_not_touched(host: Host, source: str) -> None:
    bundle = host.bundle(source.format(mounts=host.mounts))
    inode = (bundle / "config.json").stat().st_ino
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert (bundle / "config.json").stat().st_ino == inode
    assert host.asked_of_runc()[0] == "create"


@pytest.mark.parametrize(
    "text",
    [
        '{"mounts": [{"source": "/srv"}]',
        '[{"source": "/srv"}]',
        '{"mounts": {"source": "/srv"}}',
        '{"mounts": [["source"]], "source": ""}',
        '{"mounts": [{"source": ["/srv"]}]}',
        '{"mounts": [{"type": "bind"}], "source": ""}',
    ],
)
def test_a_bundle_that_cannot_be_examined_is_refused(host: Host, text: str) -> None:
    """It may have a volume of ours, and what is not held would be lost without a word."""
    bundle = host.bundle()
    (bundle / "config.json").write_text(text)
    done = host.run("create", "--bundle", str(bundle), "id")
    assert done.returncode == 1
    assert "cannot be examined" in done.stderr
    assert (bundle / "config.json").read_text() == text
    assert not (host.folder / "record").exists()


def test_nothing_is_started_on_a_machine_without_volumes(host: Host) -> None:
    """Not even the interpreter has to be there."""
    (host.folder / "held/one").unlink()
    host.install(python="/nowhere/python")
    bundle = host.bundle(f"{host.mounts}/one")
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert "seccomp" not in host.config()["linux"]


ID = "5f" * 32
DOCKERS_OWN = (
    "proc",
    "tmpfs",
    "devpts",
    "sysfs",
    "cgroup",
    "mqueue",
    "shm",
    *(f"/data/docker/containers/{ID}/{name}" for name in ("hostname", "hosts", "resolv.conf")),
)


def test_what_docker_puts_into_every_container_needs_no_program_of_ours(host: Host) -> None:
    """So such a container starts as fast as with runc alone, and also where Pannier is damaged."""
    host.install(python="/nowhere/python")
    bundle = host.bundle(*DOCKERS_OWN, bundle=ID)
    assert host.run("create", "--bundle", str(bundle), ID).returncode == 7
    assert host.asked_of_runc()[0] == "create"


@pytest.mark.parametrize(
    "source",
    [
        "/srv",
        "/data/docker/containers/" + "6f" * 32 + "/hosts",
        f"/data/docker/containers/{ID}/hosts/x",
        "tmpfs/x",
        'proc","',
        "a\nb",
    ],
)
def test_whatever_else_is_not_started_without_a_look(host: Host, source: str) -> None:
    host.install(python="/nowhere/python")
    bundle, log = host.bundle(*DOCKERS_OWN, source, bundle=ID), host.folder / "log"
    done = host.run("--log", str(log), "create", "--bundle", str(bundle), ID)
    assert done.returncode == 1
    assert "install Pannier again" in done.stderr
    assert json.loads(log.read_text())["msg"] == done.stderr.strip()


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


def test_the_script_of_an_earlier_version_still_works(host: Host) -> None:
    """The package is new, and nobody has installed its script yet."""
    bundle = host.bundle(f"{host.mounts}/one")
    script = [sys.executable, "-I", "-S", f"{host.folder}/pannier/runtime/edit.py", "{}"]
    command = [*script, f"{host.folder}/runc", str(bundle), "create", "-b", str(bundle), "id"]
    assert subprocess.run(command, check=False).returncode == 7
    assert host.asked_of_runc() == ["create", "-b", str(bundle), "id"]
    assert host.barrier()["volumes"] == ["one"]


def test_a_container_is_not_restored_past_the_barrier(host: Host) -> None:
    """Its processes would have the filters of the checkpoint, whose listener is gone."""
    words = ("restore", "--image-path", "/x", "--bundle")
    assert host.run(*words, str(host.bundle(f"{host.mounts}/one")), "id").returncode == 1
    assert host.run(*words, str(host.bundle("/srv")), "id").returncode == 7


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


def edited(
    seccomp: Any, *, features: Any = None, machine: str = "x86_64", refuses: bool = False
) -> Any:
    config = {"linux": {"seccomp": copy.deepcopy(seccomp)}} if seccomp else {}
    add_barrier(
        config,
        BundleVolumes(["one"], passing=False, refuses=refuses),
        machine=machine,
        features=features or {},
    )
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


# -- what is refused where a volume asks for it ----------------------------------------------------

PAST = ["openat2", "pwritev2", "io_setup"]


def outcome(seccomp: Any, name: str, *arguments: int) -> str | int:
    """What a filter says to a call: "allowed", "waits", or the errno; each call has to have one answer."""
    said = {
        _said(rule["action"], rule.get("errnoRet", 1))
        for rule in seccomp["syscalls"]
        if name in rule["names"] and all(_fits(each, arguments) for each in rule.get("args") or ())
    }
    (answer,) = said or {_said(seccomp["defaultAction"], 1)}
    return answer


def _fits(condition: Any, arguments: tuple[int, ...]) -> bool:
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    return bool(arguments[condition["index"]] & condition["value"] == condition["valueTwo"])


def _said(action: str, error: int) -> str | int:
    return {"SCMP_ACT_ALLOW": "allowed", "SCMP_ACT_NOTIFY": "waits"}.get(action, error)


def _profile_with_opening() -> dict[str, Any]:
    profile = _docker_profile()
    profile["syscalls"][0]["names"] += ["open", "openat", "open_by_handle_at", *PAST]
    return profile


@pytest.mark.parametrize("seccomp", [None, _profile_with_opening()], ids=["none", "docker"])
def test_what_would_be_past_the_barrier_is_refused_where_a_volume_asks(seccomp: Any) -> None:
    plain, strict = edited(seccomp), edited(seccomp, refuses=True)
    for flag in (os.O_SYNC, os.O_DSYNC, os.O_SYNC | os.O_CREAT | os.O_RDWR, os.O_DSYNC | 1 << 40):
        for call in (("open", 0, flag), ("openat", 0, 0, flag), ("open_by_handle_at", 0, 0, flag)):
            assert (outcome(plain, *call), outcome(strict, *call)) == ("allowed", errno.EINVAL)
    every_other = ~os.O_DSYNC
    for call in (("open", 0, every_other), ("openat", os.O_SYNC, os.O_SYNC, every_other)):
        assert outcome(strict, *call) == "allowed"
    for name in PAST:
        assert (outcome(plain, name), outcome(strict, name)) == ("allowed", errno.ENOSYS)
    assert outcome(strict, "fsync") == "waits"
    assert outcome(strict, "read") == "allowed"


def test_a_call_that_a_profile_refuses_stays_refused_with_its_own_error() -> None:
    lenient = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    }
    after = edited(lenient, refuses=True)
    assert outcome(after, "open", 0, os.O_SYNC) == outcome(after, "open", 0, 0) == 13
    strict = edited(_docker_profile(), refuses=True)  # it names none of them
    assert outcome(strict, "openat", 0, 0, 0) == outcome(strict, "openat", 0, 0, os.O_SYNC) == 1


@pytest.mark.parametrize("action", ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"])
def test_a_profile_with_conditions_of_its_own_on_opening_is_refused(action: str) -> None:
    """Two sets of conditions on a call are none that anybody can foresee."""
    condition = {"index": 2, "value": os.O_DIRECT, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    profile = _docker_profile()
    profile["syscalls"].append({"names": ["openat"], "action": action, "args": [condition]})
    with pytest.raises(RefusedError, match="conditions on openat"):
        edited(profile, refuses=True)
    assert edited(profile)["listenerPath"] == SOCKET


@pytest.mark.parametrize("profile", [None, _profile_with_opening()], ids=["none", "docker"])
def test_a_container_is_refused_what_one_of_its_volumes_asks_for(host: Host, profile: Any) -> None:
    """Also if its bundle is created twice. Other containers are refused nothing."""
    linux = {"seccomp": profile} if profile else {}
    for mark, refused in (("", False), ("warn", False), ("refuse", True)):
        (host.folder / "held/on").write_text(mark)
        bundle = host.bundle(f"{host.mounts}/one", f"{host.mounts}/on", linux=linux)
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        first = host.config()
        found = outcome(first["linux"]["seccomp"], "openat", 0, 0, os.O_SYNC)
        assert found == (errno.EINVAL if refused else "allowed")
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        assert host.config() == first
    other = host.bundle(f"{host.mounts}/one")
    assert host.run("create", "--bundle", str(other), "id").returncode == 7
    assert outcome(host.config()["linux"]["seccomp"], "openat", 0, 0, os.O_SYNC) == "allowed"


# -- what is mounted -------------------------------------------------------------------------------


def test_a_link_to_a_volume_is_the_volume(host: Host) -> None:
    (host.folder / "link").symlink_to(host.mounts / "one")
    bundle = host.bundle(f"{host.folder}/link")
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
    assert host.barrier() == {"volumes": ["one"], "passing": False}


def test_the_directory_of_volumes_may_be_a_link(host: Host) -> None:
    """As of somebody who has put all of it on a larger disk."""
    (host.folder / "state").rename(host.folder / "larger")
    (host.folder / "state").symlink_to(host.folder / "larger")
    for path in (host.mounts, host.folder / "larger/mounts"):
        bundle = host.bundle(f"{path}/one/below")
        (path / "one/below").mkdir(exist_ok=True)
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        assert host.barrier() == {"volumes": ["one"], "passing": False}


@pytest.mark.parametrize("options", [("rbind",), ("rbind", "rslave")])
def test_who_mounts_a_directory_above_sees_volumes_come_and_go(
    host: Host, options: tuple[str, ...]
) -> None:
    for source in ("/", str(host.folder), str(host.mounts)):
        bundle = host.bundle(source, options=options)
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        assert host.barrier() == {"volumes": [], "passing": True}


def test_before_any_volume_is_held_only_what_is_passed_on_matters(host: Host) -> None:
    host.know("one")
    (host.folder / "held/one").unlink()
    for options, held in (("rbind",), False), (("rbind", "rslave"), True):
        bundle = host.bundle(str(host.folder), options=options)
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        assert ("seccomp" in host.config()["linux"]) is held


# -- local volumes that hide ours ------------------------------------------------------------------


@pytest.mark.parametrize("top", ["docker", "data"])
def test_a_local_volume_with_the_name_of_one_of_ours_is_refused(host: Host, top: str) -> None:
    """Also while the daemon is down, and nothing is held: what was saved last counts."""
    (host.folder / "held/one").unlink()
    host.know("pg")
    local = host.folder / top / "volumes/pg/_data"
    local.mkdir(parents=True)
    (host.folder / "docker/volumes").mkdir(parents=True, exist_ok=True)
    own = f"{host.folder}/{top}/containers/{ID}/hosts"
    bundle = host.bundle(own, str(local), bundle=ID)
    done = host.run("create", "--bundle", str(bundle), ID)
    assert done.returncode == 1
    assert "local volume" in done.stderr
    assert "docker volume rm pg" in done.stderr


def test_other_local_volumes_are_nobodys_affair(host: Host) -> None:
    host.know("pg")
    for name in ("pg-2", "p"):
        local = host.folder / "docker/volumes" / name / "_data"
        local.mkdir(parents=True)
        bundle = host.bundle(str(local))
        assert host.run("create", "--bundle", str(bundle), "id").returncode == 7
        assert "seccomp" not in host.config()["linux"]


def test_a_local_volume_is_refused_while_the_names_cannot_be_read(host: Host) -> None:
    local = host.folder / "docker/volumes/pg/_data"
    local.mkdir(parents=True)
    (host.folder / "catalog.json").write_text("{")
    bundle = host.bundle(str(local))
    assert host.run("create", "--bundle", str(bundle), "id").returncode == 1
    other = host.bundle("/srv")
    assert host.run("create", "--bundle", str(other), "id").returncode == 7
