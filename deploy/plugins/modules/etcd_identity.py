#!/usr/bin/python
"""Module ``etcd_identity``: an etcd member's certificate, made where the authority is."""

from __future__ import annotations

DOCUMENTATION = """
module: etcd_identity
short_description: Issues or installs the certificate of an etcd member
description:
  - With O(issue_for), on the host with the authority, returns a new certificate and its key.
  - With O(files), on the member, writes them; the certificate comes last and says that all is there.
options:
  issue_for:
    description: The member's name.
    type: str
  address:
    description: The member's address.
    type: str
  files:
    description: What to install, file by file.
    type: dict
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Issue a certificate
  pannier.cluster.etcd_identity:
    issue_for: node1
    address: 192.0.2.11
  no_log: true
"""
RETURN = """
files:
  description: Certificate, key and authority; a secret.
  returned: with O(issue_for)
  type: dict
"""

import contextlib
import os
import pwd
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import ETCD_FILES, ETCD_PKI
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier


def issue(module: AnsibleModule) -> dict:
    """A new certificate as a text for each file; nothing of it stays here."""
    folder = tempfile.mkdtemp(prefix="pannier-", dir="/run")
    out = os.path.join(folder, "new")
    try:
        name = f"etcd-{module.params['issue_for']}"
        pannier(module, "ca", "issue", name, "--address", module.params["address"], "--out", out)
        found = {}
        for file_name in ETCD_FILES:
            with open(os.path.join(out, file_name), encoding="ascii") as file:
                found[file_name] = file.read()
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(files: dict) -> None:
    """Write the files, each whole or not at all, in the order in which they are counted on."""
    owner = pwd.getpwnam("etcd")
    os.makedirs(ETCD_PKI, exist_ok=True)
    os.chmod(ETCD_PKI, 0o700)
    os.chown(ETCD_PKI, owner.pw_uid, owner.pw_gid)
    for name in ETCD_FILES:
        path = os.path.join(ETCD_PKI, name)
        draft = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        # A new file, and no link: the directory is etcd's, and this is root.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
            file.write(files[name])
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "issue_for": {"type": "str"},
            "address": {"type": "str"},
            "files": {"type": "dict", "no_log": True},
        },
        required_one_of=[["issue_for", "files"]],
        mutually_exclusive=[["issue_for", "files"]],
        required_by={"issue_for": ["address"]},
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    if module.params["issue_for"]:
        module.exit_json(changed=True, files=issue(module))
    install(module.params["files"])
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
