"""`pannier stack deploy` with a stand-in for docker's command line; with a real one: test_jenkins."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pannier.cli import stack as command
from pannier.cli.main import cli
from pannier.contract.views import NodeView
from pannier.contract.words import NodeState
from pannier.core.errors import Conflict, DeadlineExceeded, OutcomeUnknown
from pannier.stacks import deployment, passwords
from pannier.stacks.docker import Docker

HERE = Path(__file__).parent
SECRETS = ("jenkins_admin_password", "jenkins_agent_password")


def node(name: str, *, plugin: bool = True) -> str:
    plugins = [{"Type": "Volume", "Name": "pannier"}] if plugin else []
    described = {"Hostname": name, "Platform": {"OS": "linux"}, "Engine": {"Plugins": plugins}}
    return json.dumps(
        [
            {
                "ID": f"id-{name}",
                "Version": {"Index": 1},
                "Spec": {"Availability": "active", "Role": "manager", "Labels": {}},
                "Status": {"State": "ready", "Addr": "0.0.0.0"},
                "ManagerStatus": {"Addr": "10.0.0.1:2377", "Leader": True},
                "Description": described,
            }
        ]
    )


def listed(*, agent: str) -> str:
    lines = [
        ("controller", "1/1", "replicated"),
        ("agent", agent, "global"),
        ("door", "1/1", "global"),
    ]
    return "\n".join(
        json.dumps({"Name": f"jenkins_{name}", "Replicas": count, "Mode": mode})
        for name, count, mode in lines
    )


def service(name: str, *, stack: str, port: int) -> str:
    labels = {"com.docker.stack.namespace": stack}
    ports = [{"Protocol": "tcp", "PublishedPort": port}]
    return json.dumps(
        [{"Spec": {"Name": name, "Labels": labels, "EndpointSpec": {"Ports": ports}}}]
    )


@dataclass
class World:
    """A machine with a docker command whose answers a test prepares."""

    folder: Path
    state: dict[str, Any]

    def write(self) -> None:
        (self.folder / "state.json").write_text(json.dumps(self.state))

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    def lines(self) -> list[str]:
        return [each["line"] for each in self.read().get("calls", [])]

    def run(self, *words: str) -> Result:
        self.write()
        return CliRunner().invoke(cli, ["stack", "deploy", *words], prog_name="pannier")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n" + (HERE / "docker_program.py").read_text())
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(passwords, "DIRECTORY", tmp_path / "secrets")
    nodes = [NodeView(name="a", address="10.0.0.1", state=NodeState.UP, drivers=[], version="", volumes=0,
                      joined_at="", swarm="id-a", sync_obstacle="")]  # fmt: skip
    monkeypatch.setattr(command, "_pannier_nodes", lambda session: nodes)
    monkeypatch.setattr(deployment, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(deployment, "_PAUSE_SECONDS", 0.0)
    answers = {
        "stack deploy": [""],
        "info": ['{"LocalNodeState": "active", "ControlAvailable": true}'],
        "node ls": ["id-a"],
        "node inspect id-a": [node("a")],
        "service ls": [""],
        "service inspect": [json.dumps([{"Spec": {"Name": "jenkins_agent"}}])],
        "stack services": [listed(agent="1/1")],
        "stack ps": [""],
    }
    return World(program.parent, {"answers": answers, "refuse": {}, "secrets": {}})


def test_it_deploys_waits_and_says_where_to_go_on(world: World) -> None:
    world.state["answers"]["stack services"] = [listed(agent="0/0"), listed(agent="1/1")]
    done = world.run("jenkins", "-e", "JENKINS_EXECUTORS=4")
    assert done.exit_code == 0, done.output
    assert "controller 1/1" in done.stdout
    assert "http://10.0.0.1:8080/" in done.stdout
    assert "agent 0/0" in done.stderr
    deploys = [each for each in world.read()["calls"] if "--compose-file" in each["line"]]
    assert len(deploys) == 1
    assert deploys[0]["line"].endswith("stacks/jenkins/compose.yml jenkins")
    assert deploys[0]["variables"] == {"JENKINS_EXECUTORS": "4"}


def test_secrets_are_made_once_and_told_where_not_what(world: World, tmp_path: Path) -> None:
    first = world.run("jenkins", "-o", "json")
    assert first.exit_code == 0, first.output
    world.state["secrets"] = kept = world.read()["secrets"]
    said = json.loads(first.stdout)["secrets"]
    for name, told in zip(SECRETS, said, strict=True):
        file = tmp_path / "secrets" / name
        assert told == {
            "name": name, "made": True, "kept": f"{socket.gethostname()}:{file}", "value": None,
        }  # fmt: skip
        assert file.read_text() == kept[name]["value"]
        assert len(file.read_text()) >= 32
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() not in first.output
    assert kept[SECRETS[0]]["value"] != kept[SECRETS[1]]["value"]

    again = json.loads(world.run("jenkins", "-o", "json", "--show-secrets").stdout)
    assert [each["made"] for each in again["secrets"]] == [False, False]
    assert [each["value"] for each in again["secrets"]] == [kept[name]["value"] for name in SECRETS]
    assert world.read()["secrets"] == kept


def test_a_secret_that_is_no_password_is_asked_for(world: World, tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text(
        "services: {web: {image: web}}\n"
        "secrets: {tls_key: {external: true}, password: {external: true}}\n"
        "x-pannier: {passwords: [password]}\n"
    )
    refused = world.run("jenkins", "--file", str(own))
    assert refused.exit_code != 0
    assert "no secret tls_key" in refused.stderr
    assert "docker secret create tls_key" in refused.stderr
    assert world.read()["secrets"] == {}
    assert not any("--compose-file" in line for line in world.lines())


def test_a_persons_own_secret_stays_and_a_run_that_was_cut_short_is_gone_on_with(
    world: World, tmp_path: Path
) -> None:
    world.state["secrets"] = {SECRETS[0]: {"label": {}, "value": "theirs"}}
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / SECRETS[1]).write_text("from before the power cut")
    done = json.loads(world.run("jenkins", "-o", "json", "--show-secrets").stdout)
    own, unfinished = done["secrets"]
    assert (own["made"], own["kept"], own["value"]) == (False, "", None)
    assert unfinished["value"] == "from before the power cut"
    assert world.read()["secrets"][SECRETS[1]]["value"] == "from before the power cut"
    assert world.read()["secrets"][SECRETS[0]]["value"] == "theirs"


def test_who_is_second_to_make_a_secret_keeps_no_file_of_it(world: World, tmp_path: Path) -> None:
    """Between our look and our attempt another manager has made it."""
    world.state["secrets"] = {"x": {"label": {passwords.LABEL: "other:/x"}, "value": "theirs"}}
    world.write()
    passwords._make(Docker(), "x", tmp_path)
    assert not (tmp_path / "x").exists()


# -- refusals --------------------------------------------------------------------------------------


def refused(world: World, *words: str) -> str:
    """What it says; it must have touched nothing."""
    done = world.run(*(words or ("jenkins",)))
    assert done.exit_code not in (0, 1), done.output
    assert done.stdout == ""
    if (world.folder / "docker").exists():
        assert not [line for line in world.lines() if "--compose-file" in line or "create" in line]
    return done.stderr


def test_without_docker_it_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "docker").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no command docker" in refused(world)


def test_a_docker_without_stacks_is_told(world: World) -> None:
    world.state["refuse"]["stack deploy --help"] = "docker: 'stack' is not a docker command."
    assert "cannot deploy stacks: docker: 'stack' is not" in refused(world)


def test_an_engine_that_is_no_manager_is_told(world: World) -> None:
    world.state["answers"]["info"] = ['{"LocalNodeState": "inactive"}']
    assert "is in no Swarm" in refused(world)
    managers = [{"Addr": "10.0.0.7:2377"}]
    worker = {"LocalNodeState": "active", "ControlAvailable": False, "RemoteManagers": managers}
    world.state["answers"]["info"] = [json.dumps(worker)]
    assert "type it on a manager: 10.0.0.7" in refused(world)


def test_all_that_is_in_the_way_is_told_at_once(world: World) -> None:
    world.state["answers"] |= {
        "node ls": ["id-a\nid-b"],
        "node inspect id-b": [node("b", plugin=False)],
        "service ls": ["s1"],
        "service inspect s1": [service("web_front", stack="web", port=8080)],
    }
    said = refused(world)
    assert "port 8080/tcp is published by service web_front of stack web" in said
    assert "b may get service controller and has no Pannier" in said


def test_a_typing_error_is_told_before_docker_is_asked(world: World) -> None:
    assert "no stack jenkin " in refused(world, "jenkin")
    assert "did you mean 'JENKINS_IMAGE'?" in refused(world, "jenkins", "-e", "JENKINS_IMAG=x")
    assert world.lines() == []


# -- the wait --------------------------------------------------------------------------------------


def test_a_time_out_tells_which_service_fails_and_why(world: World) -> None:
    failed = {"Name": "jenkins_agent.n1", "CurrentState": "Rejected 1 second ago", "Node": "a",
              "DesiredState": "Shutdown", "Error": "No such image: agent:1"}  # fmt: skip
    world.state["answers"] |= {
        "stack services": [listed(agent="0/1")],
        "stack ps": [json.dumps(failed)],
    }
    done = world.run("jenkins", "--wait", "1s")
    assert done.exit_code == DeadlineExceeded.exit_status
    assert "agent 0/1 (a: No such image: agent:1)" in done.stderr
    assert "docker service ps --no-trunc jenkins_agent" in done.stderr


def test_an_update_that_swarm_has_given_up_ends_the_wait(world: World) -> None:
    paused = [{"Spec": {"Name": "jenkins_agent"}, "UpdateStatus": {"State": "paused"}}]
    world.state["answers"]["service inspect"] = [json.dumps(paused)]
    done = world.run("jenkins")
    assert done.exit_code == Conflict.exit_status
    assert "stopped the update of agent" in done.stderr


def test_what_docker_refuses_is_told_with_the_way_out(world: World) -> None:
    why = "failed to update config jenkins_door_1: only updates to Labels are allowed"
    world.state["refuse"]["stack deploy --resolve-image"] = why
    done = world.run("jenkins")
    assert done.exit_code == Conflict.exit_status
    assert "JENKINS_CONFIG_VERSION=2" in done.stderr


NO_AGREEMENT = "Error response from daemon: rpc error: code = DeadlineExceeded desc = context deadline exceeded"


def test_managers_that_elect_a_leader_are_asked_again(world: World) -> None:
    world.state["refuse"]["stack deploy --resolve-image"] = [NO_AGREEMENT] * 2
    assert world.run("jenkins").exit_code == 0
    assert sum(line.startswith("stack deploy --resolve-image") for line in world.lines()) == 3


def test_managers_that_never_agree_are_told(world: World) -> None:
    world.state["refuse"]["stack deploy --resolve-image"] = NO_AGREEMENT
    done = world.run("jenkins")
    assert done.exit_code == OutcomeUnknown.exit_status
    assert "the Swarm's managers did not agree in time" in done.stderr
    assert "do the same again" in done.stderr


def test_it_can_be_told_not_to_wait(world: World) -> None:
    world.state["answers"].pop("stack services")
    assert world.run("jenkins", "--wait", "0").exit_code == 0
