"""What every engine must do, and the plugin as a real Docker engine sees it.

The real dockerd runs in mount, process and network namespaces of its own with everything under a temporary
directory, so that the machine's own Docker, if any, and /run/docker are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest

from pannier.agent.usage import users_of
from pannier.contract.docker_volumes import DockerVolume
from pannier.core.errors import Conflict, EngineUnavailable, Stale, VolumeInUse, VolumeNotFound
from pannier.core.service_volumes import volumes_of
from pannier.core.swarm import Availability, ServiceMount, SwarmMember, SwarmNode, SwarmService
from pannier.engine.base import Container, Engine, Executed, LocalVolume
from pannier.engine.docker import DockerEngine
from pannier.host.activation import unix_listener
from pannier.plugin.server import PluginServer
from pannier.testing.engine import FakeEngine, FakeSwarmData

NEEDED = ("dockerd", "docker", "containerd", "runc", "unshare", "nsenter", "busybox")
IMAGE = "localhost:5000/pannier-test:1"


# --- a real engine -------------------------------------------------------------------------------

_MACHINE = """
set -e
mount -t tmpfs none /run
mkdir /run/docker
mount --bind {home}/run /run/docker
mount -t tmpfs none /opt
mkdir -p /etc/docker
mount -t tmpfs none /etc/docker
busybox ip link set lo up
while :; do
  while [ -e {home}/hold ]; do sleep 0.05; done
  dockerd --data-root {home}/data --exec-root {home}/exec --pidfile {home}/pid \
    -H unix://{home}/docker.sock --bridge=none --iptables=false --ip6tables=false \
    --storage-driver {driver} --cgroup-parent /{cgroup} --registry-mirror http://127.0.0.1:9 \
    >>{home}/log 2>&1 </dev/null || true
  rm -f {home}/pid
done
"""


@dataclass
class Dockerd:
    """A dockerd with a home of its own."""

    home: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.home / "docker.sock"

    @property
    def plugin_socket(self) -> Path:
        return self.home / "run" / "plugins" / "pannier.sock"

    def boot(self) -> None:
        for name in ("run/plugins", "data", "exec", "config", "volumes"):
            (self.home / name).mkdir(parents=True)
        script = _MACHINE.format(home=self.home, driver="overlay2", cgroup=self.home.name)
        namespaces = ["unshare", "-m", "-p", "-n", "-f", "--mount-proc", "--kill-child"]
        self.process = subprocess.Popen(
            [*namespaces, "--propagation", "private", "bash", "-c", script], start_new_session=True
        )
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.docker("version", check=False).returncode:
            if time.monotonic() > deadline:
                raise AssertionError((self.home / "log").read_text()[-3000:])
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Signal dockerd, and see that it is gone and stays away until :meth:`let_start`."""
        (self.home / "hold").touch()
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        enter = ["nsenter", "-t", children.read_text().split()[0], "-m", "-p", "--"]
        pid = (self.home / "pid").read_text()
        subprocess.run([*enter, "kill", f"-{int(number)}", pid], check=True)
        while (self.home / "pid").exists():
            time.sleep(0.05)

    def let_start(self) -> None:
        (self.home / "hold").unlink(missing_ok=True)
        self.wait()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()  # takes the whole process namespace with it
            self.process.wait()
        for controller in Path("/sys/fs/cgroup").glob(f"**/{self.home.name}"):
            for folder, _, _ in os.walk(controller, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        environ = {
            "PATH": os.environ["PATH"],
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.home / "config"),
        }
        return ["docker", *words], environ

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command, environ = self.command(*words)
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=check)

    def import_image(self) -> None:
        """An image of busybox alone, with a /data for copy-up."""
        tree = self.home / "image"
        (tree / "bin").mkdir(parents=True)
        (tree / "tmp").mkdir()
        shutil.copy(shutil.which("busybox") or "", tree / "bin" / "busybox")
        for applet in ("sh", "cat", "sleep", "ls", "stat", "touch", "true"):
            (tree / "bin" / applet).symlink_to("busybox")
        (tree / "data").mkdir(mode=0o750)
        (tree / "data").chmod(0o2750)
        os.chown(tree / "data", 1000, 1000)
        (tree / "data" / "hello").write_text("from the image")
        archive = self.home / "image.tar"
        subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
        self.docker("import", "-c", "ENV PATH=/bin", str(archive), IMAGE)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    if os.geteuid() != 0 or not all(shutil.which(name) for name in NEEDED):
        pytest.fail("needs root and " + ", ".join(NEEDED))
    with tempfile.TemporaryDirectory(prefix="pnr-", dir="/tmp") as folder:
        machine = Dockerd(Path(folder))
        try:
            machine.boot()
            machine.import_image()
            yield machine
        finally:
            machine.end()


