"""A machine for ``pannier-runtime``: the real program, a stand-in for runc, and this test's own paths."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pannier.cluster.catalog import SavedCatalog
from pannier.core.options import parse_options
from pannier.core.volume import Grant, Volume
from pannier.host.records import encode

_RUNC = """#!/bin/sh
if [ "$1" = features ]; then
  echo '{features}'
  exit
fi
for word; do echo "$word"; done >{record}
exit 7
"""


@dataclass
class Host:
    """A host with a held volume ``one`` and another ``loose``."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "held").mkdir()
        (self.folder / "held/one").touch()
        for name in ("one", "loose", "on"):
            (self.mounts / name).mkdir(parents=True)
        self.install()

    @property
    def mounts(self) -> Path:
        return self.folder / "state/mounts"

    def install(
        self, features: str = "{}", python: str = sys.executable, following: str = ""
    ) -> None:
        """Put the runtime there, with this host's paths instead of a real one's.

        Args:
            following: the runtime that it becomes; empty for runc.
        """
        changes = {
            "/usr/sbin/runc": str(self.folder / "runc"),
            "/run/pannier/barrier/held": str(self.folder / "held"),
            "/run/pannier/images": str(self.folder / "images"),
            "/var/lib/pannier/mounts": str(self.mounts),
            "/var/lib/pannier/catalog.json": str(self.folder / "catalog.json"),
            "/var/lib/docker": str(self.folder / "docker"),
            "@PYTHON@": python,
            "@NEXT@": shlex.quote(following),
            "@EDIT@": str(self.folder / "pannier/runtime/edit.py"),
        }
        package = self.folder / "pannier/runtime"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        for source in resources.files("pannier.runtime").iterdir():
            if source.is_file():
                text = source.read_text()
                for old, new in changes.items():
                    text = text.replace(old, new)
                (package / source.name).write_text(text)
        runc = self.folder / "runc"
        runc.write_text(_RUNC.format(features=features, record=self.folder / "record"))
        runc.chmod(0o755)

    def know(self, *names: str) -> None:
        """Save the cluster's volumes as the daemon does."""
        spec = parse_options({})
        volumes = tuple(
            Volume(name=name, id=f"{name}.1", spec=spec, grant=Grant("a", 1), created_at=0.0)
            for name in names
        )
        (self.folder / "catalog.json").write_bytes(encode(SavedCatalog(volumes=volumes)))

    def bundle(
        self,
        *sources: str,
        options: Sequence[str] = ("rbind",),
        bundle: str = "a bundle",
        **more: Any,
    ) -> Path:
        """A bundle that mounts ``sources``."""
        self._bundle = self.folder / bundle
        self._bundle.mkdir(exist_ok=True)
        mounts = [
            {"destination": f"/{n}", "source": s, "options": [*options]}
            for n, s in enumerate(sources)
        ]
        config = {"ociVersion": "1.0.2", "mounts": mounts, "linux": {}, **more}
        compact = json.dumps(config, separators=(",", ":"))  # as Docker writes it
        (self._bundle / "config.json").write_text(compact)
        return self._bundle

    def config(self) -> Any:
        """What is in the bundle now."""
        return json.loads((self._bundle / "config.json").read_text())

    def barrier(self) -> Any:
        """What the barrier is told of the container."""
        return json.loads(self.config()["linux"]["seccomp"]["listenerMetadata"])

    def run(
        self, *words: str, cwd: Path | None = None, mount: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Call the runtime; runc ends with 7.

        Args:
            mount: a script that mounts; it and the runtime have a mount namespace of their own.
        """
        (self.folder / "record").unlink(missing_ok=True)
        command = ["sh", str(self.folder / "pannier/runtime/pannier-runtime.sh"), *words]
        if mount:
            script = f'set -e; {mount}\nexec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd or self.folder
        )

    def asked_of_runc(self) -> list[str]:
        return (self.folder / "record").read_text().splitlines()
