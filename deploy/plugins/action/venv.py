"""Sends a wheelhouse along with the module ``venv``, and only where it is not installed yet."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.pannier.cluster.plugins.plugin_utils.wheels import wheels_in


class ActionModule(ActionBase):
    """Compares the digest of what is wanted with the one on the host."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Install, if there is anything to install."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        wheels = _wheels(arguments.get("wheelhouse"))
        package = arguments.get("package") or "pannier"
        facts = (task_vars or {}).get("ansible_facts", {}).get("pannier_host") or {}
        digest = _digest(package, wheels, facts.get("python", [])[:2])
        installed = (facts.get("installed") or {}).get("digest")
        result.update(changed=installed != digest, digest=digest)
        result["diff"] = {"before": f"{installed}\n", "after": f"{digest}\n"}
        if not result["changed"] or self._task.check_mode:
            return result
        arguments.update(package=package, digest=digest)
        try:
            if wheels:
                arguments["archive"] = self._send(wheels)
            result.update(
                self._execute_module("pannier.cluster.venv", arguments, task_vars=task_vars)
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _send(self, wheels: list[Path]) -> str:
        """Put all wheels into one file on the host: a file each would take far longer."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        there: str = self._connection._shell.join_path(
            self._connection._shell.tmpdir, "wheelhouse.zip"
        )
        with tempfile.NamedTemporaryFile(suffix=".zip") as packed:
            with zipfile.ZipFile(packed, "w") as archive:
                for wheel in wheels:
                    archive.write(wheel, arcname=wheel.name)
            packed.flush()
            self._transfer_file(packed.name, there)
        return there


def _wheels(folder: str | None) -> list[Path]:
    if not folder:
        return []
    found = wheels_in(folder)
    if not any(wheel.name.startswith("pannier-") for wheel in found):
        raise AnsibleActionFail(f"{folder} has no wheel of Pannier; see docs/deploy.md")
    return found


def _digest(package: str, wheels: list[Path], python: list[int]) -> str:
    """Of all that decides what is in the environment, the host's Python included."""
    total = hashlib.sha256(f"{package}\0{python}".encode())
    for wheel in wheels:
        total.update(f"\0{wheel.name}\0".encode())
        total.update(hashlib.sha256(wheel.read_bytes()).digest())
    return total.hexdigest()[:16]