# --- volumes as plain directories ----------------------------------------------------------------


@dataclass
class Directories:
    """The least that a volume plugin needs behind it."""

    root: Path
    calls: list[str] = field(default_factory=list)
    abandoned: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)
    mounting: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    hold: asyncio.Event | None = None
    refuse: bool = False

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        self.calls.append(f"create {name} {dict(options)}")
        (self.root / name).mkdir(exist_ok=True)

    async def remove(self, name: str) -> None:
        self.calls.append(f"remove {name}")
        shutil.rmtree(self.root / name)

    async def mount(self, name: str, mount_id: str) -> Path:
        self.calls.append(f"mount {name}")
        self.mounting.put_nowait(name)
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse:
            raise VolumeInUse(
                f"volume {name} is in use on node n2 by container web",
                remedy="stop it there, or wait",
            )
        return self.root / name

    async def unmount(self, name: str, mount_id: str) -> None:
        self.calls.append(f"unmount {name}")

    async def abandon(self, name: str, mount_id: str) -> None:
        self.abandoned.put_nowait((name, mount_id))

    def get(self, name: str) -> DockerVolume:
        path = self.root / name
        if not path.is_dir():
            raise VolumeNotFound(f"there is no volume {name}")
        return DockerVolume(
            name=name,
            mountpoint=str(path),
            created_at="2026-11-22T10:00:00Z",
            status={"holder": "n1", "in_sync": ["n1", "n2"]},
        )

    def list(self) -> list[DockerVolume]:
        return [self.get(path.name) for path in sorted(self.root.iterdir())]


# --- the contract --------------------------------------------------------------------------------


class Rig(Protocol):
    """An engine that a test can do things to."""

    @property
    def engine(self) -> Engine: ...

    async def run(self, name: str, *, volume: str | None, driver: str = "pannier") -> str:
        """Start a container, with a volume of ours, of another driver, or none; its id."""
        ...

    async def run_asking(self, name: str, volume: str) -> None:
        """Start a container that asks for two copies of a volume of ours."""
        ...

    async def stop_container(self, container_id: str) -> None: ...
    async def remove_container(self, container_id: str) -> None: ...
    async def create_foreign_volume(self, name: str) -> None: ...
    async def stop(self) -> None: ...
    async def start(self) -> None: ...

    async def form_swarm(self) -> None:
        """Make the engine the only manager of a Swarm."""
        ...

    async def create_service(self, name: str, *constraints: str, volumes: Sequence[str]) -> None:
        """A service that mounts volumes of ours, and runs nothing yet."""
        ...


TALK = "echo said; echo wrong >&2; exit 3"


