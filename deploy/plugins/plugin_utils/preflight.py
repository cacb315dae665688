"""What is wrong with an inventory and its hosts, and what is to be done: pure, from facts to findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal

from ansible_collections.pannier.cluster.plugins.plugin_utils.wheels import unfit

Facts = Mapping[str, Any]

RELEASES = {"12": "bookworm", "13": "trixie"}
PYTHON = (3, 11)
OLDEST_DOCKER = (20, 10)
CLOCK_S = 1.0
SMALLEST_FREE_BYTES = 3 << 30
OPENED = ("ufw", "firewalld")
"""Firewalls through which the nodes are let by the playbooks."""
ETCD_SIZES = (1, 3, 5)
PORTS = {
    2377: "dockerd",
    7946: "dockerd",
    2379: "etcd",
    2380: "etcd",
    7400: "pannierd",
    7401: "pannierd",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know.

    Attributes:
        host: name in the inventory; empty for the inventory as a whole.
        level: a ``problem`` stops everything, before any host is touched.
    """

    host: str
    level: Literal["problem", "note"]
    what: str
    remedy: str

    def line(self) -> str:
        """One line for a person."""
        return f"{self.host or 'inventory'}: {self.what}. {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the inventory says of one host; the name is empty if it is the inventory's own.

    Attributes:
        wheels: file names of its wheelhouse; None where pip asks an index.
        opens_firewall: whether the playbooks may let the other nodes through ufw or firewalld.
    """

    name: str = ""
    wheels: tuple[str, ...] | None = None
    opens_firewall: bool = True
    driver: str = "btrfs"
    pool: str = ""
    force_format: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All hosts: what they are to be, and what was found.

    Attributes:
        asked: the nodes that this run is about; all, unless it is limited.
        facts: None for a host that did not answer or was not asked.
    """

    nodes: tuple[str, ...]
    managers: tuple[str, ...]
    etcd: tuple[str, ...]
    asked: frozenset[str]
    wishes: Mapping[str, Wish]
    facts: Mapping[str, Facts | None]

    def seen(self) -> dict[str, Facts]:
        """The facts of all hosts that answered, in the inventory's order."""
        return {name: facts for name in self.nodes if (facts := self.facts.get(name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who does what.

    Attributes:
        founder: has the certificate authority, or gets it.
        leader: a manager of the Swarm, or who makes it.
        store: what ``pannier init --store`` is told.
    """

    founder: str
    leader: str
    store: str
    findings: tuple[Finding, ...] = field(default=())

    @property
    def problems(self) -> list[Finding]:
        """The findings that stop everything."""
        return [each for each in self.findings if each.level == "problem"]


def addresses_of(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where the nodes reach each other, from all that Ansible knows of each host.

    One that was not looked at is known by its inventory, and only where that has an address: a name
    need not mean the same to the nodes, and firewalls take none.
    """
    found = {}
    for name, of in hosts.items():
        facts = of.get("ansible_facts", {}).get("pannier_host") or {}
        told = (facts.get("address"), of.get("pannier_address"), of.get("ansible_host"), name)
        address = str(next(filter(None, told)))
        if _is_address(address):
            found[name] = address
    return found


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def examine(fleet: Fleet) -> Plan:
    """Look at everything at once."""
    seen = fleet.seen()
    findings = [*_groups(fleet), *_unreachable(fleet), *_twice(seen), *_clocks(seen)]
    for name, facts in seen.items():
        findings += _address(name, facts)
        findings += _system(name, facts, fleet.wishes.get(name, Wish()))
        findings += _ports(name, facts)
    findings += [*_membership(fleet), *_etcd(fleet), *_swarm(fleet)]
    return Plan(
        founder=next((name for name, facts in seen.items() if facts["authority"]), _first(fleet)),
        leader=next((name for name, facts in seen.items() if _is_manager(facts)), _first(fleet)),
        store=_store(fleet),
        findings=tuple(findings),
    )


def _first(fleet: Fleet) -> str:
    return (*fleet.managers, *fleet.nodes, "")[0]


def _store(fleet: Fleet) -> str:
    seen = fleet.seen()
    members = [f"{seen[name]['address']}:2379" for name in fleet.etcd if name in seen]
    return "etcd://" + ",".join(members) if members else "sqlite"


def problem(host: str, what: str, remedy: str) -> Finding:
    """A finding that stops everything."""
    return Finding(host, "problem", what, remedy)


def _note(host: str, what: str, remedy: str) -> Finding:
    return Finding(host, "note", what, remedy)


# -- the inventory ---------------------------------------------------------------------------------


def _groups(fleet: Fleet) -> Iterator[Finding]:
    managers, members = len(fleet.managers), len(fleet.etcd)
    if not fleet.nodes:
        yield problem("", "the group nodes is empty", "Name the hosts that are to be nodes")
        return
    for group, names in (("managers", fleet.managers), ("etcd", fleet.etcd)):
        for name in names:
            if name not in fleet.nodes:
                yield problem(name, f"is in {group} but not in nodes", "Add it to nodes")
    if not managers:
        yield problem("", "the group managers is empty", "Name one, three or five of the nodes")
    elif managers % 2 == 0:
        what = f"{managers} managers: they bear no more losses than {managers - 1}"
        yield problem("", what, "Take one out, or add one")
    if not members and len(fleet.nodes) > 1:
        what = f"{len(fleet.nodes)} nodes and no etcd"
        yield problem("", what, "Name one, three or five of the nodes in the group etcd")
    elif members and members not in ETCD_SIZES:
        what = f"an etcd of {members} members"
        if members == 2:
            what += ", which stops when either is lost"
        yield problem("", what, "Name one, three or five")
    if len(fleet.nodes) > 2 and (managers == 1 or members == 1):
        what = "a single manager or etcd member: when it is lost, nothing starts elsewhere"
        yield _note("", what, "Three bear the loss of one")


def _unreachable(fleet: Fleet) -> Iterator[Finding]:
    for name in fleet.nodes:
        if name in fleet.asked and fleet.facts.get(name) is None:
            yield problem(
                name, "cannot be reached", f"Try: ansible -i INVENTORY -m ping {name}; or --limit"
            )


def _twice(seen: Mapping[str, Facts]) -> Iterator[Finding]:
    for key, word in (("address", "address"), ("name", "name"), ("machine_id", "machine id")):
        count = Counter(facts[key] for facts in seen.values() if facts[key])
        for value, number in count.items():
            if number > 1:
                names = ", ".join(name for name, facts in seen.items() if facts[key] == value)
                remedy = "Take one out of the inventory"
                if key == "machine_id":
                    remedy = "One host under two names, or a clone: systemd-machine-id-setup"
                yield problem(names, f"have the same {word} {value}", remedy)


def _clocks(seen: Mapping[str, Facts]) -> Iterator[Finding]:
    """The farthest apart, by as much as is certain."""
    known = {name: facts for name, facts in seen.items() if facts.get("clock_offset") is not None}
    if len(known) < 2:
        return
    first = min(known, key=lambda name: known[name]["clock_offset"])
    for name, facts in known.items():
        apart = facts["clock_offset"] - known[first]["clock_offset"]
        if apart - facts["clock_error"] - known[first]["clock_error"] > CLOCK_S:
            yield problem(
                name,
                f"its clock is {apart:.1f} s ahead of {first}'s",
                "Let both follow the same time servers (systemd-timesyncd or chrony)",
            )


# -- each host -------------------------------------------------------------------------------------


def _address(name: str, facts: Facts) -> Iterator[Finding]:
    """Etcd and Swarm listen on it: a name that is not known, or an address of a gateway, will not do."""
    own = [each for each in facts["addresses"] if not ip_address(each).is_loopback]
    if facts["addresses"] and facts["address"] not in own:
        what = f"{facts['address']} is none of its own addresses ({', '.join(own)})"
        yield problem(name, what, "Set pannier_address to the one that the others reach")


def _system(name: str, facts: Facts, wish: Wish) -> Iterator[Finding]:
    release = facts["release"]
    if release.get("ID") != "debian" or release.get("VERSION_ID") not in RELEASES:
        found = release.get("PRETTY_NAME") or "an unknown system"
        yield problem(name, f"runs {found}", "Use Debian 12 or 13")
    if not facts["root"]:
        remedy = "Set ansible_user: root, or ansible_become: true"
        yield problem(name, "is not worked on as root", remedy)
    if not facts["systemd"]:
        yield problem(name, "is not run by systemd", "Use a host with systemd")
    python = tuple(facts["python"])
    if python < PYTHON:
        found = ".".join(map(str, python))
        yield problem(name, f"has Python {found}", "3.11 or later; see ansible_python_interpreter")
    elif wish.wheels is not None:
        yield from _wheels(name, python[:2], wish.wheels)
    yield from _docker(name, facts)
    opened = wish.opens_firewall and facts["firewall"] in OPENED
    if facts["firewall"] and not opened and not facts["member"]:
        tcp = ", ".join(map(str, sorted(PORTS)))
        remedy = f"Between the nodes TCP {tcp} and UDP 4789, 7946 have to be open"
        yield _note(name, f"{facts['firewall']} is active", remedy)
    if facts["member"]:
        return  # what follows is of use only before it becomes a node
    if facts["free_bytes"] < SMALLEST_FREE_BYTES:
        what = f"{facts['free_bytes'] / 2**30:.1f} GiB are free in /var/lib"
        yield problem(name, what, "3 GiB are needed, and what the volumes need")
    if wish.driver == "btrfs" and facts["lacks"]:
        remedy = "Use a kernel that has that, or set pannier_driver: directory for all nodes"
        yield problem(name, f"the kernel has no {', no '.join(facts['lacks'])}", remedy)
    if wish.driver == "btrfs" and facts["pool"]:
        yield from _pool(name, facts["pool"], wish)


def _wheels(name: str, python: tuple[int, ...], wheels: tuple[str, ...]) -> Iterator[Finding]:
    if not any(wheel.startswith("pannier-") for wheel in wheels):
        yield problem(name, "its wheelhouse has no wheel of Pannier", "See docs/deploy.md")
    if lacking := unfit(wheels, python):
        version = ".".join(map(str, python))
        what = f"its wheelhouse has no {', '.join(lacking)} for its Python {version}"
        remedy = f"Add them: pip download --only-binary :all: --python-version {version} pannier"
        yield problem(name, what, remedy)


def _docker(name: str, facts: Facts) -> Iterator[Finding]:
    if not facts["foreign_docker"]:
        return
    docker = facts["docker"]
    version = tuple(docker["version"] or (0, 0))
    what = f"has Docker {'.'.join(map(str, version))} from {docker['package'] or 'no package'}"
    if version < OLDEST_DOCKER:
        yield problem(name, what, "20.10 or later is needed")
    else:
        yield _note(name, what, "It is used as it is, and kept up to date by you")


def _pool(name: str, pool: Facts, wish: Wish) -> Iterator[Finding]:
    path = pool["path"]
    if not pool["exists"]:
        if path.startswith("/dev/"):
            yield problem(name, f"there is no device {path}", "See lsblk, then set pannier_pool")
        return
    holds = pool["holds"]
    if not holds or holds.get("LABEL") == "pannier" or wish.force_format == path:
        return
    kind = holds.get("TYPE") or f"a partition table ({holds.get('PTTYPE', '?')})"
    label = f' "{holds["LABEL"]}"' if "LABEL" in holds else ""
    where = ", and it is mounted" if pool["mounted"] else ""
    remedy = f"If that may be erased: pannier_force_format: {path}"
    yield problem(name, f"{path} holds {kind}{label}{where}", remedy)


def _ports(name: str, facts: Facts) -> Iterator[Finding]:
    for port, program in facts["listening"].items():
        if program not in (PORTS.get(int(port)), "?"):
            what = f"port {port} is in use by {program}"
            yield problem(name, what, f"Stop it, or move it: {PORTS[int(port)]} needs the port")


# -- what is there already -------------------------------------------------------------------------


def _membership(fleet: Fleet) -> Iterator[Finding]:
    members = {name: facts for name, facts in fleet.seen().items() if facts["member"]}
    clusters = {facts["member"].get("cluster") for facts in members.values()}
    if len(clusters) > 1:
        found = "; ".join(
            f"{name} {facts['member'].get('cluster')}" for name, facts in members.items()
        )
        remedy = "Give each cluster an inventory of its own"
        yield problem("", f"nodes of several clusters: {found}", remedy)
    for name, facts in members.items():
        for key in ("node", "address"):
            wanted = facts["name" if key == "node" else key]
            if facts["member"].get(key) != wanted:
                yield problem(
                    name,
                    f"is in the cluster with the {key} {facts['member'].get(key)}, not {wanted}",
                    f"Set pannier_{'name' if key == 'node' else key}: {facts['member'].get(key)}",
                )
    authorities = [name for name, facts in fleet.seen().items() if facts["authority"]]
    if not fleet.asked.issuperset(fleet.nodes):
        yield from _limited(fleet)
        return
    if len(authorities) > 1:
        what = f"several have a certificate authority: {', '.join(authorities)}"
        yield problem("", what, "Keep the cluster's; move the others' /etc/pannier/ca away")
    if members and not authorities and len(members) < len(fleet.seen()):
        what = "the node with the cluster's certificate authority is not among these hosts"
        yield problem("", what, "Add it: it ran pannier init")


def _limited(fleet: Fleet) -> Iterator[Finding]:
    """What a run that is not about all nodes has to have among its hosts."""
    seen = fleet.seen().values()
    for joined, guide, what in (
        ("is_member", lambda facts: facts["authority"], "the node with the certificate authority"),
        ("in_swarm", _is_manager, "a manager of the Swarm"),
    ):
        if not all(facts[joined] for facts in seen) and not any(map(guide, seen)):
            yield problem("", f"this run is limited, and {what} is not among its hosts", "Add it")
    members = [fleet.facts.get(name) for name in fleet.etcd]
    if None in members and any(facts and not facts["etcd"]["identity"] for facts in members):
        yield problem("", "this run is limited to a part of a new etcd", "Set it up as a whole")


def _etcd(fleet: Fleet) -> Iterator[Finding]:
    seen = fleet.seen()
    wanted = sorted(fleet.wishes.get(name, Wish()).name or name for name in fleet.etcd)
    for name, facts in seen.items():
        etcd = facts["etcd"]
        if etcd["identity"] and etcd["members"] and etcd["members"] != wanted:
            yield problem(
                name,
                f"its etcd has the members {', '.join(etcd['members'])}, not {', '.join(wanted)}",
                "An etcd keeps its members here: put the group etcd back as it was",
            )


def _swarm(fleet: Fleet) -> Iterator[Finding]:
    managers = {name: facts for name, facts in fleet.seen().items() if _is_manager(facts)}
    if len({facts["swarm"]["cluster"] for facts in managers.values()}) > 1:
        names = ", ".join(managers)
        yield problem(names, "are managers of different Swarms", "docker swarm leave on one side")
    for name, facts in fleet.seen().items():
        state = facts["swarm"]["state"]
        if state in ("locked", "error"):
            yield problem(name, f"its Swarm is in the state {state}", "See docker info there")
        elif state == "active" and not managers:
            remedy = "Add one of its managers to the inventory, or docker swarm leave"
            yield problem(name, "is in a Swarm whose managers are not here", remedy)


def _is_manager(facts: Facts) -> bool:
    return bool(facts["swarm"]["manager"])
