"""Small jobs on a Jenkins (Hudson 1.398, as in the tests) with its home on a volume."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import suppress
from functools import partial
from typing import Any

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.jenkins import address_of, answers, hudson_lab, start_controller
from bench.world import POOL, BenchError, Wish, World

_OWN_CONFIG = """<?xml version='1.0' encoding='UTF-8'?>
<hudson>
  <numExecutors>2</numExecutors>
  <mode>NORMAL</mode>
  <useSecurity>false</useSecurity>
  <slaves/>
  <quietPeriod>0</quietPeriod>
  <slaveAgentPort>-1</slaveAgentPort>
</hudson>
"""
_SMALL_JOB = """<project>
  <scm class="hudson.scm.NullSCM"/>
  <canRoam>true</canRoam>
  <triggers class="vector"/>
  <builders><hudson.tasks.Shell><command>echo $BUILD_NUMBER >result</command></hudson.tasks.Shell></builders>
  <publishers>
    <hudson.tasks.ArtifactArchiver><artifacts>result</artifacts></hudson.tasks.ArtifactArchiver>
  </publishers>
  <buildWrappers/>
</project>"""
_PORTS = {"ours": 8091, "theirs": 8092}
_WARM_UP = 5
_MOST_LOST = 10
"""Requests that a controller may lose while its jobs are made: one now and then is usual, each costs 10 s."""


def measure(wish: Wish) -> Result:
    """See the module."""
    collected = Rounds()
    count, rounds = wish.pick(200, 20), wish.pick(15, 1)
    with hudson_lab(wish, disks="plain") as world:
        _run_jobs(world, count, rounds, collected)
    return _result(collected, count, rounds)


def _result(collected: Rounds, count: int, rounds: int) -> Result:
    return Result(
        title="Small jobs of a Jenkins",
        reference="a controller with its home in a directory of the same pool, on the same node.",
        how=(
            f"The controller is Hudson 1.398 with two executors of its own, the volume has copies=2 and "
            f"durability=fsync. A job writes a file and archives it; all are asked for by REST one "
            f"right after the other. {rounds} rounds after {_WARM_UP} to warm up; one in which Hudson's "
            f"web server loses a request is repeated."
        ),
        figures=(
            Figure(
                what=f"{count} small jobs",
                ours=collected.of("jobs", "ours"),
                theirs=collected.of("jobs", "theirs"),
                target=Target(at_most=1.1),
            ),
        ),
    )


def _run_jobs(world: World, count: int, rounds: int, collected: Rounds) -> None:
    node, *_ = world.volume_in_sync("bench-jobs", durability="fsync")
    homes = {"ours": str(world.mount(node, "bench-jobs")), "theirs": f"{POOL}/bench-jobs"}
    sources = {**homes, "ours": "bench-jobs"}
    for leg, home in homes.items():
        script = f"mkdir -p {home}; cat >{home}/config.xml; chown -R 1000:1000 {home}"
        world.lab.run(node, ["sh", "-c", script], input=_OWN_CONFIG)
        start_controller(world, node, f"bench-jobs-{leg}", sources[leg], _PORTS[leg])
    address = address_of(world, node)
    for leg, port in _PORTS.items():
        world.wait(f"the controller of {leg}", partial(answers, address, port, "/login"))
        lost = 0
        while not _all_made(address, port, count):
            lost += 1
            world.say(f"   {leg} has lost a request")
            if lost == _MOST_LOST:
                raise BenchError(f"the controller of {leg} has lost {lost} requests")
    for turn, leg in enumerate(turns(rounds + _WARM_UP, *_PORTS)):
        seconds = None
        while seconds is None:
            world.settle()
            with suppress(TimeoutError), _Rest(address, _PORTS[leg]) as rest:
                seconds = _all_once(world, rest, count)
        if turn >= _WARM_UP * len(_PORTS):
            collected.add("jobs", leg, seconds)
            world.say(f"   {count} jobs, {leg}: {seconds:.2f} s")
    world.sh(node, f"docker rm -f {' '.join(f'bench-jobs-{leg}' for leg in _PORTS)} >/dev/null")
    world.sh(node, f"docker volume rm bench-jobs >/dev/null; rm -r {homes['theirs']}")


def _all_made(address: str, port: int, count: int) -> bool:
    """Make the jobs that are not there; False if a request was lost, which may have made its job."""
    with suppress(TimeoutError), _Rest(address, port) as rest:
        there = {job["name"] for job in rest.jobs()}
        for name in (f"small-{number}" for number in range(count)):
            if name not in there:
                rest.post(f"/createItem?name={name}", _SMALL_JOB)
        return True
    return False


def _all_once(world: World, rest: _Rest, count: int) -> float:
    """Have each job run once; until the last one has ended well."""

    def idle() -> bool:
        return all(job["nextBuildNumber"] == _completed(job) + 1 for job in rest.jobs())

    world.wait("no build", idle)
    wanted = sum(map(_completed, rest.jobs())) + count
    began = time.monotonic()
    for number in range(count):
        rest.post(f"/job/small-{number}/build", "")
    world.wait("all jobs", lambda: sum(map(_completed, rest.jobs())) == wanted, seconds=300)
    seconds = time.monotonic() - began
    if any(job["lastCompletedBuild"]["result"] != "SUCCESS" for job in rest.jobs()):
        raise BenchError("a small job did not succeed")
    return seconds


def _completed(job: dict[str, Any]) -> int:
    """The number of a job's last completed build; 0 if there is none."""
    return int((job["lastCompletedBuild"] or {"number": 0})["number"])


class _Rest:
    """A controller's REST interface, by one connection.

    Hudson's web server now and then loses a request for ever, when many come one right after the
    other: a TimeoutError here. It does other work meanwhile, and answers the next connection.
    """

    def __init__(self, address: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(address, port, timeout=10)

    def __enter__(self) -> _Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def jobs(self) -> list[dict[str, Any]]:
        """Each job's name, next build number and last completed build."""
        tree = "jobs[name,nextBuildNumber,lastCompletedBuild[number,result]]"
        found: list[dict[str, Any]] = json.loads(self._ask("GET", f"/api/json?tree={tree}"))["jobs"]
        return found

    def post(self, path: str, body: str) -> None:
        """Have it do something."""
        self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        headers = {"Content-Type": "text/xml"} if body else {}
        self._connection.request(method, path, body=body, headers=headers)
        response = self._connection.getresponse()
        text = response.read().decode()
        if response.status >= 400:
            raise BenchError(f"{method} {path}: HTTP {response.status}")
        return text
