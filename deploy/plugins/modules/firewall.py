#!/usr/bin/python
"""Module ``firewall``: lets the other nodes through the host's firewall."""

from __future__ import annotations

DOCUMENTATION = """
module: firewall
short_description: Lets the other nodes through ufw or firewalld
description:
  - Adds what is missing, for each peer and port, and takes nothing away; for no other firewall.
options:
  kind:
    description: The firewall that runs on the host.
    type: str
    choices: [ufw, firewalld]
    required: true
  peers:
    description: Addresses of the other nodes.
    type: list
    elements: str
    required: true
  tcp:
    description: Ports.
    type: list
    elements: int
    required: true
  udp:
    description: Ports.
    type: list
    elements: int
    required: true
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Let the other nodes in
  pannier.cluster.firewall:
    kind: ufw
    peers: [10.0.0.2, 10.0.0.3]
    tcp: [2377, 7946]
    udp: [4789, 7946]
"""
RETURN = """
changes:
  description: One sentence for each peer that was let in.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Entry point."""
    addresses = {"type": "list", "elements": "str", "required": True}
    ports = {"type": "list", "elements": "int", "required": True}
    kind = {"type": "str", "choices": ["ufw", "firewalld"], "required": True}
    module = AnsibleModule(
        argument_spec={"kind": kind, "peers": addresses, "tcp": ports, "udp": ports},
        supports_check_mode=True,
    )
    let_in = {"ufw": through_ufw, "firewalld": through_firewalld}[module.params["kind"]]
    changes = []
    for peer in module.params["peers"]:
        opened = [proto for proto in ("tcp", "udp") if let_in(module, peer, proto)]
        if opened:
            changes.append(f"{peer} {' and '.join(opened)}")
    diff = {"before": "", "after": "".join(f"{change}\n" for change in changes)}
    module.exit_json(changed=bool(changes), changes=changes, diff=diff)


def through_ufw(module: AnsibleModule, peer: str, proto: str) -> bool:
    """One rule for all ports; returns whether it was missing."""
    rule = ufw_rule(peer, proto, module.params[proto])
    if has_ufw_rule(run(module, ["ufw", "show", "added"]), rule):
        return False
    if not module.check_mode:
        run(module, ["ufw", *rule, "comment", "pannier"])
    return True


def ufw_rule(peer: str, proto: str, ports: list) -> list:
    """As ufw's command line takes it."""
    wanted = ",".join(map(str, sorted(ports)))
    return ["allow", "proto", proto, "from", peer, "to", "any", "port", wanted]


def has_ufw_rule(added: str, rule: list) -> bool:
    """Whether ``ufw show added`` has it; ufw puts its words into another order."""
    lines = (line.partition(" comment ")[0].split() for line in added.splitlines())
    return any(sorted(words) == sorted(["ufw", *rule]) for words in lines)


def through_firewalld(module: AnsibleModule, peer: str, proto: str) -> bool:
    """A rule for each port, for now and for later; returns whether any was missing."""
    missing = False
    for rule in firewalld_rules(peer, proto, module.params[proto]):
        for scope in ([], ["--permanent"]):
            query = ["firewall-cmd", *scope, f"--query-rich-rule={rule}"]
            if module.run_command(query)[0] == 0:
                continue
            missing = True
            if not module.check_mode:
                run(module, ["firewall-cmd", *scope, f"--add-rich-rule={rule}"])
    return missing


def firewalld_rules(peer: str, proto: str, ports: list) -> list:
    """In firewalld's rich language."""
    family = "ipv6" if ":" in peer else "ipv4"
    return [
        f'rule family="{family}" source address="{peer}" port port="{port}" protocol="{proto}" accept'
        for port in sorted(ports)
    ]


def run(module: AnsibleModule, command: list) -> str:
    """What a command says that must not fail."""
    status, out, err = module.run_command(command)
    if status:
        module.fail_json(msg=f"{' '.join(command)}: {(err or out).strip()}")
    return str(out)


if __name__ == "__main__":
    main()
