"""Looks at what ``host`` found on all hosts and stops, before any of them is touched, if it must."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.pannier.cluster.plugins.plugin_utils.preflight import (
    Finding,
    Fleet,
    Wish,
    addresses_of,
    examine,
)
from ansible_collections.pannier.cluster.plugins.plugin_utils.removal import (
    examine_removal,
    examine_uninstall,
    keeper_of,
)
from ansible_collections.pannier.cluster.plugins.plugin_utils.wheels import wheels_in


class ActionModule(ActionBase):
    """Sets the fact ``pannier_plan``; fails with all findings at once."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Decide."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = self._task.args
        fleet = _fleet(variables)
        if leaving := arguments.get("remove"):
            findings = list(examine_removal(fleet, leaving))
            result["ansible_facts"] = {"pannier_plan": {"keeper": keeper_of(fleet, leaving)}}
        elif "volumes" in arguments:
            hosts = variables["ansible_play_hosts"]
            names = [facts["name"] for name, facts in fleet.seen().items() if name in hosts]
            given_up = arguments.get("give_up") or []
            if isinstance(given_up, str):  # as -e pannier_give_up=NAME,NAME has it
                given_up = given_up.split(",")
            findings = list(examine_uninstall(names, arguments["volumes"], given_up=given_up))
        else:
            plan = examine(fleet)
            findings = list(plan.findings)
            chosen = {
                "founder": plan.founder,
                "leader": plan.leader,
                "store": plan.store,
                "addresses": addresses_of({n: variables["hostvars"][n] for n in fleet.nodes}),
            }
            result["ansible_facts"] = {"pannier_plan": chosen}
        return result | _told(findings)


def _fleet(variables: Mapping[str, Any]) -> Fleet:
    groups, hostvars = variables["groups"], variables["hostvars"]
    nodes = tuple(groups.get("nodes", ()))
    return Fleet(
        nodes=nodes,
        managers=tuple(groups.get("managers", ())),
        etcd=tuple(groups.get("etcd", ())),
        asked=frozenset(variables["ansible_play_hosts_all"]),
        wishes={name: _wish(hostvars[name]) for name in nodes},
        facts={name: hostvars[name].get("ansible_facts", {}).get("pannier_host") for name in nodes},
    )


def _wish(of: Mapping[str, Any]) -> Wish:
    folder = of.get("pannier_wheelhouse")
    return Wish(
        name=of.get("pannier_name") or "",
        driver=of.get("pannier_driver") or "btrfs",
        pool=of.get("pannier_pool") or "",
        force_format=of.get("pannier_force_format") or "",
        wheels=tuple(wheel.name for wheel in wheels_in(folder)) if folder else None,
        opens_firewall=boolean(of.get("pannier_firewall", True)),
    )


def _told(findings: Iterable[Finding]) -> dict[str, Any]:
    """The notes to be shown, or the failure with all problems."""
    problems = [each for each in findings if each.level == "problem"]
    notes = [asdict(each) for each in findings if each.level == "note"]
    if not problems:
        return {"changed": False, "findings": notes}
    lines = "\n".join(f"  {each.line()}" for each in problems)
    message = f"nothing was touched; this has to be put in order first:\n{lines}"
    return {"changed": False, "failed": True, "msg": message, "findings": notes}
