"""Which volumes a service's tasks mount: Swarm's templates, and what comes along when a service moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pannier.core.errors import Conflict
from pannier.core.service_volumes import volumes_of, volumes_that_move
from pannier.core.swarm import Availability, ServiceMount, SwarmNode, SwarmService, SwarmTask
from pannier.core.swarm_template import expanded


def node(name: str) -> SwarmNode:
    return SwarmNode(
        id=f"id-{name}",
        hostname=name,
        state="ready",
        availability=Availability.ACTIVE,
        role="worker",
        version=1,
        os="linux",
        arch="x86_64",
    )


A, B = node("a"), node("b")
TASK = SwarmTask(id="t1", service="s1", node="id-a", state="running", wanted=True, slot=3)


def service(*sources: str, **facts: Any) -> SwarmService:
    mounts = tuple(ServiceMount(source=source) for source in sources)
    given: dict[str, Any] = {"id": "s1", "name": "web", "constraints": (), "mounts": mounts}
    return SwarmService(**(given | facts))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain", "plain"),
        ("{{.Service.Name}}-data", "web-data"),
        ("{{ .Service.Name }}_{{$.Service.ID}}", "web_s1"),
        ("st-{{.Task.Slot}}", "st-3"),
        ("{{.Task.Name}}", "web.3.t1"),
        ("{{.Task.ID}}", "t1"),
        ("{{.Node.Hostname}}.{{.Node.ID}}", "a.id-a"),
        ("{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}", "linux-x86_64"),
        ('{{index $.Service.Labels "tier"}}', "front"),
        ('{{index .Service.Labels "a.b"}}', "dotted"),
        ('x{{index .Service.Labels "missing"}}', "x"),
        ("a {{- .Task.Slot -}} b", "a3b"),
        ("a {{.Task.Slot}} b", "a 3 b"),
        ("{{.Service.Labels.tier}}", None),
        ('{{printf "%s" .Task.Slot}}', None),
        ("{{if .Task.Slot}}x{{end}}", None),
        ("{{.Task.Slot", None),
        ("{{}}", None),
    ],
)
def test_templates_are_replaced_as_swarm_does_or_nothing_is_said(
    text: str, name: str | None
) -> None:
    labelled = service(labels={"tier": "front", "a.b": "dotted"})
    assert expanded(text, service=labelled, task=TASK, node=A) == name


def test_what_only_a_node_or_a_task_has_is_not_known_before() -> None:
    early = replace(TASK, id="", node="", slot=0)
    for text in ("{{.Node.Hostname}}", "{{.Task.Slot}}", "{{.Task.ID}}"):
        assert expanded(text, service=service(), task=early, node=None) is None
    assert expanded("{{.Service.Name}}", service=service(), task=early, node=None) == "web"
    globally = replace(TASK, slot=0)
    assert expanded("{{.Task.Slot}}", service=service(), task=globally, node=A) == "id-a"
    assert expanded("{{.Task.Name}}", service=service(), task=globally, node=A) == "web.id-a.t1"


def names(of: SwarmService, *tasks: SwarmTask, ours: frozenset[str] = frozenset()) -> list[str]:
    found = volumes_of(of, tasks, [A, B], is_ours=ours.__contains__)
    return [volume.name for volume in found]


def test_each_replica_has_its_own_and_a_shared_one_is_told_once() -> None:
    two = service("st-{{.Task.Slot}}", "shared")
    tasks = [replace(TASK, id="t1", slot=1), replace(TASK, id="t2", slot=2, node="id-b")]
    ended = replace(TASK, id="t0", slot=9, wanted=False)
    other = replace(TASK, id="o", service="s2", slot=7)
    assert names(two, *tasks, ended, other) == ["st-1", "shared", "st-2"]


def test_a_service_without_tasks_would_mount_these() -> None:
    assert names(service("st-{{.Task.Slot}}", "x-{{.Node.ID}}", replicas=2)) == ["st-1", "st-2"]
    assert names(service("st-{{.Task.Slot}}", "{{.Service.Name}}", replicas=0)) == ["st-1", "web"]
    assert names(service("st-{{.Task.Slot}}", "v", mode="global", replicas=1)) == ["v"]


def test_a_volume_without_a_driver_in_the_spec_is_ours_by_its_own_name() -> None:
    mounts = (ServiceMount(source="st-{{.Task.Slot}}", driverless=True),)
    driverless = service(mounts=mounts)
    assert names(driverless, TASK, ours=frozenset({"st-3"})) == ["st-3"]
    assert names(driverless, TASK, ours=frozenset({"st-1", mounts[0].source})) == []


def moving(of: SwarmService, *tasks: SwarmTask) -> list[str]:
    found = volumes_that_move(of, tasks, [A, B], target=B, is_ours=lambda name: False)
    return [volume.name for volume in found]


def test_what_stays_the_same_on_another_node_comes_along() -> None:
    one = service("st-{{.Task.Slot}}", "{{.Service.Name}}-data", "plain", "plain")
    assert moving(one, TASK) == ["st-3", "web-data", "plain"]
    waiting = replace(TASK, id="t2", state="pending", node="", slot=3)
    assert moving(one, waiting) == ["st-3", "web-data", "plain"], "Swarm has found no place for it"
    assert moving(one) == ["st-1", "web-data", "plain"]


@pytest.mark.parametrize("source", ["{{.Node.Hostname}}-x", "{{.Task.ID}}", "{{.Task.Name}}"])
def test_what_is_another_one_there_is_refused(source: str) -> None:
    with pytest.raises(Conflict, match="another volume on another node") as caught:
        moving(service("plain", source), TASK)
    assert source in caught.value.message
    assert "{{.Service.Name}}" in caught.value.remedy


def test_a_name_that_cannot_be_told_is_refused_unless_another_driver_may_have_it() -> None:
    with pytest.raises(Conflict, match="cannot tell its name"):
        moving(service('{{printf "v"}}'), TASK)
    mounts = (
        ServiceMount(source='{{printf "v"}}', driverless=True),
        ServiceMount(source="plain"),
    )
    assert moving(service(mounts=mounts), TASK) == ["plain"]
