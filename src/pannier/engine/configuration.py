"""Docker's own configuration file: the runtime that holds sync calls, as the default one."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from pannier.core.errors import Conflict, InvalidInput
from pannier.host.files import write_file

DAEMON_JSON = Path("/etc/docker/daemon.json")
RUNTIME = "pannier"
PLAIN = "runc"


def register_runtime(program: str, *, file: Path = DAEMON_JSON) -> bool:
    """Make ``program`` the engine's default runtime; whatever else the file says stays.

    The engine takes it in when it is told to reload. Returns whether the file was changed.

    Raises:
        InvalidInput: the file cannot be read as JSON; nothing was changed.
        Conflict: it names another default runtime, which a person must have chosen.
    """
    settings = _read(file)
    default = settings.get("default-runtime", PLAIN)
    if default not in (PLAIN, RUNTIME):
        raise Conflict(
            f"{file} makes {default} the default runtime; sync calls can only be held by "
            f"pannier-runtime, which runs runc",
            remedy='remove "default-runtime" there, or go on without it: --no-runtime',
        )
    runtimes = settings.get("runtimes") or {}
    wanted = {
        **settings,
        "runtimes": {**runtimes, RUNTIME: {"path": program}},
        "default-runtime": RUNTIME,
    }
    if wanted == settings:
        return False
    _write(file, wanted)
    return True


def default_runtime(*, file: Path = DAEMON_JSON) -> str:
    """The default runtime of an engine that starts now.

    Raises:
        InvalidInput: the file cannot be read as JSON.
    """
    return str(_read(file).get("default-runtime", PLAIN))


def unregister_runtime(*, file: Path = DAEMON_JSON) -> bool:
    """Undo :func:`register_runtime`. Running containers keep the runtime that they were started with.

    Raises:
        InvalidInput: the file cannot be read as JSON; nothing was changed.
    """
    settings = _read(file)
    wanted = dict(settings)
    if wanted.get("default-runtime") == RUNTIME:
        del wanted["default-runtime"]
    others = {name: how for name, how in (wanted.get("runtimes") or {}).items() if name != RUNTIME}
    wanted["runtimes"] = others
    if not others:
        del wanted["runtimes"]
    if wanted == settings:
        return False
    _write(file, wanted)
    return True


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
        settings = json.loads(text) if text.strip() else {}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidInput(f"{file} is not JSON: {error}", remedy="mend it, then repeat") from error
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file} is not a JSON object", remedy="mend it, then repeat")
    return settings


def _write(file: Path, settings: dict[str, Any]) -> None:
    """Replace the file in one step; it keeps its owner and permissions."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    mode, owner = 0o644, None
    if file.exists():
        found = file.stat()
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
    write_file(file, f"{json.dumps(settings, indent=2)}\n".encode(), mode=mode, owner=owner)
