"""`pannier deploy` without hosts: what it hands to Ansible, and what the collection's modules read."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from collection import ROOT, plugin

from pannier.cli.main import cli
from pannier.deploy.run import PlaybookRun, collection, environment
from pannier.store.etcd_health import USUAL_QUOTA_BYTES


def test_the_words_for_ansible() -> None:
    deployment = PlaybookRun(
        inventory=Path("hosts.yml"),
        limit="node1,node2",
        check=True,
        variables={"pannier_pool": "/dev/a b"},
        verbosity=2,
    )
    assert deployment.arguments() == [
        *("--inventory", "hosts.yml", "pannier.cluster.site", "--limit", "node1,node2", "--check"),
        *("--extra-vars", '{"pannier_pool": "/dev/a b"}', "-vv"),
    ]


def test_the_callers_settings_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_FORKS", "3")
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", "/theirs")
    monkeypatch.setenv("LC_ALL", "C")
    found = environment("/ours", verbose=False)
    assert found["ANSIBLE_FORKS"] == "3"
    assert found["ANSIBLE_COLLECTIONS_PATH"] == "/ours:/theirs"
    assert found["LC_ALL"] == "C.UTF-8"
    assert found["ANSIBLE_STDOUT_CALLBACK"] == "pannier.cluster.progress"
    assert environment("/ours", verbose=True)["ANSIBLE_STDOUT_CALLBACK"] == "default"


def test_without_ansible_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["deploy", "-i", str(tmp_path / "hosts.yml")])
    assert result.exit_code == 6
    assert "pip install 'pannier[deploy]'" in result.stderr


def test_without_an_inventory_it_says_where_to_get_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["deploy", "-i", str(tmp_path / "hosts.yml")])
    assert result.exit_code == 2
    assert "pannier lab inventory" in result.stderr


def test_an_inventory_without_nodes_is_a_failure(tmp_path: Path) -> None:
    """Ansible alone would be content. As JSON, one object tells all."""
    (tmp_path / "hosts.yml").write_text("all: {hosts: {web: }}\n")
    command = [sys.executable, "-m", "pannier.cli", "deploy", "-i", "hosts.yml", "-o", "json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert summary["hosts"]["localhost"]["failures"] == 1
    assert summary["changes"] == []
    assert [failure["step"] for failure in summary["failures"]] == ["Find the nodes"]
    assert "no group nodes" in summary["failures"][0]["message"]


def test_the_collection_is_where_it_is_looked_for() -> None:
    assert (collection() / "playbooks/site.yml").exists()
    assert yaml.safe_load((collection() / "galaxy.yml").read_text())["namespace"] == "pannier"


@pytest.mark.parametrize("role", sorted((ROOT / "roles").iterdir()), ids=lambda role: role.name)
def test_every_default_of_a_role_is_in_its_specification(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    specified: dict[str, object] = {}
    for spec in specs.values():
        specified |= {name: what.get("default") for name, what in spec["options"].items()}
    assert {name: specified.get(name) for name in defaults} == defaults


def test_every_variable_is_in_the_documentation() -> None:
    page = (ROOT.parent / "docs/deploy.md").read_text()
    for specs in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(specs.read_text())["argument_specs"].values():
            for name in spec["options"]:
                assert f"`{name}`" in page, name


def test_settings_are_read_whatever_else_a_file_has() -> None:
    observe = plugin("module_utils.observe")
    text = '# a comment\nnode = "node1"\nETCD_NAME=node2\n\n[table]\ndrivers = ["btrfs"]\n'
    found = observe._settings_of(text)
    assert (found["node"], found["ETCD_NAME"]) == ("node1", "node2")


def test_who_listens_is_found_out(unused_tcp_port: int) -> None:
    observe = plugin("module_utils.observe")
    script = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(unused_tcp_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        found = observe._listeners([unused_tcp_port])
        server.stdin.close()  # type: ignore[union-attr]
    assert list(found) == [str(unused_tcp_port)]
    assert found[str(unused_tcp_port)].startswith("python")
    assert observe._listeners([unused_tcp_port]) == {}


def test_the_programs_error_keeps_its_remedy() -> None:
    program = plugin("module_utils.program")
    error = json.dumps({"code": "denied", "message": "no", "remedy": "ask"})
    assert program.said(f"a warning\n{error}\n") == ("no", "ask", "denied")
    assert program.said("bash: not found\n") == ("bash: not found", "", "")
    assert program.said("")[0]


def test_no_secret_is_on_a_command_line() -> None:
    member = plugin("modules.member")
    wish = dict.fromkeys(("driver", "pool", "pool_size", "force_format"))
    wish |= {
        "name": "n",
        "address": "a",
        "store": "sqlite",
        "runtime": True,
        "runtime_before": None,
    }
    words = member.words_of(wish | {"join": "192.0.2.1", "token": "secret", "pool": "/dev/vdb"})
    assert words == ["join", "192.0.2.1", "--name", "n", "--address", "a", "--pool", "/dev/vdb"]
    assert member.words_of(wish | {"join": None, "token": None})[:3] == [
        "init",
        "--store",
        "sqlite",
    ]


def test_a_node_may_have_another_runtime_or_none() -> None:
    member = plugin("modules.member")
    wish = dict.fromkeys(("driver", "pool", "pool_size", "force_format", "join"))
    wish |= {"name": "n", "address": "a", "store": "sqlite", "runtime": True}
    words = member.words_of(wish | {"runtime_before": "nvidia"})
    assert words[-2:] == ["--runtime-before", "nvidia"]
    words = member.words_of(wish | {"runtime": False, "runtime_before": None})
    assert words[-1] == "--no-runtime"


def test_what_is_to_be_installed_has_a_digest(tmp_path: Path) -> None:
    """Another build of the same version is another one."""
    venv = plugin("action.venv")
    (tmp_path / "pannier-1-py3-none-any.whl").write_bytes(b"one")
    python = [3, 11]
    first = venv._digest("pannier", venv._wheels(str(tmp_path)), python)
    assert venv._digest("pannier", venv._wheels(str(tmp_path)), python) == first
    (tmp_path / "pannier-1-py3-none-any.whl").write_bytes(b"two")
    assert venv._digest("pannier", venv._wheels(str(tmp_path)), python) != first
    assert venv._digest("pannier==2", [], python) != venv._digest("pannier==1", [], python)
    assert venv._digest("pannier", [], [3, 13]) != venv._digest("pannier", [], python)


def test_who_is_not_ready_is_named() -> None:
    ready = plugin("modules.ready")
    has = {"Engine": {"Plugins": [{"Type": "Volume", "Name": "pannier"}]}}
    swarm = [
        {"ID": "a", "Status": {"State": "ready"}, "Description": has},
        {"ID": "b", "Status": {"State": "ready"}, "Description": {"Engine": {"Plugins": None}}},
        {"ID": "c", "Status": {"State": "down"}, "Description": has},
        {"ID": "d", "Status": {"State": "ready"}, "Description": has},
    ]
    cluster = [{"name": "n1", "state": "up"}, {"name": "n4", "state": "down"}]
    assert ready.lacking({"a": "n1"}, swarm, cluster) == []
    assert ready.lacking({"b": "n2", "c": "n3", "d": "n4", "e": "n5"}, swarm, cluster) == [
        "the Swarm does not know yet that n2 has Pannier",
        "n3 is not ready in the Swarm",
        "n4 is down in the cluster",
        "n5 is not ready in the Swarm",
    ]


def test_the_same_failure_on_many_hosts_is_told_once() -> None:
    progress = plugin("callback.progress")
    failures = [
        progress.Failure("node1", "Install", "no space"),
        progress.Failure("node2", "Install", "no space"),
        progress.Failure("", "Decide", "no"),
    ]
    assert progress.gathered(failures) == {
        ("Install", "no space"): ["node1", "node2"],
        ("Decide", "no"): [],
    }


def test_a_failed_result_is_told_without_ansibles_words() -> None:
    progress = plugin("callback.progress")
    said = {"msg": "Task failed: Module failed: no space. Next: free some", "changed": False}
    assert progress._message(said) == "no space. Next: free some"
    items = {
        "results": [{"failed": True, "msg": "a"}, {"failed": False}, {"failed": True, "msg": "a"}]
    }
    assert progress._message(items) == "a"


def test_a_rule_of_ufw_is_known_again() -> None:
    firewall = plugin("modules.firewall")
    rule = firewall.ufw_rule("10.0.0.2", "tcp", [7946, 2377])
    added = (
        "Added user rules (see 'ufw status' for running firewall):\n"
        "ufw allow 22/tcp\n"
        "ufw allow from 10.0.0.2 to any port 2377,7946 proto tcp comment 'pannier'\n"
    )
    assert firewall.has_ufw_rule(added, rule)
    assert not firewall.has_ufw_rule(added, firewall.ufw_rule("10.0.0.3", "tcp", [2377, 7946]))
    assert not firewall.has_ufw_rule(added, firewall.ufw_rule("10.0.0.2", "udp", [2377, 7946]))
    assert not firewall.has_ufw_rule(added, firewall.ufw_rule("10.0.0.2", "tcp", [2377]))


def test_etcd_forgets_old_revisions_and_has_the_quota_that_doctor_counts_with() -> None:
    template = (ROOT / "roles/etcd/templates/etcd.j2").read_text()
    deployed = dict(
        line.split("=", 1) for line in template.splitlines() if line.startswith("ETCD_")
    )
    assert deployed["ETCD_AUTO_COMPACTION_MODE"] == "periodic"
    assert deployed["ETCD_AUTO_COMPACTION_RETENTION"] == "1h"
    assert int(deployed["ETCD_QUOTA_BACKEND_BYTES"]) == USUAL_QUOTA_BYTES
