#!/usr/bin/python
"""Module ``packages``: Debian packages through apt, also after an installation that was cut short."""

from __future__ import annotations

DOCUMENTATION = """
module: packages
short_description: Installs Debian packages
description:
  - Installs what is missing, with apt, without recommended packages, and nothing else.
  - An installation that a power cut ended in the middle is finished first.
  - Unlike M(ansible.builtin.apt) it needs no python3-apt on the host, in check mode either.
options:
  names:
    description: The packages.
    type: list
    elements: str
    required: true
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Install what the pool needs
  pannier.cluster.packages:
    names: [btrfs-progs]
"""
RETURN = """
installed:
  description: The packages that were missing.
  returned: always
  type: list
  elements: str
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import missing_packages

LISTS = "/var/lib/apt/lists"
DAY_S = 86400
APT = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300"]
KEEP = [
    "--option",
    "Dpkg::Options::=--force-confdef",
    "--option",
    "Dpkg::Options::=--force-confold",
]
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def lists_are_old() -> bool:
    """Whether apt's lists are missing or were fetched more than a day ago."""
    try:
        entries = [each.stat().st_mtime for each in os.scandir(LISTS) if "_dists_" in each.name]
    except OSError:
        return True
    fetched = os.stat(LISTS).st_mtime if entries else 0
    return not 0 <= time.time() - fetched < DAY_S


def install(module: AnsibleModule, missing: list) -> None:
    """Install them; what a mirror has replaced since the lists were fetched is asked for anew."""
    update = [*APT, "update"]
    wanted = [*APT, *KEEP, "install", "--no-install-recommends", *missing]
    attempts = [[update, wanted]] if lists_are_old() else [[wanted], [update, wanted]]
    said = run(module, ["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"])
    for commands in attempts:
        said = next(filter(None, (run(module, command) for command in commands)), "")
        if not said:
            return
    module.fail_json(msg=f"apt cannot install {', '.join(missing)}:\n{said}")


def run(module: AnsibleModule, command: list) -> str:
    """The end of what a command said that failed; empty if all went well."""
    status, out, err = module.run_command(command, environ_update=ENVIRONMENT)
    if not status:
        return ""
    return "\n".join((err or out).strip().splitlines()[-5:]) or f"{command[0]}: {status}"


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    missing = missing_packages(module.params["names"])
    result = {
        "changed": bool(missing),
        "installed": missing,
        "diff": {"before": "", "after": "".join(f"{name}\n" for name in missing)},
    }
    if missing and not module.check_mode:
        install(module, missing)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
