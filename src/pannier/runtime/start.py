"""Put the barrier into a container's bundle if it needs one, then become runc.

Called by ``pannier-runtime`` for each bundle that its first look does not know to be harmless. The container's
start waits for it.
"""

from __future__ import annotations

import json
import os
import sys
import time

from pannier.runtime.bundle import RefusedError, examine
from pannier.runtime.seccomp import add_barrier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main(runc: str, bundle: str, *arguments: str) -> NoReturn:
    """Edit the bundle if it may have something of Pannier's, and become runc. In doubt, refuse the container.

    Args:
        runc: its path.
        bundle: the bundle's directory.
        arguments: all that runc is called with.
    """
    path = os.path.join(bundle, "config.json")
    names = ""
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        found = examine(config)
        names = ", ".join(found.volumes)
        if found.volumes or found.passing:
            if "restore" in arguments:
                raise RefusedError("a container is not restored from a checkpoint with its barrier")
            add_barrier(config, found, machine=os.uname().machine, features=_features(runc))
            replace(path, config)
    except FileNotFoundError as error:
        if error.filename != path:
            _refuse(repr(error), names, arguments)  # else there is no bundle: runc says so
    except RefusedError as error:
        _refuse(str(error), names, arguments)
    except Exception as error:  # whatever it is: what was not looked at may have a volume of ours
        _refuse(f"its bundle cannot be examined: {error!r}", names, arguments)
    os.execv(runc, [runc, *arguments])


def _features(runc: str) -> Any:
    """What ``runc features`` says, decoded; nothing from one that does not know the command."""
    end, start = os.pipe()
    outputs = [
        (os.POSIX_SPAWN_DUP2, start, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    child = os.posix_spawn(runc, [runc, "features"], os.environ, file_actions=outputs)
    os.close(start)
    with open(end, encoding="utf-8") as file:
        said = file.read()
    _pid, status = os.waitpid(child, 0)
    return json.loads(said) if status == 0 and said else {}


def replace(path: str, config: Any) -> None:
    """Write ``config`` to ``path``: the old file or the new one, never a part."""
    draft = f"{path}.pannier-{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), os.stat(path).st_mode & 0o777)
        json.dump(config, file)
    os.rename(draft, path)


def _refuse(why: str, names: str, arguments: tuple[str, ...]) -> NoReturn:
    """Say why on stderr and, as runc does, in the log file from which Docker reads it."""
    what = f"volume {names}: its sync calls cannot be held" if names else "not started"
    text = f"pannier-runtime: {what}: {why}"
    print(text, file=sys.stderr)
    log = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word in ("--log", "-log"):
            log = following
        elif word.startswith(("--log=", "-log=")):
            log = word.split("=", 1)[1]
    if log:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"level": "error", "msg": text, "time": now}) + "\n")
    sys.exit(1)
