"""Sync calls of unmodified containers, held by the real runtime, kernel, engine and systemd.

On both engines. The strategy is the test's own: it sleeps or refuses as told, so that no test
depends on how volumes are replicated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import java_image
import pytest
from barrier_world import MOUNTS, Box
from cluster_world import IMAGE

from pannier.lab import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

PROGRAMS = Path(__file__).parent / "programs"
HELD_SECONDS = 0.4
EVERY = ("fsync", "fdatasync", "sync", "syncfs", "directory", "msync", "i386")


@pytest.fixture(params=["node1", "node2"], ids=["docker20", "docker26"])
def box(barrier_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Box]:
    box = Box(barrier_lab, request.param)
    box.clean()
    yield box
    box.clean()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--security-opt=seccomp=unconfined",),
        ("--privileged",),
        ("--security-opt=no-new-privileges", "--cap-drop=ALL", "--read-only"),
    ],
    ids=["plain", "unconfined", "privileged", "confined"],
)
def test_every_sync_call_waits(box: Box, flags: tuple[str, ...]) -> None:
    box.tell("seconds", str(HELD_SECONDS))
    calls = box.call(*EVERY, "io_uring", flags=flags)
    for word in EVERY:
        assert calls.seconds(word) >= HELD_SECONDS, calls
    assert len(box.groups()) == len(EVERY)
    assert calls.error("io_uring") == "ENOSYS"


@pytest.mark.parametrize("script", ["python3 commits.py", "bash puts.sh", "bash syncs.sh", "java"])
@pytest.mark.parametrize(
    "box",
    [
        pytest.param("node1", id="docker20", marks=pytest.mark.faults),
        pytest.param("node2", id="docker26"),
    ],
    indirect=True,
)
def test_what_programs_commit_waits(box: Box, script: str) -> None:
    """SQLite, etcd, the shell's sync and Java's FileChannel, as they are."""
    box.tell("seconds", str(HELD_SECONDS))
    if script == "java":
        took = box.commit(*java_image.COMMAND, "/one", "6", image=java_image.TAG)
    else:
        language, name = script.split()
        box.put(f"/opt/test/{name}", (PROGRAMS / name).read_text())
        took = box.commit(f"/usr/bin/{language}", f"/opt/test/{name}", "/one", "6")
    assert len(took) == 6
    assert min(took) >= HELD_SECONDS, took
    assert len(box.groups()) >= 6


def test_what_no_held_volume_needs_goes_on_at_once(box: Box) -> None:
    box.tell("refuse")  # what waits, waits for ever
    elsewhere = ("fsync:/tmp", "fsync:/dev/shm", "fsync:/loose", "msync-async", "syncfs:/loose")
    calls = box.call(*elsewhere, "pipe", "closed", volumes=("one", "loose"))
    for word in elsewhere:
        assert calls.seconds(word) >= 0
    assert (calls.error("pipe"), calls.error("closed")) == ("EINVAL", "EBADF")


def test_another_container_is_not_touched(box: Box) -> None:
    """It has the filter that Docker gave it, and no listener."""
    box.tell("refuse")
    assert box.call("fsync:/loose", volumes=("loose",)).seconds("fsync:/loose") >= 0
    name = box.sh(f"docker run -d --network=none -v{MOUNTS}/loose:/loose {IMAGE} sleep 600")
    bundle = f"/run/containerd/io.containerd.runtime.v2.task/moby/{name.strip()}/config.json"
    assert "listenerPath" not in box.sh(f"cat {bundle}")
    assert box.stored() == 0


def test_a_process_that_is_execd_into_it_waits_too(box: Box) -> None:
    name = box.sleeper()
    box.tell("seconds", str(HELD_SECONDS))
    for flags in ((), ("--privileged",)):
        command = ["docker", "exec", *flags, name, "sync", "/one"]
        before = len(box.groups())
        box.sh(" ".join(command))
        assert len(box.groups()) == before + 1
    box.wait_until("its listener has ended", lambda: box.stored() == 1)
    assert len(box.state()["containers"]) == 1


def test_a_call_waits_for_the_volumes_that_it_concerns(box: Box) -> None:
    box.call("fsync:/one", "fsync:/two", "sync", volumes=("one", "two", "loose"))
    assert box.groups()[:2] == ["one 1 fsync", "two 1 fsync"]
    assert sorted(box.groups()[2:]) == ["one 1 sync", "two 1 sync"]


def test_calls_that_wait_together_are_one_group(box: Box) -> None:
    box.tell("refuse")
    first = box.calling("threads:4")
    second = box.calling("threads:3")
    box.wait_for_calls(7)
    box.take_back("refuse")
    assert len(first.result().made) + len(second.result().made) == 7
    assert box.groups() == ["one 7 fsync"]


def test_a_caller_that_is_killed_delays_nobody(box: Box) -> None:
    box.tell("refuse")
    other = box.calling("fsync")
    box.wait_for_calls(1)
    name = box.sleeper()
    box.sh(f"docker exec -d {name} sync /one")
    box.wait_for_calls(2)
    box.sh(f"docker kill {name}")
    box.wait_for_calls(1)
    box.take_back("refuse")
    other.result().seconds("fsync")
    assert box.groups() == ["one 1 fsync"]


# -- signals ---------------------------------------------------------------------------------------


def test_a_caller_with_a_fast_timer_gets_on(box: Box) -> None:
    """Its call lives for 10 ms at most, a group takes 50: it must not begin anew for ever."""
    box.tell("seconds", "0.05")
    box.tell("unchanged")
    calls = box.call("timer", "fsync", "sync", "msync")
    for word in ("fsync", "sync", "msync"):
        assert calls.seconds(word) >= 0.05


def test_a_restarted_call_needs_a_volume_without_changes(box: Box) -> None:
    box.tell("seconds", "0.05")
    caller = box.calling("timer", "fsync")
    box.wait_until("some groups are done", lambda: len(box.groups()) >= 10)
    assert not caller.done()
    box.tell("unchanged")
    caller.result().seconds("fsync")


def test_a_paused_container_goes_on_waiting(box: Box) -> None:
    """The freezer withdraws the call, and the kernel restarts it."""
    box.tell("refuse")
    caller = box.calling("fsync", "fsync:/tmp")
    box.wait_for_calls(1)
    name = box.sh("docker ps -q").strip()
    box.sh(f"docker pause {name}; sleep 0.2; docker unpause {name}")
    box.wait_for_calls(1)
    assert not caller.done()
    box.take_back("refuse")
    caller.result().seconds("fsync")


# -- the daemon ends and comes back ------------------------------------------------------------------


def test_waiting_calls_outlast_the_daemon(box: Box) -> None:
    """However it ends: no call fails, none is let go, and all are made durable afterwards."""
    box.tell("refuse")
    callers = [box.calling("threads:3", "fdatasync"), box.calling("fsync")]
    box.wait_for_calls(4)
    for end in (box.kill, lambda: box.sh("systemctl restart pannierd"), box.kill):
        end()
        box.wait_until_it_runs()
        box.wait_for_calls(4)
        assert not any(caller.done() for caller in callers)
        assert len(box.state()["containers"]) == 2
    box.take_back("refuse")
    made = [call for caller in callers for call in caller.result().made]
    assert [how for _word, _took, how in made] == ["ok"] * 5
    assert box.groups()[0] == "one 4 unknown"


def test_containers_start_and_sync_while_the_daemon_is_away(box: Box) -> None:
    """Their listeners wait in the socket, and their calls in the kernel."""
    box.tell("refuse")
    box.sh("systemctl kill --kill-who=main -s STOP pannierd")
    name = box.sleeper()
    caller = box.calling("fsync")
    running = f"docker top {name}; docker ps -q | wc -l"
    box.wait_until("both run", lambda: box.sh(running).split()[-1] == "2")
    box.kill()
    box.wait_for_calls(1)
    box.take_back("refuse")
    caller.result().seconds("fsync")


def test_a_container_that_ended_meanwhile_is_forgotten(box: Box) -> None:
    box.tell("refuse")
    name = box.sleeper()
    box.sh(f"docker exec -d {name} sync /one")
    box.wait_for_calls(1)
    box.wait_until("systemd keeps both listeners", lambda: box.stored() == 2)
    box.sh("systemctl kill --kill-who=main -s STOP pannierd")
    box.sh(f"docker kill {name}")
    box.kill()
    box.wait_until("systemd keeps nothing", lambda: box.stored() == 0)
    box.wait_until("no file is left", lambda: not box.listeners())
    nothing = {"containers": [], "calls": 0, "oldest": 0.0}
    box.wait_until("the daemon knows of nothing", lambda: box.state() == nothing)


def test_ended_containers_leave_nothing(box: Box) -> None:
    for _ in range(3):
        box.call("fsync")
    box.wait_until("systemd keeps nothing", lambda: box.stored() == 0)
    assert box.listeners() == []


# -- mounts ----------------------------------------------------------------------------------------

ENGINE_FLAGS = (
    "--cap-add=SYS_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
)


def test_a_file_system_made_out_of_the_volume_counts_as_the_volume(box: Box) -> None:
    """As of containers in a container whose engine has its directory on a volume."""
    box.call("overlay", "own-tmpfs", flags=ENGINE_FLAGS)
    assert box.groups() == ["one 1 fsync"]


def test_a_part_of_a_volume_is_held(box: Box) -> None:
    """Mounted by its path or, by newer engines, as a volume's subpath."""
    box.sh(f"mkdir -p {MOUNTS}/one/part")
    sources = [f"type=bind,source={MOUNTS}/one/part"]
    if box.node == "node2":
        box.sh(f"docker volume create -o type=none -o o=bind -o device={MOUNTS}/one sub >/dev/null")
        sources.append("type=volume,source=sub,volume-subpath=part")
    for number, source in enumerate(sources, 1):
        box.sh(
            f"docker run --rm --network=none --mount {source},target=/part {IMAGE} "
            "sh -c 'echo x >/part/x; sync /part/x'"
        )
        assert len(box.groups()) == number, source


