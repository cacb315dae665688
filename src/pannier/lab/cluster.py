"""Makes one cluster of a lab's machines: etcd, Pannier, Swarm.

Swarm comes last: a machine describes its volume plugins to Swarm when it joins, and then only every
20 s or so. For a machine that joins with Pannier's plugin already active, Swarm knows it at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pannier.lab.errors import LabError
from pannier.lab.machine import POOL_DEVICE, Machine
from pannier.lab.process import wait_for
from pannier.lab.state import LabState
from pannier.store.etcd_member import DROP_IN, REFUSED

T = TypeVar("T")

_CA_DIR = "/etc/pannier/ca"
_ETCD_PKI = "/etc/etcd/pki"
_MANAGERS = 3
_ETCD_MEMBERS = 3
_SWARM_PORT = 2377
_READY_TIMEOUT_S = 60

_INSTALL_ETCD_PKI = f"""
set -eu
install -d -o etcd -g etcd -m 0700 {_ETCD_PKI}
base64 -d | tar -x -C {_ETCD_PKI}
chown -R etcd:etcd {_ETCD_PKI}
"""
# `systemctl enable` would also update the links of System V, which takes seconds.
_START_ETCD = f"""
set -eu
cat >/etc/default/etcd
mkdir -p /etc/systemd/system/etcd.service.d
cat >/etc/systemd/system/etcd.service.d/pannier.conf <<EOF
{DROP_IN}EOF
systemctl daemon-reload
ln -sf /lib/systemd/system/etcd.service /etc/systemd/system/multi-user.target.wants/
systemctl start etcd
"""

# Off by default, but a lab is there to show it.
_TURN_ON = """
sed -i 's/^evacuate = .*/evacuate = true/' /etc/pannier/pannierd.toml
systemctl restart pannierd
"""


def bring_up(machines: list[Machine], *, pannier: bool, report: Callable[[str], None]) -> None:
    """Form the cluster on machines that have just booted for the first time.

    Args:
        pannier: also etcd and Pannier, not only Swarm.
        report: told in a few words what is being done.

    Raises:
        LabError: a part refused or did not get ready in time.
    """
    wish = machines[0].state
    if pannier:
        if wish.store == "etcd":
            report("starting etcd")
            start_etcd(machines)
        report("starting Pannier")
        start_pannier(machines, store=store_url(wish))
    report("forming the Swarm")
    form_swarm(machines)
    wait_until_schedulable(machines, plugin=pannier)


def store_url(wish: LabState) -> str:
    """The argument of `pannier init --store`."""
    if wish.store == "sqlite":
        return "sqlite"
    return "etcd://" + ",".join(f"{node.address}:2379" for node in wish.nodes[: _etcd_size(wish)])


# -- etcd --------------------------------------------------------------------------------------


def start_etcd(machines: list[Machine]) -> None:
    """Run etcd with mutual TLS, its certificates from the cluster's own CA on the first machine."""
    members = machines[: _etcd_size(machines[0].state)]
    certificates = _issue_etcd_certificates(members)
    cluster = ",".join(f"{each.node.name}=https://{each.node.address}:2380" for each in members)

    def start(member: Machine) -> None:
        install = ["sh", "-c", _INSTALL_ETCD_PKI]
        member.run(install, input=certificates[member.node.name])
        settings = _etcd_settings(member, cluster)
        member.run(["sh", "-c", _START_ETCD], input=settings, timeout=_READY_TIMEOUT_S)

    _on_all(start, members)
    _on_all(_wait_for_etcd, members)


def _wait_for_etcd(member: Machine) -> None:
    wait_for(
        lambda: _etcd_is_healthy(member) or None,
        what=f"etcd on {member.node.name}",
        timeout=_READY_TIMEOUT_S,
        remedy=f"`pannier lab run --name {member.state.name} {member.node.name} journalctl -u etcd`",
    )


def _etcd_size(wish: LabState) -> int:
    return _ETCD_MEMBERS if len(wish.nodes) >= _ETCD_MEMBERS else 1


def _issue_etcd_certificates(members: list[Machine]) -> dict[str, str]:
    """Per member: a base64 tar of ca.crt, tls.crt and tls.key."""
    first = members[0]
    script = f"set -eu; umask 077; pannier ca create --directory {_CA_DIR}\n"
    for node in (member.node for member in members):
        out = f"/run/etcd-{node.name}"
        script += f"pannier ca issue etcd-{node.name} --address {node.address} --out {out}\n"
    first.run(["sh", "-c", script], timeout=60)
    found = {}
    for node in (member.node for member in members):
        take = f"cd /run/etcd-{node.name} && tar -c ca.crt tls.crt tls.key | base64"
        found[node.name] = first.run(["sh", "-c", take]).stdout
        first.run(["rm", "-r", f"/run/etcd-{node.name}"])
    return found


