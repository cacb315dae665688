"""What is read from a compose file, and what is in the way of a stack: no Docker needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pannier.core.errors import Conflict, InvalidInput, NotFound
from pannier.core.swarm import Availability, SwarmNode
from pannier.stacks import shipped
from pannier.stacks.checks import Publication, StackPlace, open_at, problems, refusal
from pannier.stacks.compose import Compose, Port, Service, read
from pannier.stacks.progress import read_progress

TEXT = """
version: "3.8"
x-pannier:
  about: a blog
  address: http://NODE:80/
  passwords: [password]
services:
  web:
    image: ${IMAGE:-blog}:${TAG-1}
    command: echo $$HOME
    volumes: ["posts:/posts", "/etc:/etc:ro", {type: volume, source: cache, target: /cache}]
    ports: ["80:8080", "53:53/udp", "9000", {target: 1, published: 8081, mode: host}]
    deploy: {placement: {constraints: ["${WHERE:-node.role == worker}"]}}
  other: {image: other}
volumes:
  posts: {driver: pannier, driver_opts: {copies: "2"}}
  cache: {}
secrets:
  password: {external: true}
  renamed: {external: true, name: their_name}
  own: {file: ./own}
"""


def parse(text: str = TEXT, *, environment: Mapping[str, str] = {}, **given: str) -> Compose:
    return read(text, environment=environment, given=given)


def test_what_a_stack_asks_for_is_read() -> None:
    compose = parse()
    web, other = compose.services
    assert web == Service(
        name="web",
        constraints=("node.role == worker",),
        volumes=("posts",),
        ports=(Port(80), Port(53, "udp"), Port(8081)),
    )
    assert other == Service(name="other")
    assert compose.secrets == ("password", "their_name")
    assert compose.passwords == {"password"}
    assert compose.fsync == {"posts"}
    assert compose.variables == {"IMAGE": "blog", "TAG": "1", "WHERE": "node.role == worker"}


def test_what_was_typed_comes_before_the_environment_and_that_before_defaults() -> None:
    surroundings = {"WHERE": "node.hostname == a", "HOME": "/root"}
    assert parse(environment=surroundings).services[0].constraints == ("node.hostname == a",)
    typed = parse(environment=surroundings, WHERE="node.hostname == b")
    assert typed.services[0].constraints == ("node.hostname == b",)
    assert parse(environment={"WHERE": ""}).services[0].constraints == ("node.role == worker",)


def test_a_variable_that_the_file_does_not_have_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"no variable IMGE \(did you mean 'IMAGE'\?\)"):
        parse(IMGE="x")


def test_all_variables_that_lack_a_value_are_named() -> None:
    text = "services: {a: {image: '${A:?the image}', command: '${B?} ${C:?}'}}"
    with pytest.raises(InvalidInput) as caught:
        parse(text, environment={"A": "", "B": ""}, C="c")
    assert caught.value.message == "the stack needs a value for A (the image)"
    assert caught.value.remedy == "add -e A=..."
    assert parse(text, A="1", B="2", C="3").services


@pytest.mark.parametrize("text", ["", "[]", "a: [", "services: []"])
def test_what_is_no_compose_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


def test_an_option_that_pannier_does_not_have_is_told_before_docker_is_asked() -> None:
    with pytest.raises(InvalidInput, match=r"volume posts of the compose file: .*copeis"):
        parse(TEXT.replace("copies:", "copeis:"))


# -- checks ----------------------------------------------------------------------------------------


def place(
    name: str,
    *,
    plugin: bool = True,
    obstacle: str | None = "",
    state: str = "ready",
    availability: Availability = Availability.ACTIVE,
    role: str = "worker",
    address: str = "10.0.0.1",
) -> StackPlace:
    node = SwarmNode(
        id=name, hostname=name, state=state, availability=availability, role=role, version=1
    )
    return StackPlace(node=node, address=address, has_plugin=plugin, sync_obstacle=obstacle)


def told(*places: StackPlace, taken: tuple[Publication, ...] = (), **given: str) -> list[str]:
    found = problems(
        read(TEXT, environment={}, given=given), stack="blog", places=places, taken=taken
    )
    return [each.what for each in found]


def test_nothing_is_in_the_way_where_all_is_well() -> None:
    assert told(place("a"), place("b")) == []


def test_a_node_without_pannier_is_named_if_the_service_could_get_there() -> None:
    bad = place("b", plugin=False)
    assert told(place("a"), bad) == ["b may get service web and has no Pannier"]
    assert told(place("a"), bad, WHERE="node.hostname == a") == []
    down = place("b", plugin=False, state="down")
    drained = place("b", plugin=False, availability=Availability.DRAIN)
    for away in (down, drained):
        assert told(place("a"), away) == []


def test_a_node_where_sync_calls_would_not_be_held_is_named() -> None:
    found = told(place("a"), place("b", obstacle="its runtime is runc"))
    assert found == [
        "b may get service web, whose volume has durability=fsync: its runtime is runc"
    ]
    assert told(place("a"), place("b", obstacle=None)) == [], "who does not answer is not blamed"


def test_a_constraint_that_no_node_meets_is_told() -> None:
    assert "no node of the Swarm is as service web wants it" in told(place("a", role="manager"))[0]
    (only,) = told(place("a", state="down"), place("m", role="manager"))
    assert only == "no node that service web may run on takes tasks now (a)"


def test_a_port_is_in_the_way_if_another_stack_publishes_it() -> None:
    taken = Publication(port=Port(8081), service="ci_door", stack="ci")
    assert told(place("a"), taken=(taken,)) == [
        "port 8081/tcp is published by service ci_door of stack ci"
    ]
    own = Publication(port=Port(80), service="blog_web", stack="blog")
    udp = Publication(port=Port(80, "udp"), service="dns", stack="")
    assert told(place("a"), taken=(own, udp)) == []


def test_all_problems_are_one_refusal() -> None:
    places = [place("a", plugin=False)]
    taken = [Publication(port=Port(80), service="web", stack="")]
    error = refusal("blog", problems(parse(), stack="blog", places=places, taken=taken))
    assert isinstance(error, Conflict)
    assert "published by service web; a may get service web" in error.message
    assert "docker service rm web" in error.remedy


def test_the_address_is_that_of_a_node_that_takes_tasks() -> None:
    places = [place("a", state="down", address="10.0.0.9"), place("b", address="fd00::1")]
    assert open_at(parse(), places) == "http://[fd00::1]:80/"


# -- progress --------------------------------------------------------------------------------------


def service(name: str, replicas: str, mode: str = "replicated") -> dict[str, str]:
    return {"Name": f"ci_{name}", "Replicas": replicas, "Mode": mode}


def task(
    name: str, state: str, *, node: str = "", error: str = "", desired: str = "Running"
) -> dict[str, str]:
    since = f"{state} 3 seconds ago"
    return {
        "Name": f"ci_{name}",
        "CurrentState": since,
        "DesiredState": desired,
        "Node": node,
        "Error": error,
    }


def test_progress_says_what_is_awaited_and_what_went_wrong() -> None:
    tasks = [
        task("web.1", "Preparing", node="a"),
        task("agent.n1", "Running", node="a"),
        task("agent.n2", "Ready", node="b"),
        {
            **task(
                "agent.n2", "Rejected", node="b", error='"No such image: x"', desired="Shutdown"
            ),
            "Name": " \\_ ci_agent.n2",
        },
    ]
    services = [service("web", "0/1"), service("agent", "1/2", "global"), service("db", "1/1")]
    found = read_progress("ci", services=services, tasks=tasks, updates={"ci_db": "updating"})
    assert [str(each) for each in found] == [
        "agent 1/2 (b: No such image: x)",
        "db 1/1 (is updated)",
        "web 0/1 (gets image and volumes on a)",
    ]
    assert not any(each.ready for each in found)


def test_a_service_is_ready_when_all_of_its_tasks_run() -> None:
    services = [
        service("a", "1/1"),
        service("b", "0/0"),
        service("c", "0/0", "global"),
        service("d", "3/3 (max 1 per node)", "global"),
    ]
    updates = {"ci_a": "completed", "ci_d": "paused"}
    found = read_progress("ci", services=services, tasks=[], updates=updates)
    assert [(each.name, each.ready, each.stuck) for each in found] == [
        ("a", True, False),
        ("b", True, False),
        ("c", False, False),
        ("d", True, True),
    ]


# -- what is shipped -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_stack_says_what_it_is_and_names_what_it_has(name: str) -> None:
    compose = read(shipped.compose_file(name).read_text(), environment={}, given={})
    assert compose.about
    assert compose.next_steps
    assert compose.fsync


def test_a_stack_that_there_is_not_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean 'jenkins'") as caught:
        shipped.write_to(tmp_path / "to", "jenkin")
    assert "jenkins, postgres, registry" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_stack_is_written_whole_and_never_over_something(tmp_path: Path) -> None:
    file = shipped.write_to(tmp_path / "new/jenkins", "jenkins")
    assert file.read_text() == shipped.compose_file("jenkins").read_text()
    assert (file.parent / "agent/agent.sh").exists()
    with pytest.raises(Conflict):
        shipped.write_to(tmp_path / "new/jenkins", "jenkins")
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["jenkins"]