def test_every_way_to_a_volume_is_held(box: Box) -> None:
    """Whatever the path says: the device counts."""
    box.sh(
        f"mkdir -p {MOUNTS}/one/part; ln -sfn {MOUNTS}/one /root/link; "
        f"docker volume create -o type=none -o o=bind -o device={MOUNTS}/one/part bound >/dev/null"
    )
    ways = {
        "-v bound:/x": "/x",
        f"--volumes-from {box.sleeper()}": "/one",
        "-v /root/link:/x": "/x",
        "-v /pool/one/_data:/x": "/x",
        "-v /:/host": f"/host{MOUNTS}/one",
        "-v /var/lib:/x:rshared": f"/x{MOUNTS.removeprefix('/var/lib')}/one",
    }
    for number, (flags, path) in enumerate(ways.items(), 1):
        command = f"sh -c 'echo x >{path}/w; sync {path}/w'"
        box.sh(f"docker run --rm --network=none {flags} {IMAGE} {command}")
        assert len(box.groups()) == number, flags
    box.sh("docker volume rm bound >/dev/null; rm /root/link")


def test_what_has_nothing_of_ours_starts_where_pannier_is_damaged(box: Box) -> None:
    """And what may have something does not, with a reason."""
    program = box.sh("sed -n \"s/^edit='\\(.*\\)'$/\\1/p\" /usr/local/bin/pannier-runtime").strip()
    box.sh(f"mv {program} {program}.away")
    try:
        harmless = ("--tmpfs /t", "--network none", "--privileged", "--ipc private")
        box.sh("\n".join(f"docker run --rm {flags} {IMAGE} true" for flags in harmless))
        outcome = box.attempt("docker", "run", "--rm", "-v/srv:/srv", IMAGE, "true")
    finally:
        box.sh(f"mv {program}.away {program}")
    assert outcome.status != 0
    assert "install Pannier again" in outcome.text
    box.sh(f"docker run --rm -v /srv:/srv {IMAGE} true")


