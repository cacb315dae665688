"""pannier-runtime in the configuration of a real Docker: its flags, another default runtime, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import World
from demo import story

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

FILE = "/etc/docker/daemon.json"
DROP_IN = "/etc/systemd/system/docker.service.d/zz-runtime.conf"
GPU = "/usr/local/bin/gpu-runtime"
GPU_PROGRAM = '#!/bin/sh\necho $* >>/run/gpu.log\nexec /usr/sbin/runc "$@"\n'
"""As NVIDIA's: it looks at what is asked, and starts runc."""


@contextmanager
def changed_docker(world: World, node: str) -> Iterator[None]:
    """Docker without pannier-runtime; afterwards it is as it was."""
    world.run(node, "pannier", "runtime", "unregister")
    world.sh(node, f"cp {FILE} /root/daemon.json")
    world.run(node, "sh", "-c", f"cat >{GPU}; chmod 755 {GPU}", input=GPU_PROGRAM)
    try:
        yield
    finally:
        world.sh(node, f"rm -f {DROP_IN}; cat /root/daemon.json >{FILE}")
        restart(world, node)
        world.run(node, "pannier", "runtime", "register")
        world.wait_until_all_up()


def restart(world: World, node: str) -> None:
    world.sh(
        node,
        "systemctl daemon-reload; systemctl reset-failed docker.service docker.socket; systemctl restart docker.service",
    )
    story.wait_until("Docker answers", lambda: default_runtime(world, node))


def default_runtime(world: World, node: str) -> str:
    return world.attempt(node, "docker", "info", "-f", "{{.DefaultRuntime}}").out.strip()


def text(world: World, node: str) -> str:
    return world.run(node, "cat", FILE)


def test_a_default_runtime_on_dockers_command_line_is_refused(three: World) -> None:
    """With another one in its file Docker does not start any more."""
    node = "node3"
    with changed_docker(three, node):
        before = text(three, node)
        start = three.run(node, "systemctl", "show", "-p", "Environment", "--value", "docker")
        options = start.partition("DOCKER_OPTS=")[2].partition('"')[0]
        flags = f"{options} --add-runtime gpu={GPU} --default-runtime gpu"
        lines = f'[Service]\nEnvironment="DOCKER_OPTS={flags}"\n'
        three.run(node, "sh", "-c", f"cat >{DROP_IN}", input=lines)
        register = ("pannier", "runtime", "register")
        says = ["no --default-runtime", "its next start has --default-runtime gpu"]
        three.refused(node, *register, says=says, status=4)
        restart(three, node)
        assert default_runtime(three, node) == "gpu"
        three.refused(node, *register, says=[DROP_IN, "--before gpu"], status=4)
        assert text(three, node) == before
        restart(three, node)
        assert default_runtime(three, node) == "gpu"


def test_it_goes_before_another_runtime_and_back_to_the_byte(three: World) -> None:
    node = "node2"
    with changed_docker(three, node):
        settings = {**json.loads(text(three, node)), "runtimes": {"gpu": {"path": "gpu-runtime"}}}
        before = json.dumps({**settings, "default-runtime": "gpu"}, indent="\t")
        three.run(node, "sh", "-c", f"cat >{FILE}", input=before)
        restart(three, node)
        three.refused(node, "pannier", "runtime", "register", says=["--before gpu"], status=4)
        assert text(three, node) == before
        three.run(node, "pannier", "runtime", "register", "--before", "gpu")
        assert default_runtime(three, node) == "pannier"
        name = three.create(node, copies="2")
        container = three.sleeper(node, name)
        ident = three.run(node, "docker", "inspect", "-f", "{{.Id}}", container).strip()
        bundle = f"/run/containerd/io.containerd.runtime.v2.task/moby/{ident}"
        assert "barrier.sock" in three.run(node, "cat", f"{bundle}/config.json")
        assert f"--bundle {bundle}" in three.run(node, "cat", "/run/gpu.log")
        three.run(node, "docker", "rm", "-f", container)
        three.run(node, "pannier", "runtime", "unregister")
        assert text(three, node) == before
        assert default_runtime(three, node) == "gpu"


@pytest.mark.faults
def test_what_docker_does_not_take_in_is_undone(three: World) -> None:
    """Docker 20.10 cannot check a file before it is there, and says only in its log that it did not take it in."""
    node = "node3"
    with changed_docker(three, node):
        before = '{"no-such-setting": 1, "storage-driver": "overlay2"}'
        three.run(node, "sh", "-c", f"cat >{FILE}", input=before)
        three.refused(node, "pannier", "runtime", "register", says=["were put back"], status=7)
        assert text(three, node) == before
        assert default_runtime(three, node) == "runc"
