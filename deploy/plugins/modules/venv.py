#!/usr/bin/python
"""Module ``venv``: Pannier's own virtual environment. Its action plugin sends the packages along."""

from __future__ import annotations

DOCUMENTATION = """
module: venv
short_description: Installs Pannier into a virtual environment of its own
description:
  - Packages come from a folder of the control machine, or from the index that pip on the host uses.
  - What is installed is written down last, so an installation that was cut short is repeated.
options:
  package:
    description: What to install, as pip takes it.
    type: str
    default: pannier
  wheelhouse:
    description: Folder of the control machine with the wheels of it and of all that it needs.
    type: str
  archive:
    description: The folder as an archive on the host; set by the action plugin.
    type: str
  digest:
    description: Of what is wanted; set by the action plugin.
    type: str
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Install Pannier
  pannier.cluster.venv:
    wheelhouse: ./wheelhouse
"""
RETURN = """
digest:
  description: Of what is installed now.
  returned: always
  type: str
"""

import fcntl
import json
import os
import shutil
import tempfile
import zipfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import (
    CONFIGURATION,
    INSTALLED,
)
from ansible_collections.pannier.cluster.plugins.module_utils.program import ENVIRONMENT

VENV = os.path.dirname(INSTALLED)
LOCK = os.path.join(os.path.dirname(VENV), "lock")
COMMANDS = "/usr/local/bin"
PROGRAMS = ("pannier", "pannierd")


def install(module: AnsibleModule, source: list) -> None:
    """Make the environment, or bring it up to date, with what ``source`` tells pip.

    One that was left unfinished is made anew: after a power cut its files may be empty, and pip
    would not notice.
    """
    finished = os.path.exists(INSTALLED)
    if finished:
        os.unlink(INSTALLED)
        directory = os.open(VENV, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    pip = [f"{VENV}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    commands = [["/usr/bin/python3", "-m", "venv", *([] if finished else ["--clear"]), VENV]]
    # The same version may have another content: a build of a checkout.
    commands += [[*pip, "--force-reinstall", "--no-deps", *source], [*pip, *source]]
    for command in commands:
        status, out, err = module.run_command(command)
        if status:
            said = "\n".join((err or out).strip().splitlines()[-5:])
            module.fail_json(msg=f"Pannier cannot be installed: {' '.join(command)}:\n{said}")


def refresh(module: AnsibleModule) -> None:
    """Let a host that is a node have the units and the runtime of what was just installed."""
    script = "from pannier.setup import refresh; refresh()"
    command = [f"{VENV}/bin/python", "-c", script]
    status, out, err = module.run_command(command, environ_update=ENVIRONMENT)
    if status:
        module.fail_json(msg=f"Pannier's units cannot be installed: {(err or out).strip()[-300:]}")


def link_programs() -> None:
    """Put the programs where root's PATH and the units find them."""
    for name in PROGRAMS:
        link, target = f"{COMMANDS}/{name}", f"{VENV}/bin/{name}"
        if not os.path.islink(link) or os.readlink(link) != target:
            draft = f"{COMMANDS}/.{name}.new"
            if os.path.lexists(draft):
                os.unlink(draft)
            os.symlink(target, draft)
            os.replace(draft, link)


def write_installed(digest: str) -> None:
    """Say that everything is there."""
    with open(f"{INSTALLED}.new", "w", encoding="utf-8") as file:
        json.dump({"digest": digest}, file)
        file.flush()
        os.sync()
    os.replace(f"{INSTALLED}.new", INSTALLED)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "str", "default": "pannier"},
            "wheelhouse": {"type": "str"},
            "archive": {"type": "str"},
            "digest": {"type": "str"},
        },
    )
    os.makedirs(os.path.dirname(VENV), mode=0o755, exist_ok=True)
    with open(LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may deploy right now
        changed = installed() != module.params["digest"]
        if changed:
            bring_up_to_date(module)
    module.exit_json(changed=changed, digest=module.params["digest"])


def installed() -> str:
    """The digest of what is there, empty if that is not complete."""
    try:
        with open(INSTALLED, encoding="utf-8") as file:
            return json.load(file)["digest"]
    except (OSError, ValueError, KeyError):
        return ""


def bring_up_to_date(module: AnsibleModule) -> None:
    """Install, link, and write down that it is done."""
    wish = module.params
    source = [wish["package"]]
    folder = None
    if wish["archive"]:
        folder = tempfile.mkdtemp(prefix="pannier-")
        with zipfile.ZipFile(wish["archive"]) as archive:
            archive.extractall(folder)
        source = ["--no-index", "--find-links", folder, wish["package"]]
    try:
        install(module, source)
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    link_programs()
    if os.path.exists(CONFIGURATION):
        refresh(module)
    write_installed(wish["digest"])


if __name__ == "__main__":
    main()