def test_a_volume_that_comes_after_the_container_is_held_where_it_sees_it(box: Box) -> None:
    name = box.sh(f"docker run -d --network=none -v /:/host:rslave {IMAGE} sleep 600").strip()
    box.sh(
        f"btrfs subvolume create /pool/late >/dev/null; mkdir -p {MOUNTS}/late; "
        f"mount --bind /pool/late {MOUNTS}/late; touch /run/pannier/barrier/held/late"
    )
    path = f"/host{MOUNTS}/late/x"
    box.sh(f"docker exec {name} sh -c 'echo x >{path}; sync {path}'")
    assert box.groups() == ["late 1 fsync"]
    box.sh(
        f"docker kill {name}; rm /run/pannier/barrier/held/late; umount {MOUNTS}/late; "
        f"btrfs subvolume delete /pool/late >/dev/null"
    )


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--privileged",)], ids=["plain", "privileged"])
def test_what_is_past_the_barrier_is_refused_where_a_volume_asks(
    box: Box, flags: tuple[str, ...]
) -> None:
    past = ("openat2", "pwritev2", "io_setup")
    plain = box.call("synchronous", *past, flags=flags)
    assert plain.seconds("synchronous") >= 0
    assert [plain.error(word) for word in past] == ["EINVAL", "EBADF", "EINVAL"]
    mark = "/run/pannier/barrier/held/two"
    box.sh(f"printf refuse >{mark}")
    try:
        strict = box.call("fsync:/two", "synchronous:/two", *past, flags=flags, volumes=("two",))
    finally:
        box.sh(f": >{mark}")
    assert strict.seconds("fsync:/two") >= 0
    assert strict.error("synchronous:/two") == "EINVAL"
    assert {strict.error(word) for word in past} == {"ENOSYS"}


def test_a_profile_with_a_listener_of_its_own_is_refused(box: Box) -> None:
    if box.node == "node1":
        pytest.skip("this engine drops the listener from a profile")
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/other.sock"}
    box.put("/root/profile.json", json.dumps(profile))
    command = ["docker", "run", "--rm", "--security-opt", "seccomp=/root/profile.json"]
    outcome = box.attempt(*command, f"-v{MOUNTS}/one:/one", IMAGE, "true")
    assert outcome.status != 0
    assert "volume one: its sync calls cannot be held" in outcome.text
    assert "/run/other.sock" in outcome.text
    free = box.attempt(*command[:3], f"-v{MOUNTS}/loose:/loose", IMAGE, "true")
    assert free.status == 0, free.text


def test_without_the_daemons_socket_a_container_does_not_start(box: Box) -> None:
    """Rather than with sync calls that nobody holds."""
    box.sh("systemctl stop pannierd-barrier.socket pannierd")
    outcome = box.attempt("docker", "run", "--rm", f"-v{MOUNTS}/one:/one", IMAGE, "true")
    assert outcome.status != 0
    assert "barrier.sock" in outcome.text
    assert box.attempt("docker", "run", "--rm", IMAGE, "true").status == 0