class FakeRig:
    """The fake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = FakeEngine()
        self.engine.commands[TALK] = Executed(3, "said\nwrong\n")
        self._volumes: dict[str, tuple[str, ...]] = {}

    async def run(self, name: str, *, volume: str | None, driver: str = "pannier") -> str:
        container = Container(id=name.encode().hex(), name=name, service=None, running=True)
        self._volumes[container.id] = (volume,) if volume else ()
        self.engine.put(container, volumes=self._volumes[container.id])
        return container.id

    async def run_asking(self, name: str, volume: str) -> None:
        await self.run(name, volume=volume)
        self.engine.declared.append(ServiceMount(source=volume, options={"copies": "2"}))

    async def stop_container(self, container_id: str) -> None:
        name = bytes.fromhex(container_id).decode()
        container = Container(id=container_id, name=name, service=None, running=False)
        self.engine.put(container, volumes=self._volumes[container_id])

    async def remove_container(self, container_id: str) -> None:
        self.engine.take(container_id)

    async def create_foreign_volume(self, name: str) -> None:
        self.engine.local[name] = LocalVolume(name, self.folder / name / "_data", plain=True)
        self.engine.local[name].folder.mkdir(parents=True)

    async def stop(self) -> None:
        await self.engine.stop()

    async def start(self) -> None:
        await self.engine.start()

    async def form_swarm(self) -> None:
        swarm = FakeSwarmData()
        me = SwarmNode(
            id="a" * 25,
            hostname=os.uname().nodename,
            state="ready",
            availability=Availability.ACTIVE,
            role="manager",
            leader=True,
            version=0,
            os="linux",
            arch="x86_64",
        )
        swarm.put(me)
        self.engine.swarm.data, self.engine.swarm.node = swarm, me.id

    async def create_service(self, name: str, *constraints: str, volumes: Sequence[str]) -> None:
        swarm = self.engine.swarm.data
        assert swarm is not None
        service = SwarmService(
            id=f"id-{name}",
            name=name,
            constraints=constraints,
            mounts=(
                *(ServiceMount(source=volume, options={"copies": "2"}) for volume in volumes),
                ServiceMount(source="plain", driverless=True),
            ),
            replicas=0,
            labels={"kept": "as it is"},
        )
        await swarm.deploy(*swarm.services, service)


class DockerRig:
    """The real thing, with our plugin beside it."""

    def __init__(self, dockerd: Dockerd, volumes: Directories) -> None:
        self.dockerd = dockerd
        self.volumes = volumes
        self.engine = DockerEngine(dockerd.socket, retry_seconds=0.05)
        self.running = contextlib.AsyncExitStack()

    async def docker(self, *words: str) -> tuple[int, str]:
        """Run the client without holding up the plugin; its status and all output."""
        command, environ = self.dockerd.command(*words)
        process = await asyncio.create_subprocess_exec(
            *command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode().strip()

    async def ok(self, *words: str) -> str:
        status, output = await self.docker(*words)
        assert status == 0, output
        return output

    async def restart_plugin(self) -> None:
        await self.running.aclose()
        again = plugin(self.dockerd.plugin_socket, self.volumes)
        await self.running.enter_async_context(again)

    async def run(self, name: str, *, volume: str | None, driver: str = "pannier") -> str:
        mount = ("-v", f"{volume}:/data", "--volume-driver", driver) if volume else ()
        words = ("--network", "none", "--name", name, *mount, IMAGE, "sleep", "1000")
        return await self.ok("run", "-d", "--stop-signal", "KILL", *words)

    async def run_asking(self, name: str, volume: str) -> None:
        mount = f"type=volume,source={volume},target=/v,volume-driver=pannier,volume-opt=copies=2"
        words = ("--network", "none", "--name", name, "--stop-signal", "KILL")
        await self.ok("run", "-d", *words, "--mount", mount, IMAGE, "sleep", "1000")

    async def stop_container(self, container_id: str) -> None:
        await self.ok("stop", container_id)

    async def remove_container(self, container_id: str) -> None:
        await self.ok("rm", "-f", container_id)

    async def create_foreign_volume(self, name: str) -> None:
        await self.ok("volume", "create", name)

    async def stop(self) -> None:
        await asyncio.to_thread(self.dockerd.signal, signal.SIGTERM)

    async def start(self) -> None:
        await asyncio.to_thread(self.dockerd.let_start)

    async def form_swarm(self) -> None:
        await self.ok("swarm", "init", "--advertise-addr", "127.0.0.1")

    async def create_service(self, name: str, *constraints: str, volumes: Sequence[str]) -> None:
        mounts = [
            f"type=volume,source={volume},target=/v{number},volume-driver=pannier,"
            "volume-opt=copies=2"
            for number, volume in enumerate(volumes)
        ]
        # Other mounts, which are not ours.
        mounts += ["type=volume,source=other,target=/o,volume-driver=local", "type=tmpfs,target=/t"]
        mounts += ["type=volume,source=plain,target=/p"]
        given = [part for constraint in constraints for part in ("--constraint", constraint)]
        given += [part for mount in mounts for part in ("--mount", mount)]
        words = ["--detach", "--no-resolve-image", "--replicas", "0", "--name", name]
        words += ["--label", "kept=as it is"]
        await self.ok("service", "create", *words, *given, IMAGE, "true")


@contextlib.asynccontextmanager
async def plugin(socket: Path, volumes: Directories) -> AsyncIterator[None]:
    ready = asyncio.Event()
    ready.set()
    with unix_listener(socket) as listener:
        server = PluginServer(volumes, ready=ready)
        await server.start(listener)
        try:
            yield
        finally:
            await server.stop()


@contextlib.asynccontextmanager
async def docker_rig(dockerd: Dockerd) -> AsyncIterator[DockerRig]:
    volumes = Directories(dockerd.home / "volumes")
    rig = DockerRig(dockerd, volumes)
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(plugin(dockerd.plugin_socket, volumes))
        rig.running = running
        try:
            yield rig
        finally:
            volumes.hold = None
            await asyncio.to_thread(dockerd.let_start)
            await rig.docker("swarm", "leave", "--force")
            containers = (await rig.ok("ps", "-aq")).split()
            if containers:
                await rig.ok("rm", "-f", *containers)
            for name in await rig.engine.other_volumes():
                await rig.docker("volume", "rm", "-f", name)
            for volume in volumes.list():
                await rig.docker("volume", "rm", "-f", volume.name)
            await rig.engine.close()
            await rig.running.aclose()


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.root)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "fake":
        yield FakeRig(tmp_path)
        return
    async with docker_rig(request.getfixturevalue("dockerd")) as real:
        yield real


async def test_tells_its_version(rig: Rig) -> None:
    assert (await rig.engine.version())[0].isdigit()


async def test_the_plugin_is_active_after_its_activation(rig: Rig) -> None:
    await rig.engine.activate_plugin()
    assert await rig.engine.plugin_active()
    await rig.engine.activate_plugin()
    assert await rig.engine.plugin_active()


async def test_finds_the_containers_of_a_volume_running_or_not(rig: Rig) -> None:
    one = await rig.run("one", volume="v1")
    two = await rig.run("two", volume="v1")
    await rig.run("other", volume="v2")
    await rig.run("plain", volume=None)
    await rig.stop_container(two)
    found = sorted(await rig.engine.containers_using("v1"), key=lambda item: item.name)
    assert found == [
        Container(id=one, name="one", service=None, running=True),
        Container(id=two, name="two", service=None, running=False),
    ]
    assert await rig.engine.containers_using("v3") == []
    assert await rig.engine.containers_using("/data") == []  # a mount target is no volume
    await rig.remove_container(one)
    assert [item.id for item in await rig.engine.containers_using("v1")] == [two]


async def test_knows_a_container_by_its_id(rig: Rig) -> None:
    one = await rig.run("one", volume=None)
    expected = Container(id=one, name="one", service=None, running=True)
    assert await rig.engine.container(one) == expected
    await rig.stop_container(one)
    stopped = await rig.engine.container(one)
    assert stopped is not None
    assert not stopped.running
    assert await rig.engine.container("f" * 64) is None
    assert await rig.engine.container("no/such?thing") is None


async def test_a_command_in_a_container_tells_its_output_and_its_status(rig: Rig) -> None:
    one = await rig.run("one", volume=None)
    done = await rig.engine.execute(one, TALK, timeout_seconds=20)
    assert done.status == 3
    assert sorted(done.output.splitlines()) == ["said", "wrong"]


async def test_a_command_ends_at_its_time_limit(rig: Rig) -> None:
    one = await rig.run("one", volume=None)
    began = time.monotonic()
    done = await rig.engine.execute(one, "sleep 1000", timeout_seconds=0.5)
    assert done.status is None
    assert time.monotonic() - began < 10


async def test_a_command_needs_a_container_that_runs(rig: Rig) -> None:
    one = await rig.run("one", volume=None)
    await rig.stop_container(one)
    for container in (one, "f" * 64, "no/such?thing"):
        with pytest.raises(EngineUnavailable):
            await rig.engine.execute(container, "true", timeout_seconds=5)


async def test_a_service_has_no_containers_where_it_does_not_run(rig: Rig) -> None:
    await rig.run("one", volume=None)
    assert await rig.engine.containers_of("web") == []


async def test_volumes_of_other_drivers_are_told_apart_from_ours(rig: Rig) -> None:
    assert await rig.engine.other_volumes() == []
    await rig.create_foreign_volume("theirs")
    assert await rig.engine.other_volumes() == ["theirs"]


async def test_a_local_volume_is_told_with_its_folder_and_removed_when_nobody_has_it(
    rig: Rig,
) -> None:
    await rig.create_foreign_volume("theirs")
    (found,) = await rig.engine.local_volumes()
    assert (found.name, found.folder.name, found.plain) == ("theirs", "_data", True)
    container = await rig.run("one", volume="theirs", driver="local")
    assert not await rig.engine.remove_volume("theirs")
    await rig.stop_container(container)
    assert not await rig.engine.remove_volume("theirs"), "it may be started again"
    await rig.remove_container(container)
    for _ in range(2):
        assert await rig.engine.remove_volume("theirs")
    assert await rig.engine.local_volumes() == []


async def test_an_engine_that_is_down_is_unavailable(rig: Rig) -> None:
    await rig.form_swarm()
    (node,) = await rig.engine.swarm.nodes()
    await rig.stop()
    calls = (
        rig.engine.version(),
        rig.engine.activate_plugin(),
        rig.engine.plugin_active(),
        rig.engine.containers_using("v1"),
        rig.engine.container("f" * 64),
        rig.engine.other_volumes(),
        rig.engine.local_volumes(),
        rig.engine.remove_volume("theirs"),
        rig.engine.facts(),
        rig.engine.swarm.member(),
        rig.engine.swarm.nodes(),
        rig.engine.swarm.services(),
        rig.engine.swarm.update_node(node),
        rig.engine.swarm.tasks(),
        rig.engine.containers_of("web"),
        rig.engine.execute("f" * 64, "true", timeout_seconds=5),
    )
    for call in calls:
        with pytest.raises(EngineUnavailable) as caught:
            await call
        assert caught.value.remedy
    await rig.start()
    assert await rig.engine.version()


async def test_tells_each_start(rig: Rig) -> None:
    starts = rig.engine.starts()
    await anext(starts)
    following = asyncio.ensure_future(anext(starts))
    await rig.stop()
    assert not following.done()
    await rig.start()
    await following
    await rig.engine.activate_plugin()
    assert await rig.engine.plugin_active()
    later = rig.engine.starts()  # whoever asks later is told of the present one
    await anext(later)
    for iterator in (starts, later):
        await iterator.aclose()  # type: ignore[attr-defined]


async def test_tells_what_it_runs_containers_with(rig: Rig) -> None:
    facts = await rig.engine.facts()
    assert facts.version == await rig.engine.version()
    assert facts.default_runtime == "runc"
    assert facts.runtimes["runc"]
    assert facts.kernel[0].isdigit()
    for version in (facts.runc, facts.libseccomp):
        assert version is None or version[0].isdigit()
    assert facts.runc is not None


# --- the Swarm -----------------------------------------------------------------------------------


async def test_an_engine_in_no_swarm_says_so(rig: Rig) -> None:
    assert await rig.engine.swarm.member() is None
    swarm = rig.engine.swarm
    for call in (swarm.nodes(), swarm.services(), swarm.tasks()):
        with pytest.raises(Conflict, match="manager"):
            await call


async def test_a_manager_knows_itself_among_the_nodes(rig: Rig) -> None:
    await rig.form_swarm()
    member = await rig.engine.swarm.member()
    (node,) = await rig.engine.swarm.nodes()
    assert member == SwarmMember(node.id, manager=True, managers=(node.id,))
    assert (node.hostname, node.role, node.leader) == (os.uname().nodename, "manager", True)
    assert (node.state, node.availability) == ("ready", Availability.ACTIVE)
    assert (node.labels, node.engine_labels) == ({}, {})
    assert (node.os, node.arch) == ("linux", "x86_64")


async def test_a_node_s_availability_and_labels_change_one_by_one(rig: Rig) -> None:
    await rig.form_swarm()
    swarm = rig.engine.swarm
    (node,) = await swarm.nodes()
    labels = {"rack": "r1", "pannier.volume.My_vol.1-x": "copy"}
    await swarm.update_node(node, labels=labels)
    (labelled,) = await swarm.nodes()
    assert labelled == replace(node, labels=labels, version=labelled.version)
    await swarm.update_node(labelled, availability=Availability.DRAIN)
    (drained,) = await swarm.nodes()
    assert drained.availability is Availability.DRAIN
    assert drained.labels == labels
    await swarm.update_node(drained, availability=Availability.ACTIVE, labels={})
    (again,) = await swarm.nodes()
    assert again == replace(node, version=again.version)


async def test_a_change_of_a_node_that_was_changed_since_is_refused(rig: Rig) -> None:
    await rig.form_swarm()
    swarm = rig.engine.swarm
    (node,) = await swarm.nodes()
    await swarm.update_node(node)
    (touched,) = await swarm.nodes()
    assert touched == replace(node, version=touched.version), "nothing changed but the version"
    assert touched.version > node.version
    with pytest.raises(Stale):
        await swarm.update_node(node, availability=Availability.DRAIN)
    assert await swarm.nodes() == [touched]
    with pytest.raises(Stale):
        await swarm.update_node(replace(touched, id="nosuch"), availability=Availability.DRAIN)


async def test_of_two_changes_at_once_one_is_refused(rig: Rig) -> None:
    await rig.form_swarm()
    swarm = rig.engine.swarm
    (node,) = await swarm.nodes()
    wishes = [swarm.update_node(node, labels={"n": str(number)}) for number in range(4)]
    ends = await asyncio.gather(*wishes, return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [Stale] * 3
    (after,) = await swarm.nodes()
    assert after.labels == {"n": str(ends.index(None))}


async def test_a_container_that_asks_for_options_of_a_volume_is_known(rig: Rig) -> None:
    assert await rig.engine.declared_mounts() == []
    await rig.run("plain", volume="one")
    await rig.run("local", volume="two", driver="local")
    await rig.run_asking("asking", "one")
    assert await rig.engine.declared_mounts() == [
        ServiceMount(source="one", options={"copies": "2"})
    ]


async def test_a_service_that_is_made_is_told_at_once(rig: Rig) -> None:
    await rig.form_swarm()
    changes = rig.engine.swarm.service_changes()
    await anext(changes)
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    await rig.create_service("web", volumes=[])
    async with asyncio.timeout(20):
        await heard
    assert [service.name for service in await rig.engine.swarm.services()] == ["web"]


async def test_services_tell_their_constraints_and_our_volumes(rig: Rig) -> None:
    await rig.form_swarm()
    assert await rig.engine.swarm.services() == []
    constraints = ("node.role==manager", "node.labels.pannier.volume.My_vol.1-x == copy")
    await rig.create_service("web", *constraints, volumes=["My_vol.1-x", "st-{{.Task.Slot}}"])
    await rig.create_service("plain", volumes=[])
    found = sorted(await rig.engine.swarm.services(), key=lambda service: service.name)
    plain = ServiceMount(source="plain", driverless=True)
    assert found == [
        replace(found[0], name="plain", constraints=(), mounts=(plain,)),
        replace(
            found[1],
            name="web",
            constraints=constraints,
            mounts=(
                ServiceMount(source="My_vol.1-x", options={"copies": "2"}),
                ServiceMount(source="st-{{.Task.Slot}}", options={"copies": "2"}),
                plain,
            ),
        ),
    ]
    for service in found:
        assert (service.mode, service.replicas) == ("replicated", 0)
        assert (service.order, service.labels) == ("stop-first", {"kept": "as it is"})


async def test_a_service_s_constraints_and_labels_change_and_nothing_else(rig: Rig) -> None:
    await rig.form_swarm()
    swarm = rig.engine.swarm
    await rig.create_service("web", "node.role==manager", volumes=["v1"])
    (service,) = await swarm.services()
    constraints, labels = ("node.role==manager", "node.hostname==b"), {"kept": "no", "new": "1"}
    await swarm.update_service(service, constraints=constraints, labels=labels)
    (changed,) = await swarm.services()
    assert changed.version > service.version
    expected = replace(service, constraints=constraints, labels=labels)
    assert replace(changed, version=service.version, update="") == expected
    with pytest.raises(Stale):
        await swarm.update_service(service, constraints=(), labels={})
    with pytest.raises(Stale):
        await swarm.update_service(replace(changed, id="nosuch"), constraints=(), labels={})
    await swarm.update_service(changed, constraints=(), labels={})
    (bare,) = await swarm.services()
    assert (bare.constraints, bare.labels, bare.mounts) == ((), {}, service.mounts)


async def test_a_service_is_scaled_and_nothing_else_changes(rig: Rig) -> None:
    await rig.form_swarm()
    swarm = rig.engine.swarm
    await rig.create_service("web", "node.role==manager", volumes=["v1"])
    (service,) = await swarm.services()
    labels = {"kept": "no", "new": "1"}
    await swarm.scale_service(service, replicas=3, labels=labels)
    (changed,) = await swarm.services()
    expected = replace(service, replicas=3, labels=labels)
    assert replace(changed, version=service.version, update="") == expected
    with pytest.raises(Stale):
        await swarm.scale_service(service, replicas=1, labels={})
    await swarm.scale_service(changed, replicas=0, labels={})
    (none,) = await swarm.services()
    assert (none.replicas, none.labels, none.mounts) == (0, {}, service.mounts)


# --- the plugin in a real engine -----------------------------------------------------------------


@pytest.fixture
async def docker(dockerd: Dockerd) -> AsyncIterator[DockerRig]:
    async with docker_rig(dockerd) as real:
        yield real


async def test_an_engine_that_finds_no_plugin_is_told_apart(dockerd: Dockerd) -> None:
    engine = DockerEngine(dockerd.socket, plugin="nosuch", activate_seconds=30.0)
    try:
        with pytest.raises(EngineUnavailable, match="nosuch"):
            await engine.activate_plugin()
        assert not await engine.plugin_active()
    finally:
        await engine.close()


@pytest.mark.root
async def test_create_inspect_list_and_remove(docker: DockerRig) -> None:
    created = await docker.ok("volume", "create", "-d", "pannier", "-o", "size=1G", "v1")
    assert created == "v1"
    (shown,) = json.loads(await docker.ok("volume", "inspect", "v1"))
    assert shown["Driver"] == "pannier"
    assert shown["Scope"] == "global"
    assert shown["Mountpoint"] == str(docker.volumes.root / "v1")
    assert shown["CreatedAt"] == "2026-11-22T10:00:00Z"
    assert shown["Status"] == {"holder": "n1", "in_sync": ["n1", "n2"]}
    assert await docker.ok("volume", "ls", "-q", "-f", "driver=pannier") == "v1"
    await docker.ok("volume", "rm", "v1")
    assert docker.volumes.calls == ["create v1 {'size': '1G'}", "remove v1"]
    status, text = await docker.docker("volume", "inspect", "v1")
    assert (status, "no such volume" in text.lower()) == (1, True)


@pytest.mark.root
async def test_an_empty_volume_takes_the_image_s_content(docker: DockerRig) -> None:
    words = ("run", "--rm", "--network", "none", "-v", "v1:/data", "--volume-driver", "pannier")
    script = "cat /data/hello; stat -c ' %a %u' /data; touch /data/mine"
    assert await docker.ok(*words, IMAGE, "sh", "-c", script) == "from the image 2750 1000"
    assert sorted(path.name for path in (docker.volumes.root / "v1").iterdir()) == ["hello", "mine"]
    kinds = [call.split()[0] for call in docker.volumes.calls]
    assert kinds == ["create", "mount", "unmount", "mount", "unmount"]


@pytest.mark.root
async def test_the_error_reaches_the_user_word_for_word(docker: DockerRig) -> None:
    await docker.ok("volume", "create", "-d", "pannier", "v1")
    docker.volumes.refuse = True
    status, text = await docker.docker(
        "run", "--rm", "--network", "none", "-v", "v1:/data", IMAGE, "true"
    )
    assert status != 0
    assert "volume v1 is in use on node n2 by container web; stop it there, or wait" in text


@pytest.mark.root
async def test_a_container_is_seen_as_a_user(docker: DockerRig, tmp_path: Path) -> None:
    data = docker.volumes.root / "v1"
    container = await docker.run("one", volume="v1")
    users = await asyncio.to_thread(users_of, [data], mount_root=tmp_path / "mounts")
    assert {user.container for user in users} == {container}
    assert [user.command for user in users] == ["sleep 1000"]
    await docker.remove_container(container)
    assert await asyncio.to_thread(users_of, [data], mount_root=tmp_path / "mounts") == []


@pytest.mark.root
@pytest.mark.parametrize("end", ["time limit", "cancelled"])
async def test_a_command_that_ends_early_leaves_no_process(docker: DockerRig, end: str) -> None:
    container = await docker.run("one", volume=None)
    ps = "cat /proc/[0-9]*/cmdline | busybox tr '\\0' ' '"
    limit = 3.0 if end == "time limit" else 1000  # it is seen before, on a busy machine too
    work = asyncio.create_task(
        docker.engine.execute(container, "sleep 77 & sleep 78; true", timeout_seconds=limit)
    )
    async with asyncio.timeout(20):
        while "sleep 78" not in (await docker.ok("exec", container, "sh", "-c", ps)):
            await asyncio.sleep(0.05)
        if end == "cancelled":
            work.cancel()
        await asyncio.wait({work})
        left = await docker.ok("exec", container, "sh", "-c", ps)
    assert "sleep 77" not in left
    assert "sleep 78" not in left
    assert "sleep 1000" in left, "the container itself runs on"


_NAMES = (
    "plain",
    "st-{{.Task.Slot}}",
    "{{ .Service.Name }}-{{.Service.ID}}",
    "{{.Task.Name}}",
    "{{.Node.Hostname}}-{{.Node.ID}}-{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}",
    '{{index $.Service.Labels "tier"}}.{{index .Service.Labels "a.b"}}{{index .Service.Labels "missing"}}',
    "x{{- .Task.Slot -}}y",
)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["replicated", "global"])
async def test_names_from_templates_are_told_as_swarm_makes_them(
    docker: DockerRig, mode: str
) -> None:
    await docker.engine.activate_plugin()  # Swarm starts nothing with our volumes elsewhere
    await docker.form_swarm()
    words = ["--detach", "--no-resolve-image", "--name", "web", "--mode", mode]
    words += ["--stop-grace-period", "0s", "--label", "tier=front", "--label", "a.b=c.d"]
    for number, name in enumerate(_NAMES):
        quoted = f"source={name}".replace('"', '""')  # the client reads a line of CSV
        words += ["--mount", f'type=volume,"{quoted}",target=/v{number},volume-driver=pannier']
    await docker.ok("service", "create", *words, IMAGE, "sleep", "1000")
    swarm = docker.engine.swarm
    deadline = time.monotonic() + 30
    while [task.state for task in await swarm.tasks()] != ["running"]:
        assert time.monotonic() < deadline, await swarm.tasks()
        await asyncio.sleep(0.05)
    (container,) = json.loads(
        await docker.ok("inspect", *(await docker.ok("ps", "-q")).splitlines())
    )
    (service,), nodes = await swarm.services(), await swarm.nodes()
    told = volumes_of(service, await swarm.tasks(), nodes, is_ours=lambda name: False)
    assert sorted(each.name for each in told) == sorted(
        each["Name"] for each in container["Mounts"]
    )
    assert len(told) == len(_NAMES)
    await docker.ok("service", "rm", "web")
    async with asyncio.timeout(30):
        while await docker.ok("ps", "-q"):
            await asyncio.sleep(0.05)


@pytest.mark.root
async def test_a_task_of_a_service_and_its_container_are_told(docker: DockerRig) -> None:
    await docker.form_swarm()
    words = ["--detach", "--no-resolve-image", "--restart-condition", "none", "--name", "web"]
    words += ["--container-label", "said=yes", "--stop-grace-period", "0s"]
    await docker.ok("service", "create", *words, IMAGE, "sleep", "1000")
    swarm = docker.engine.swarm
    async with asyncio.timeout(30):
        while [task.state for task in await swarm.tasks()] != ["running"]:
            await asyncio.sleep(0.1)
    (service,), (node,), (task,) = await swarm.services(), await swarm.nodes(), await swarm.tasks()
    assert (task.service, task.node, task.wanted, task.ended) == (service.id, node.id, True, False)
    assert await swarm.tasks(service=service.id) == [task]
    assert await swarm.tasks(service="nosuch") == []
    (container,) = await docker.engine.containers_of("web")
    assert (container.id, container.running) == (task.container, True)
    assert container.labels["said"] == service.container_labels["said"] == "yes"
    await swarm.update_service(service, constraints=["node.role==worker"], labels={})
    async with asyncio.timeout(30):
        while not next(each for each in await swarm.tasks() if each.id == task.id).ended:
            await asyncio.sleep(0.1)


@pytest.mark.root
async def test_a_mount_is_abandoned_when_the_engine_dies(docker: DockerRig) -> None:
    await docker.ok("volume", "create", "-d", "pannier", "v1")
    docker.volumes.hold = asyncio.Event()
    run = asyncio.create_task(
        docker.docker("run", "--network", "none", "-v", "v1:/data", IMAGE, "true")
    )
    assert await docker.volumes.mounting.get() == "v1"
    await asyncio.to_thread(docker.dockerd.signal, signal.SIGKILL)
    name, mount_id = await docker.volumes.abandoned.get()
    assert (name, len(mount_id)) == ("v1", 64)
    docker.volumes.hold = None
    status, _ = await run
    assert status != 0


@pytest.mark.root
async def test_the_engine_survives_a_restart_of_the_plugin(docker: DockerRig) -> None:
    container = await docker.run("one", volume="v1")
    docker.volumes.calls.clear()
    await docker.restart_plugin()
    await docker.ok("stop", container)
    assert docker.volumes.calls == ["unmount v1"]