def _etcd_settings(member: Machine, cluster: str) -> str:
    address = member.node.address
    settings = {
        "NAME": member.node.name,
        "LISTEN_PEER_URLS": f"https://{address}:2380",
        "INITIAL_ADVERTISE_PEER_URLS": f"https://{address}:2380",
        "LISTEN_CLIENT_URLS": f"https://{address}:2379",
        "ADVERTISE_CLIENT_URLS": f"https://{address}:2379",
        "INITIAL_CLUSTER": cluster,
        "INITIAL_CLUSTER_STATE": "new",
        "INITIAL_CLUSTER_TOKEN": f"pannier-lab-{member.state.name}",
        # As `pannier deploy` has it.
        "AUTO_COMPACTION_MODE": "periodic",
        "AUTO_COMPACTION_RETENTION": "1h",
        "QUOTA_BACKEND_BYTES": "2147483648",
    }
    for prefix, lists in (("", "CLIENT_"), ("PEER_", "PEER_")):
        settings[f"{lists}CRL_FILE"] = str(REFUSED)
        settings[f"{prefix}CLIENT_CERT_AUTH"] = "true"
        settings[f"{prefix}TRUSTED_CA_FILE"] = f"{_ETCD_PKI}/ca.crt"
        settings[f"{prefix}CERT_FILE"] = f"{_ETCD_PKI}/tls.crt"
        settings[f"{prefix}KEY_FILE"] = f"{_ETCD_PKI}/tls.key"
    return "".join(f"ETCD_{key}={value}\n" for key, value in settings.items())


def _etcd_is_healthy(member: Machine) -> bool:
    pki = ["--cacert", f"{_ETCD_PKI}/ca.crt", "--cert", f"{_ETCD_PKI}/tls.crt"]
    pki += ["--key", f"{_ETCD_PKI}/tls.key"]
    url = f"https://{member.node.address}:2379/health"
    curl = ["curl", "--silent", "--max-time", "2", *pki, url]
    answer = member.run(curl, check=False).stdout
    return '"health":"true"' in answer.replace(" ", "")


# -- Pannier -----------------------------------------------------------------------------------


def start_pannier(machines: list[Machine], *, store: str) -> None:
    """Make the first machine a cluster of its own and let the others join it."""
    first, others = machines[0], machines[1:]
    init = ["pannier", "init", *_identity(first), "--store", store]
    first.run(init, timeout=_READY_TIMEOUT_S)
    if others:
        create = ["pannier", "token", "create", "--uses", str(len(others)), "-o", "json"]
        token = json.loads(first.run(create, timeout=30).stdout)["token"]

        def join(machine: Machine) -> None:
            command = ["pannier", "join", first.node.address, "--token", token, *_identity(machine)]
            machine.run(command, timeout=_READY_TIMEOUT_S)

        _on_all(join, others)
    _on_all(lambda each: each.run(["sh", "-euc", _TURN_ON], timeout=60), machines)
    _on_all(_wait_for_plugin, machines)


def _identity(machine: Machine) -> list[str]:
    node = machine.node
    driver = machine.state.driver
    storage = ["--pool", POOL_DEVICE] if driver == "btrfs" else []
    return ["--name", node.name, "--address", node.address, "--driver", driver, *storage]


def _wait_for_plugin(machine: Machine) -> None:
    """Wait until the engine has the plugin active; asking for its volumes activates it."""

    def active() -> bool:
        machine.engine.get("/volumes")
        plugins = machine.engine.get("/info")["Plugins"]["Volume"] or []
        return "pannier" in plugins

    wait_for(
        lambda: active() or None,
        what=f"Pannier's volume plugin in the engine of {machine.node.name}",
        timeout=_READY_TIMEOUT_S,
        remedy="see `journalctl -u pannierd` and `journalctl -u docker` in the machine",
    )


# -- Swarm -------------------------------------------------------------------------------------


def form_swarm(machines: list[Machine]) -> None:
    """One Swarm of all machines, the first three of them managers."""
    first = machines[0]
    body = _swarm_addresses(first) | {"ForceNewCluster": False}
    first.engine.post("/swarm/init", body)
    tokens = first.engine.get("/swarm")["JoinTokens"]
    remote = [f"{first.node.address}:{_SWARM_PORT}"]
    # Managers one after the other: each changes the group that has to agree on the next change.
    for machine in machines[1:_MANAGERS]:
        _join_swarm(machine, remote, tokens["Manager"])
    _on_all(lambda each: _join_swarm(each, remote, tokens["Worker"]), machines[_MANAGERS:])


def _join_swarm(machine: Machine, remote: list[str], token: str) -> None:
    body = _swarm_addresses(machine) | {"RemoteAddrs": remote, "JoinToken": token}
    machine.engine.post("/swarm/join", body)


def _swarm_addresses(machine: Machine) -> dict[str, Any]:
    address = machine.node.address
    return {"AdvertiseAddr": address, "ListenAddr": f"{address}:{_SWARM_PORT}"}


def wait_until_schedulable(machines: list[Machine], *, plugin: bool) -> None:
    """Wait until Swarm can give work to every machine.

    Args:
        plugin: also work that needs Pannier's volumes.
    """

    def is_ready(node: dict[str, Any]) -> bool:
        plugins = node["Description"].get("Engine", {}).get("Plugins") or []
        has_plugin = any((each["Type"], each["Name"]) == ("Volume", "pannier") for each in plugins)
        return node["Status"]["State"] == "ready" and (has_plugin or not plugin)

    def all_ready() -> bool:
        try:
            nodes = machines[0].engine.get("/nodes")
        except LabError:
            return False  # for a moment there is no leader
        return len(nodes) == len(machines) and all(is_ready(node) for node in nodes)

    wait_for(
        lambda: all_ready() or None,
        what=f"a Swarm of {len(machines)} machines" + (" with Pannier's plugin" if plugin else ""),
        timeout=_READY_TIMEOUT_S,
        remedy="see `docker node ls` on node1 and `journalctl -u docker` in the machines",
    )


def _on_all(work: Callable[[Machine], T], machines: Iterable[Machine]) -> list[T]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(work, machines))
