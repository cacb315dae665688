"""Progress that a person can read: step by step, host by host, what changed and how long it took."""

from __future__ import annotations

DOCUMENTATION = """
name: progress
type: stdout
short_description: Progress for people
description:
  - One line per step and host; steps that were skipped are not shown.
  - At the end each failure with its host, its step and what to do next.
  - With PANNIER_DEPLOY_FORMAT=json in the environment it prints one JSON object at the end instead.
author: The Pannier authors (@pannier)
"""

import json
import os
import sys
import time
from typing import Any, NamedTuple

from ansible.plugins.callback import CallbackBase


class Failure(NamedTuple):
    """What failed; ``host`` is empty for what is done once for all."""

    host: str
    step: str
    message: str


_REMEDIES = {
    "sudo password": "Give the right one: --ask-become-pass, or ansible_become_password from a vault",
}
"""For what Ansible itself says, by words of it."""

_COLORS = {"changed": "yellow", "ok": "green", "failed": "red", "unreachable": "red"}


class CallbackModule(CallbackBase):
    """Prints as results arrive; hosts where all was well already are told together."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "pannier.cluster.progress"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin = time.monotonic()
        self._started: dict[tuple[str, str], float] = {}
        self._play = ""
        self._titled = ""
        self._ok: tuple[str, list[str]] = ("", [])
        self._failures: list[Failure] = []
        self._changes: list[dict[str, str]] = []
        self._check = False
        self._json = os.environ.get("PANNIER_DEPLOY_FORMAT") == "json"

    # -- what Ansible reports ----------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._flush()
        self._check = bool(play.check_mode)
        self._play = str(play.get_name()).strip()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._flush()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._started[host.get_name(), task._uuid] = time.monotonic()
        if sys.stdout.isatty() and not self._json:
            # Gone with the next line: whoever watches sees what is being done.
            sys.stdout.write(f"\r\x1b[K  {_step(task)} ...\r")
            sys.stdout.flush()

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.task.action.endswith("validate_argument_spec"):
            return
        if result.result.get("changed"):
            self._line(result, "changed")
        else:
            if self._ok[0] != _step(result.task):
                self._flush()
                self._ok = (_step(result.task), [])
            self._ok[1].append(result.host.get_name())
        if findings := result.result.get("findings"):
            self._flush()
            for each in findings:
                self._print(f"    {each['host'] or 'inventory'}: {each['what']}. {each['remedy']}")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if ignore_errors:
            return
        self._line(result, "failed")
        # What is done once for all has not failed because of the host where it was done.
        host = "" if result.task.run_once else result.host.get_name()
        self._failures.append(Failure(host, _step(result.task), _message(result.result)))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._line(result, "unreachable")
        if not result.task.ignore_unreachable:
            host = result.host.get_name()
            self._failures.append(Failure(host, _step(result.task), _message(result.result)))

    def v2_runner_retry(self, result: Any) -> None:
        if result.result.get("attempts", 0) % 10 == 0:
            self._print(f"    waiting  {result.host.get_name()}")

    def v2_on_file_diff(self, result: Any) -> None:
        for item in result.result.get("results", [result.result]):
            if item.get("diff") and item.get("changed"):
                self._print(self._get_diff(item["diff"]))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._flush()
        if self._json:
            self._display.display(json.dumps(self._summary(stats)))
            return
        self._print("")
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            if not any(counts[key] for key in ("ok", "failures", "unreachable")):
                continue
            changed = "would change" if self._check else "changed"
            words = [f"{counts['ok']:3} ok", f"{counts['changed']:3} {changed}"]
            words += [f"{counts[key]} {key}" for key in ("failures", "unreachable") if counts[key]]
            self._print(f"  {host:<16} {'  '.join(words)}")
        for (step, message), hosts in gathered(self._failures).items():
            self._print(f"\nFailed: {step}{', on ' if hosts else ''}{', '.join(hosts)}", "red")
            self._print("\n".join(f"  {line}" for line in message.splitlines()))
        word = "Failed" if self._failures else "Done"
        self._print(f"\n{word} after {_duration(time.monotonic() - self._begin)}")

    def _summary(self, stats: Any) -> dict[str, Any]:
        """What a program can use of the whole run."""
        failures = [
            {"step": step, "hosts": hosts, "message": message}
            for (step, message), hosts in gathered(self._failures).items()
        ]
        return {
            "check": self._check,
            "seconds": round(time.monotonic() - self._begin, 1),
            "hosts": {host: stats.summarize(host) for host in sorted(stats.processed)},
            "changes": self._changes,
            "failures": failures,
        }

    # -- private -----------------------------------------------------------------------------------

    def _line(self, result: Any, status: str) -> None:
        self._title(_step(result.task))
        host = result.host.get_name()
        begin = self._started.pop((host, result.task._uuid), None)
        took = "" if begin is None else _duration(time.monotonic() - begin)
        word = "would" if status == "changed" and self._check else status
        details = _details(result.result) if status == "changed" else ""
        if status == "changed":
            step = _step(result.task)
            self._changes.append({"host": host, "step": step, "details": details})
        if status == "unreachable":
            details = _message(result.result).splitlines()[-1]
        self._print(f"    {word:<8} {host:<16} {took:>8}  {details}".rstrip(), _COLORS[status])

    def _flush(self) -> None:
        """Print whom the last step found in order."""
        step, hosts = self._ok
        if hosts:
            self._title(step)
            self._print(f"    ok       {' '.join(sorted(hosts))}", _COLORS["ok"])
        self._ok = ("", [])

    def _title(self, step: str) -> None:
        """The names of play and step, when there is something to tell of them."""
        if self._play:
            self._print(f"\n{self._play}", "bright blue")
            self._play = self._titled = ""
        if step != self._titled:
            self._print(f"  {step}")
            self._titled = step

    def _print(self, text: str, color: str | None = None) -> None:
        if self._json:
            return
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
        self._display.display(text, color=color)


def _step(task: Any) -> str:
    """The step's own name, without its role's."""
    return str(task.get_name()).rpartition(" : ")[2].strip()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _details(result: dict[str, Any]) -> str:
    """What changed, in a few words, where the module says so."""
    for key in ("installed", "changes"):
        if result.get(key):
            return ", ".join(map(str, result[key]))
    return str(result.get("command") or "")


def _message(result: dict[str, Any]) -> str:
    """What a person can use of a failed result."""
    items = [item for item in result.get("results", ()) if item.get("failed")]
    if items:
        return "\n".join(dict.fromkeys(_message(item) for item in items))
    if "censored" in result:
        return "what it said may be secret and is hidden; repeat it by hand on the host"
    said = str(result.get("msg") or "it failed without a message").strip()
    said = said.removeprefix("Task failed: ").removeprefix("Module failed: ")
    tail = str(result.get("stderr") or "").strip().splitlines()[-5:]
    remedies = [remedy for words, remedy in _REMEDIES.items() if words in said]
    return "\n".join([said, *(line for line in tail if line not in said), *remedies])


def gathered(failures: list[Failure]) -> dict[tuple[str, str], list[str]]:
    """(step, message) -> hosts: the same failure on many hosts is told once."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in failures:
        found.setdefault((each.step, each.message), []).extend([each.host] if each.host else [])
    return found
