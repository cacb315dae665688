"""The program ``pannier`` on a host: every module asks through it, and its errors keep their remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import PATH

PROGRAM = "/opt/pannier/venv/bin/pannier"
ENVIRONMENT = {"PATH": PATH}


def said(err: str) -> tuple[str, str, str]:
    """An error's (message, remedy, code) as the program prints it with ``-o json``."""
    for line in reversed(err.strip().splitlines()):
        try:
            view = json.loads(line)
            return view["message"], view.get("remedy") or "", view.get("code") or ""
        except (ValueError, KeyError, TypeError):
            continue
    return (err.strip() or "pannier ended without a word"), "", ""


def pannier(
    module: AnsibleModule, *words: str, token: str | None = None, ignore: Sequence[str] = ()
) -> Any:
    """What ``pannier WORDS --format json`` answers, decoded; the module fails if it fails.

    Of an answer of several lines, as that of a move, it is the last.

    Args:
        token: a join token; it goes into the environment, which ``ps`` does not show.
        ignore: codes of errors for which None is returned.
    """
    environment = {**ENVIRONMENT, **({"PANNIER_TOKEN": token} if token else {})}
    command = [PROGRAM, *words, "--format", "json"]
    try:
        status, out, err = module.run_command(
            command, environ_update=environment, handle_exceptions=False
        )
    except OSError:
        module.fail_json(msg=f"{PROGRAM} is not there. Run the playbook site.yml first")
    if status:
        message, remedy, code = said(err)
        if code in ignore:
            return None
        module.fail_json(msg=f"{message}. Next: {remedy}" if remedy else message, code=code)
    return last(out)


def last(out: str) -> Any:
    """The whole output as JSON, or its last line; None if there is none."""
    try:
        return json.loads(out) if out.strip() else None
    except ValueError:
        return json.loads(out.strip().splitlines()[-1])
