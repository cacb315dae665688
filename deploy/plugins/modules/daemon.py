#!/usr/bin/python
"""Module ``daemon``: pannierd runs, at every boot, with the settings and the version that are there."""

from __future__ import annotations

DOCUMENTATION = """
module: daemon
short_description: Runs pannierd with the settings and the version that are there
description:
  - Starts it if it does not run, and again if its settings or its program are newer than it is.
    So a run that was cut short between a change and the restart is made good by the next one.
  - Containers run on while it is away.
options:
  evacuate:
    description: Whether it drains lost nodes in the Swarm.
    type: bool
    required: true
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Run the daemon
  pannier.cluster.daemon:
    evacuate: true
"""
RETURN = """
changes:
  description: One sentence for each change.
  returned: always
  type: list
  elements: str
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import (
    CONFIGURATION,
    INSTALLED,
)

SOCKETS = ["pannierd.socket", "pannierd-barrier.socket"]
SERVICE = "pannierd.service"


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"evacuate": {"type": "bool", "required": True}}, supports_check_mode=True
    )
    if not os.path.exists(CONFIGURATION):
        what = [] if not module.check_mode else ["starts"]
        if not what:
            module.fail_json(msg="this host is no node yet. Next: run the playbook site.yml")
        module.exit_json(changed=True, changes=what)
    changes, diff = settle(module)
    if changes or is_newer(module):
        changes.append("restarted")
    units = [unit for unit in [*SOCKETS, SERVICE] if not is_in_order(module, unit)]
    changes += [f"{unit} enabled and started" for unit in units]
    if changes and not module.check_mode:
        systemctl(module, "enable", "--quiet", *SOCKETS, SERVICE)
        systemctl(module, "start", *SOCKETS)
        systemctl(module, "restart" if "restarted" in changes else "start", SERVICE)
    module.exit_json(changed=bool(changes), changes=changes, diff=diff)


def settle(module: AnsibleModule) -> tuple:
    """Write the settings: (changes, diff)."""
    with open(CONFIGURATION, encoding="utf-8") as file:
        before = file.read()
    line = f"evacuate = {str(module.params['evacuate']).lower()}"
    after, found = re.subn(r"(?m)^evacuate\s*=.*$", line, before)
    if not found:
        after = f"{before.rstrip()}\n{line}\n"
    if after == before:
        return [], {}
    if not module.check_mode:
        draft = f"{CONFIGURATION}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(after)
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, CONFIGURATION)
    return [line], {"before": before, "after": after}


def is_newer(module: AnsibleModule) -> bool:
    """Whether settings or program were written after the daemon's start; in whole seconds."""
    said = systemctl(module, "show", "--timestamp=unix", "-p", "ExecMainStartTimestamp", SERVICE)
    started = re.search(r"@(\d+)", said)
    files = [path for path in (CONFIGURATION, INSTALLED) if os.path.exists(path)]
    return bool(started) and any(int(os.stat(path).st_mtime) > int(started[1]) for path in files)


def is_in_order(module: AnsibleModule, unit: str) -> bool:
    """Whether the unit runs now and will at the next boot."""
    said = systemctl(module, "show", "-p", "ActiveState,UnitFileState", unit)
    return "ActiveState=active" in said and "UnitFileState=enabled" in said


def systemctl(module: AnsibleModule, *words: str) -> str:
    """What systemctl says; the module fails if it fails."""
    status, out, err = module.run_command(["systemctl", *words])
    if status:
        module.fail_json(msg=f"{err.strip()}. Next: see journalctl -u pannierd")
    return out


if __name__ == "__main__":
    main()
