"""A stand-in for the command ``docker``: answers from a file that a test writes, and notes its calls.

Run as a program. ``state.json`` lies beside it:

    {"answers": {"node ls --quiet": ["text", ...]}, "refuse": {"stack deploy": "why"}, "secrets": {}}

The longest beginning of the command line that is known is answered; of several answers, each call takes
the next, and the last one stays. Of several reasons to refuse, each call is told the next, and then none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

STATE = Path(sys.argv[0]).with_name("state.json")


def main(words: list[str]) -> int:
    state = json.loads(STATE.read_text())
    line = " ".join(words)
    variables = {k: v for k, v in os.environ.items() if k.startswith("JENKINS_")}
    state["calls"] = [*state.get("calls", []), {"line": line, "variables": variables}]
    try:
        for beginning, why in state.get("refuse", {}).items():
            if line.startswith(beginning) and why:
                print(why.pop(0) if isinstance(why, list) else why, file=sys.stderr)
                return 1
        if words[0] == "secret":
            return secret(words[1:], state["secrets"])
        print(answer(line, state["answers"]))
        return 0
    finally:
        STATE.write_text(json.dumps(state))


def secret(words: list[str], secrets: dict[str, Any]) -> int:
    if words[0] == "inspect":
        if words[1] not in secrets:
            print(f"Error: No such secret: {words[1]}", file=sys.stderr)
            return 1
        label = secrets[words[1]]["label"]
        print(json.dumps([{"Spec": {"Name": words[1], "Labels": label}}]))
        return 0
    _create, _flag, label, name, _stdin = words
    if name in secrets:
        print(
            f"rpc error: code = AlreadyExists desc = secret {name} already exists", file=sys.stderr
        )
        return 1
    key, _, value = label.partition("=")
    secrets[name] = {"label": {key: value}, "value": sys.stdin.read()}
    return 0


def answer(line: str, answers: dict[str, list[str]]) -> str:
    known = max((each for each in answers if line.startswith(each)), key=len, default=None)
    if known is None:
        raise SystemExit(f"nothing prepared for: docker {line}")
    left = answers[known]
    return left.pop(0) if len(left) > 1 else left[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
