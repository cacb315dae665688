"""Runs a playbook of the collection pannier.cluster, which is part of the package."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps as encode
from pathlib import Path

from pannier.core.errors import InvalidInput, Unavailable

_IN_PACKAGE = Path(__file__).with_name("collection")
_IN_CHECKOUT = Path(__file__).parents[3] / "deploy"
_FORKS = 20

SETTINGS = {
    "ANSIBLE_STDOUT_CALLBACK": "pannier.cluster.progress",
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_FORKS": str(_FORKS),
    "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
    "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
    "ANSIBLE_SSH_RETRIES": "2",
    "ANSIBLE_LOCALHOST_WARNING": "0",
    "ANSIBLE_HOST_PATTERN_MISMATCH": "ignore",
    # Ansible refuses to work where the locale is not UTF-8.
    "LC_ALL": "C.UTF-8",
}
"""What the collection is run with; whatever the caller's environment sets has precedence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybookRun:
    """One run.

    Attributes:
        playbook: its name in the collection.
        limit: pattern of the hosts to work on; None for all.
        check: change nothing, and say what would be changed.
        variables: extra variables; they have precedence over the inventory.
        ask_become_pass: ask for the password that sudo wants on the hosts.
        json: print one JSON object at the end, instead of progress for people.
        verbosity: as with ansible-playbook; from 1 on Ansible's own output is shown.
    """

    inventory: Path
    playbook: str = "site"
    limit: str | None = None
    check: bool = False
    diff: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    ask_become_pass: bool = False
    json: bool = False
    verbosity: int = 0

    def arguments(self) -> list[str]:
        """The words after ``ansible-playbook``."""
        words = ["--inventory", str(self.inventory), f"pannier.cluster.{self.playbook}"]
        words += ["--limit", self.limit] if self.limit else []
        words += ["--check"] if self.check else []
        words += ["--diff"] if self.diff else []
        words += ["--ask-become-pass"] if self.ask_become_pass else []
        for name, value in self.variables.items():
            words += ["--extra-vars", encode({name: value})]
        return words + ["-" + "v" * self.verbosity] * bool(self.verbosity)


def run(deployment: PlaybookRun) -> int:
    """Run the playbook and return Ansible's exit status; it prints for itself.

    Raises:
        Unavailable: ansible-core is not installed. InvalidInput: there is no such inventory.
    """
    if importlib.util.find_spec("ansible") is None:
        raise Unavailable(
            "ansible-core is not installed here", remedy="pip install 'pannier[deploy]'"
        )
    if not deployment.inventory.exists():
        raise InvalidInput(
            f"there is no inventory {deployment.inventory}",
            remedy="docs/deploy.md has an example; for a lab: pannier lab inventory >hosts.yml",
        )
    with tempfile.TemporaryDirectory(prefix="pannier-deploy-") as folder:
        home = Path(folder) / "ansible_collections/pannier"
        home.mkdir(parents=True)
        (home / "cluster").symlink_to(collection())
        command = [sys.executable, "-m", "ansible", "playbook", *deployment.arguments()]
        own_output = deployment.verbosity == 0 or deployment.json
        settings = environment(folder, verbose=not own_output)
        if deployment.json:
            settings["PANNIER_DEPLOY_FORMAT"] = "json"
        return _run(command, settings)


def collection() -> Path:
    """The folder of the collection: in the package, or in the checkout it was installed from."""
    return _IN_PACKAGE if _IN_PACKAGE.exists() else _IN_CHECKOUT


def environment(collections: str, *, verbose: bool) -> dict[str, str]:
    """The environment of the run: our settings below the caller's."""
    found = {**SETTINGS, **os.environ}
    if verbose:
        found["ANSIBLE_STDOUT_CALLBACK"] = os.environ.get("ANSIBLE_STDOUT_CALLBACK", "default")
    others = os.environ.get("ANSIBLE_COLLECTIONS_PATH")
    found["ANSIBLE_COLLECTIONS_PATH"] = os.pathsep.join(filter(None, (collections, others)))
    if "UTF-8" not in found["LC_ALL"].upper():
        found["LC_ALL"] = SETTINGS["LC_ALL"]
    return found


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run to the end. Ctrl-C reaches Ansible too; it ends in its own way, and we wait for that."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: a child would inherit it
    try:
        return subprocess.run(command, env=dict(environment), check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
