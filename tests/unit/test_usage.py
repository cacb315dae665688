"""Who uses a directory: real processes in real mount namespaces, and a made-up /proc."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pannier.agent.mounts import MountTable
from pannier.agent.usage import Contact, User, users_of
from pannier.host.mountinfo import below, own_mounts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = needs_root


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for mount in reversed(own_mounts()):
        if below(mount.point, str(tmp_path)) is not None:
            subprocess.run(["umount", "-l", mount.point], check=False)
    subprocess.run(["chattr", "-R", "-i", str(tmp_path)], check=False, capture_output=True)


@pytest.fixture
def table(place: Path) -> MountTable:
    return MountTable(place / "mounts")


@pytest.fixture
def data(place: Path) -> Path:
    directory = place / "pool" / "my volume"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("content")
    return directory


Process = Callable[..., int]


@pytest.fixture
def process() -> Iterator[Process]:
    """Starts a shell that runs a script and then waits; returns its pid."""
    running: list[subprocess.Popen[bytes]] = []

    def start(script: str = ":", *, namespace: bool = False, cwd: Path = Path("/")) -> int:
        shell = ["sh", "-ec", f"{script}\necho ready; read _"]
        if namespace:
            shell = ["unshare", "-m", "--propagation", "private", *shell]
        child = subprocess.Popen(
            shell, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        running.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child.pid

    yield start
    for child in running:
        child.kill()
        child.communicate()


@pytest.fixture
def pids(table: MountTable, data: Path) -> Callable[[], list[int]]:
    return lambda: [user.pid for user in users_of([data], mount_root=table.root)]


Pids = Callable[[], list[int]]


# --- mounts in other namespaces ------------------------------------------------------------------


def test_nobody_uses_a_volume_that_is_only_mounted(
    table: MountTable, data: Path, pids: Pids
) -> None:
    assert pids() == []
    table.mount("v1", data)
    assert pids() == []


def test_a_container_uses_what_is_mounted_into_it(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids
) -> None:
    path = table.mount("v1", data)
    inside = place / "root fs"
    inside.mkdir()
    pid = process(f"mount --bind '{path}' '{inside}'", namespace=True)
    assert pids() == [pid]
    table.unmount("v1")  # the kernel does not mind, and the container writes on
    assert pids() == [pid]
    assert users_of([place / "elsewhere"], mount_root=table.root) == []


def test_a_subpath_is_a_use_and_a_neighbour_is_none(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids
) -> None:
    (place / "in").mkdir()
    neighbour = data.with_name(data.name + " too")
    neighbour.mkdir()
    process(f"mount --bind '{neighbour}' {place}/in", namespace=True)
    assert pids() == []
    pid = process(f"mount --bind '{data}/sub' {place}/in", namespace=True)
    assert pids() == [pid]


def test_all_processes_of_the_namespace_are_users(
    data: Path, place: Path, process: Process, pids: Pids
) -> None:
    (place / "in").mkdir()
    pid = process(f"mount --bind '{data}' {place}/in; sleep 1000 & ", namespace=True)
    found = pids()
    try:
        assert pid in found
        assert len(found) == 2
    finally:
        for other in set(found) - {pid}:
            os.kill(other, 9)


def test_a_copy_of_our_mount_is_no_use(
    table: MountTable, data: Path, process: Process, pids: Pids
) -> None:
    """systemd gives services with private mounts such a copy; it stays when we unmount."""
    path = table.mount("v1", data)
    process(namespace=True)
    process(f"umount '{path}'", namespace=True)
    assert pids() == []
    table.unmount("v1")
    assert pids() == []


def test_a_copy_in_a_container_that_sees_the_whole_host_is_no_use(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids
) -> None:
    """Monitoring containers run with ``-v /:/host``."""
    table.mount("v1", data)
    host = place / "host"
    host.mkdir()
    root = place / "rootfs"
    root.mkdir()
    script = f"mount -t tmpfs none {root}; mkdir {root}/host; mount --rbind / {root}/host"
    process(script, namespace=True)
    assert pids() == []


@pytest.mark.parametrize("through", ["mounts/v1", "pool/my volume"])
def test_an_open_file_through_a_copy_is_a_use(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids, through: str
) -> None:
    table.mount("v1", data)
    idle = process(namespace=True)
    pid = process(f"exec 7>>'{place / through}/file'", namespace=True)
    root = place / "rootfs"
    root.mkdir()
    far = f"{root}/host{place / through}"
    script = f"mount --bind {root} {root}; mkdir -p {root}/host; mount --rbind / {root}/host"
    other = process(f"{script}; cd '{far}'", namespace=True)
    assert pids() == sorted([pid, other])
    assert idle not in pids()


@pytest.mark.parametrize("through", ["mounts/v1", "pool/my volume"])
@pytest.mark.parametrize("namespace", [True, False])
@pytest.mark.parametrize(
    ("script", "looks_on"),
    [
        ("exec 7<'{}/file'", True),
        ("exec 7<'{}/sub'", True),
        ("exec 7<'{}/file' 8>>'{}/file'", False),
        ("exec 7<>'{}/file'", False),
        ("exec 7<'{}/file'; cd '{}'", False),
    ],
)
def test_who_has_files_open_for_reading_only_looks_on(
    table: MountTable, data: Path, place: Path, process: Process,
    through: str, namespace: bool, script: str, looks_on: bool,
) -> None:  # fmt: skip
    table.mount("v1", data)
    path = place / through
    pid = process(script.replace("{}", str(path)), namespace=namespace)
    (user,) = users_of([data], mount_root=table.root)
    assert (user.pid, user.contact is Contact.LOOKS_ON) == (pid, looks_on)


@pytest.mark.parametrize(("flags", "looks_on"), [("ro", True), ("rw", False)])
def test_who_works_in_a_mount_that_takes_no_writes_looks_on(
    table: MountTable, data: Path, place: Path, process: Process, flags: str, looks_on: bool
) -> None:
    """As rsync does in a container with ``-v /:/host:ro``."""
    path = table.mount("v1", data)
    pid = process(f"mount -o remount,bind,{flags} '{path}'; cd '{path}'", namespace=True)
    (user,) = users_of([data], mount_root=table.root)
    assert (user.pid, user.contact is Contact.LOOKS_ON) == (pid, looks_on)


def test_a_container_that_was_given_the_directory_for_reading_is_a_user(
    table: MountTable, data: Path, place: Path, process: Process
) -> None:
    path = table.mount("v1", data)
    inside = place / "in"
    inside.mkdir()
    script = (
        f"mount --bind '{path}' {inside}; mount -o remount,bind,ro {inside}; exec 7<{inside}/file"
    )
    process(script, namespace=True)
    (user,) = users_of([data], mount_root=table.root)
    assert user.contact is not Contact.LOOKS_ON


def test_a_use_is_seen_behind_a_process_with_another_root(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids
) -> None:
    """mountinfo shows a process only the mounts under its root; others of the namespace see more."""
    (place / "in").mkdir()
    root = place / "chroot"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    chroot = f"chroot '{root}' /bin/busybox sleep 1000 & "
    pid = process(f"mount --bind '{data}' {place}/in; {chroot}", namespace=True)
    found = pids()
    for other in set(found) - {pid}:
        os.kill(other, 9)
    assert pid in found


# --- processes of our own namespace --------------------------------------------------------------


@pytest.mark.parametrize("through", ["mounts/v1", "pool/my volume"])
@pytest.mark.parametrize(
    "script", ["exec 7<'{}/file'", "exec 7>>'{}/sub/new'", "cd '{}'", "cd '{}/sub'"]
)
def test_open_files_and_working_directories_count(
    table: MountTable, data: Path, place: Path, process: Process, pids: Pids,
    through: str, script: str,
) -> None:  # fmt: skip
    table.mount("v1", data)
    idle = process()
    pid = process(script.format(place / through))
    assert pids() == [pid]
    assert idle not in pids()


def test_a_program_and_a_root_in_the_volume_count(
    table: MountTable, data: Path, pids: Pids
) -> None:
    path = table.mount("v1", data)
    shutil.copy("/bin/busybox", data / "busybox")
    program = subprocess.Popen([path / "busybox", "sleep", "1000"], cwd="/")
    rooted = subprocess.Popen(["chroot", path, "/busybox", "sleep", "1000"], cwd="/")
    try:
        while os.readlink(f"/proc/{rooted.pid}/root") == "/":
            assert rooted.poll() is None
        assert pids() == sorted([program.pid, rooted.pid])
    finally:
        for child in (program, rooted):
            child.kill()
            child.wait()


def test_this_process_does_not_count_unless_told(table: MountTable, data: Path) -> None:
    with open(data / "file"):
        assert users_of([data], mount_root=table.root) == []
        (user,) = users_of([data], mount_root=table.root, ignore=())
    assert user.pid == os.getpid()
    assert user.container is None
    assert user.command


def test_mapped_files_count_when_asked_for(table: MountTable, data: Path) -> None:
    with open(data / "file", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with mapped:
        # Python keeps its own descriptor for a map, so both ways find it here.
        assert users_of([data], mount_root=table.root, ignore=(), maps=True)
    assert users_of([data], mount_root=table.root, ignore=(), maps=True) == []


def test_a_second_mount_on_the_node_itself_counts(
    table: MountTable, data: Path, place: Path
) -> None:
    """``docker cp`` mounts the volume beside the container while it copies."""
    path = table.mount("v1", data)
    side = place / "side"
    side.mkdir()
    subprocess.run(["mount", "--bind", str(path), str(side)], check=True)
    (user,) = users_of([data], mount_root=table.root)
    assert user == User(0, None, f"mount at {side}", Contact.WRITES, filtered=False)


def test_who_only_reads_from_outside_of_containers_cannot_write(
    table: MountTable, data: Path, process: Process
) -> None:
    path = table.mount("v1", data)
    (path / "x").touch()
    reader = process(cwd=path)
    writer = subprocess.Popen(["sleep", "60"], stdout=(path / "x").open("a"))
    try:
        found = {user.pid: user for user in users_of([data], mount_root=table.root)}
    finally:
        writer.kill()
        writer.wait()
    assert {pid: user.contact is Contact.WRITES for pid, user in found.items()} == {
        reader: False,
        writer.pid: True,
    }
    assert not found[writer.pid].filtered


def test_several_directories_and_missing_ones(
    table: MountTable, data: Path, place: Path, process: Process
) -> None:
    other = place / "pool" / "other"
    other.mkdir()
    one, two = process(cwd=data), process(cwd=other)
    found = users_of([data, other, place / "pool" / "gone"], mount_root=table.root)
    assert [user.pid for user in found] == sorted([one, two])


# --- a made-up /proc -----------------------------------------------------------------------------

ID = "0123456789abcdef" * 4


def make_process(
    proc: Path, pid: int, *, namespace: str, mountinfo: str = "", cgroup: str = "0::/\n"
) -> Path:
    base = proc / str(pid)
    (base / "ns").mkdir(parents=True)
    (base / "fd").mkdir()
    (base / "ns" / "mnt").symlink_to(namespace)
    for link in ("root", "cwd"):
        (base / link).symlink_to("/")
    (base / "mountinfo").write_text(mountinfo)
    (base / "cgroup").write_text(cgroup)
    (base / "cmdline").write_text("java\0-jar\0jenkins.war\0")
    (base / "comm").write_text("java\n")
    (base / "status").write_text("Name:\tjava\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    return base


@pytest.fixture
def proc(place: Path) -> Path:
    proc = place / "proc"
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "mnt").symlink_to("mnt:[1]")
    (proc / "uptime").write_text("1")
    return proc


def line(data: Path, point: str) -> str:
    info = next(m for m in reversed(own_mounts()) if below(str(data), m.point) is not None)
    rest = below(str(data), info.point)
    root = f"{info.root.rstrip('/')}{rest}".replace(" ", "\\040")
    return f"90 80 {info.device} {root} {point} rw - ext4 x rw\n"


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"5:memory:/docker/{ID}\n0::/docker/{ID}\n", ID),
        (f"0::/system.slice/docker-{ID}.scope\n", ID),
        (f"0::/lab1/docker/{ID}/docker/{ID[::-1]}\n", ID),
        (f"0::/x/{ID}0\n", None),
        ("0::/user.slice\n", None),
    ],
)
def test_names_the_container(
    proc: Path, data: Path, table: MountTable, cgroup: str, container: str | None
) -> None:
    make_process(proc, 70, namespace="mnt:[2]", mountinfo=line(data, "/data"), cgroup=cgroup)
    found = users_of([data], mount_root=table.root, proc=proc)
    command = "java -jar jenkins.war"
    assert found == [User(70, container, command, Contact.WRITES, filtered=True)]


def test_what_ends_while_it_is_read_is_left_out(proc: Path, data: Path, table: MountTable) -> None:
    mountinfo = line(data, "/data")
    (make_process(proc, 70, namespace="mnt:[2]") / "mountinfo").unlink()
    make_process(proc, 71, namespace="mnt:[2]", mountinfo=mountinfo)
    (make_process(proc, 72, namespace="mnt:[2]") / "cgroup").unlink()
    (make_process(proc, 73, namespace="mnt:[2]") / "ns" / "mnt").unlink()
    (make_process(proc, 74, namespace="mnt:[2]") / "root").unlink()
    shutil.rmtree(make_process(proc, 75, namespace="mnt:[1]") / "fd")
    (proc / "76").mkdir()
    found = {user.pid for user in users_of([data], mount_root=table.root, proc=proc)}
    assert found == {70, 71}


def test_a_namespace_is_read_through_any_of_its_processes(
    proc: Path, data: Path, table: MountTable
) -> None:
    make_process(proc, 70, namespace="mnt:[2]", mountinfo=line(data, "/data"))
    (make_process(proc, 71, namespace="mnt:[2]") / "mountinfo").unlink()
    make_process(proc, 72, namespace="mnt:[3]", mountinfo="rubbish\n1 2 3\n")
    found = [user.pid for user in users_of([data], mount_root=table.root, proc=proc)]
    assert found == [70, 71]


def test_a_command_line_cannot_garble_messages(proc: Path, data: Path, table: MountTable) -> None:
    base = make_process(proc, 70, namespace="mnt:[2]", mountinfo=line(data, "/d"))
    (base / "cmdline").write_bytes(b"\x1b[31m\xff\nx" + b"y" * 500)
    (user,) = users_of([data], mount_root=table.root, proc=proc)
    assert user.command.isprintable()
    assert len(user.command) == 80
    (base / "cmdline").write_bytes(b"")
    assert users_of([data], mount_root=table.root, proc=proc)[0].command == "java"
