"""The Jenkins stack on a lab, as its users see it: `pannier stack deploy` and the controller's REST.

The system tests play with it, too.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from demo import jenkins_image, story
from pannier.core.generation import Generation
from pannier.lab import Lab

IMAGE = "localhost:5000/busybox:1"
HOME = "jenkins_home"
CONTROLLER = "jenkins_controller"
AGENT = "jenkins_agent"
PORT = 8080
WITH_A_COPY = f"node.labels.pannier.volume.{HOME} == copy"
"""The constraint by which the controller starts only where its home is."""

_VARIABLES = {
    "JENKINS_IMAGE": jenkins_image.CONTROLLER,
    "JENKINS_AGENT_IMAGE": jenkins_image.AGENT,
    "JENKINS_DOOR_IMAGE": jenkins_image.DOOR,
}

# What an agent is for: a build makes an image, runs it, tests what it says, also in a container that
# has the workspace, and keeps that.
PROOF = f"""
cat >Dockerfile <<END
FROM {IMAGE}
RUN echo "build $BUILD_NUMBER on $NODE_NAME" >/made
CMD ["cat", "/made"]
END
docker build --tag proof:$BUILD_NUMBER .
docker run --rm --network none proof:$BUILD_NUMBER >result
agent=$(docker ps --quiet --filter label=com.docker.swarm.service.name={AGENT} | head -n 1)
docker run --rm --network none --volumes-from $agent --workdir $PWD {IMAGE} \
  grep "build $BUILD_NUMBER on $(hostname)" result
"""
SLOW = "n=0; while [ $n -lt 600 ]; do n=$((n + 1)); echo line $n; sleep 0.1; done"

_JOB = """<project>
  <properties/>
  <scm class="hudson.scm.NullSCM"/>
  <assignedNode>{node}</assignedNode>
  <canRoam>false</canRoam>
  <triggers class="vector"/>
  <builders><hudson.tasks.Shell><command>{script}</command></hudson.tasks.Shell></builders>
  <publishers>{publishers}</publishers>
  <buildWrappers/>
</project>"""
_ARCHIVE = (
    "<hudson.tasks.ArtifactArchiver><artifacts>{files}</artifacts></hudson.tasks.ArtifactArchiver>"
)


def deploy(lab: Lab, node: str, stack: str, *, wait: str = "0", **variables: str) -> dict[str, Any]:
    """``pannier stack deploy``; also changes what is deployed already.

    Args:
        wait: for how long until it runs, as `--wait` takes it; 0 is for those who look themselves.
        variables: of the compose file.

    Returns:
        what it says with ``-o json``.
    """
    command = ["pannier", "stack", "deploy", stack, "--resolve-image", "never", "--wait", wait]
    for key, value in variables.items():
        command += ["-e", f"{key}={value}"]
    said = lab.run(node, [*command, "-o", "json"], timeout=400).stdout
    found: dict[str, Any] = json.loads(said)
    return found


@dataclass(frozen=True, slots=True)
class Home:
    """The home at a moment: its builds' entries with their SHA-256, and each job's next number."""

    builds: list[str]
    jobs: dict[str, int]


@dataclass(slots=True)
class Stack:
    """The deployed stack.

    Attributes:
        manager: the node on which commands are typed, and whose door is used.
    """

    lab: Lab
    manager: str
    _addresses: dict[str, str] = field(default_factory=dict)

    # -- Docker ------------------------------------------------------------------------------------

    def deploy(self, *, wait: str = "0", **variables: str) -> dict[str, Any]:
        """Deploy the stack with these variables; also changes what is deployed already."""
        return deploy(self.lab, self.manager, "jenkins", wait=wait, **{**_VARIABLES, **variables})

    def task(self, *, not_on: str | None = None) -> story.Task:
        """The controller's container, once it answers."""
        task = story.wait_until(
            "the controller runs",
            lambda: story.running_task(self.lab, CONTROLLER, not_on=not_on),
            seconds=120,
        )
        story.wait_until("the controller answers", self._answers, seconds=120)
        return task

    def agents(self) -> dict[str, str]:
        """The agent's container on each node."""
        return {node.name: self._agent(node.name) for node in self.lab.nodes}

    def wait_for_new_agent(self, node: str, before: str) -> None:
        """Wait until a node's agent is connected that is not the container ``before``."""

        def connected() -> bool:
            agent = self._agent(node)
            said = self.lab.run(node, ["docker", "logs", agent], check=False)
            return agent not in ("", before) and "Connected" in said.stderr

        story.wait_until(f"a new agent on {node} is connected", connected, seconds=120)

    def _agent(self, node: str) -> str:
        ps = ["docker", "ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={AGENT}"]
        return self.lab.run(node, ps, check=False).stdout.strip()

    def builds(self, node: str, *, without: str = "") -> list[str]:
        """Every entry of the builds in the home, with its bytes' hash; not those of one job."""
        lines = story.manifest(self.lab, node, HOME).splitlines()
        of_builds = [line for line in lines if "/builds/" in line.rpartition(" '")[2]]
        return [line for line in of_builds if not without or f" 'jobs/{without}/" not in line]

    def home(self, node: str, *, without: str = "") -> Home:
        """What is there now, on the controller's node; not of one job's builds."""
        return Home(self.builds(node, without=without), self.jobs())

    def log(self, task: story.Task) -> str:
        """What the controller has said since it was started."""
        said = self.lab.run(task.node, ["docker", "logs", task.container])
        return str(said.stdout + said.stderr)

    def wait_for_generation(self) -> None:
        """Wait until a copy in sync has a generation that began after now."""

        def sequences() -> tuple[int, list[int]]:
            shown = story.volume(self.lab, HOME, node=self.manager)
            kept = [each["generation"] for each in shown["copies"] if each["in_sync"]]
            return _sequence(shown["generation"]), [_sequence(each) for each in kept]

        # The newest one may have begun before, and be about to be shown.
        wanted = sequences()[0] + 2
        story.wait_until(
            "a copy has what is there now",
            lambda: any(each >= wanted for each in sequences()[1]),
            seconds=60,
        )

    # -- REST --------------------------------------------------------------------------------------

    def get(self, path: str, *, node: str | None = None) -> str:
        """A page of the controller, through the door of a node."""
        return self._request(path, node=node)

    def json(self, path: str) -> dict[str, Any]:
        """What the REST interface says about something."""
        found: dict[str, Any] = json.loads(self._request(f"{path}/api/json"))
        return found

    def jobs(self) -> dict[str, int]:
        """The jobs, each with the number of its next build."""
        tree = "api/json?tree=jobs[name,nextBuildNumber]"
        return {
            each["name"]: each["nextBuildNumber"] for each in json.loads(self.get(tree))["jobs"]
        }

    def create_job(self, name: str, *, node: str, script: str = PROOF, archive: str = "") -> None:
        """A job that runs on one node; the one of the default script archives ``result``."""
        job = _job(
            node=node, script=script, archive=archive or ("result" if script == PROOF else "")
        )
        self._request(f"createItem?name={name}", body=job, kind="text/xml")

    def change_job(self, name: str, *, node: str, script: str) -> None:
        """Give a job another script."""
        job = _job(node=node, script=script, archive="")
        self._request(f"job/{name}/config.xml", body=job, kind="text/xml")

    def ask_for_build(self, name: str) -> int:
        """Have a build begin at some time soon; returns the number that it is to get."""
        number: int = self.json(f"job/{name}")["nextBuildNumber"]
        try:
            self._request(f"job/{name}/build", body=b"")
        except TimeoutError:
            found = self.json(f"job/{name}")
            if found["nextBuildNumber"] == number and not found["inQueue"]:
                self._request(f"job/{name}/build", body=b"")  # lost: see _request
        return number

    def start_build(self, name: str) -> int:
        """Begin a build; returns its number, once it runs."""
        number = self.ask_for_build(name)
        story.wait_until(f"{name} {number} runs", lambda: self._build(name, number))
        return number

    def finished(self, name: str, number: int) -> dict[str, Any]:
        """What became of a build, once it has ended."""

        def ended() -> dict[str, Any] | None:
            build = self._build(name, number)
            return build if build and not build["building"] else None

        return story.wait_until(f"{name} {number} ends", ended, seconds=120)

    def build(self, name: str) -> int:
        """A build from its begin to its good end; returns its number."""
        number = self.start_build(name)
        found = self.finished(name, number)
        log = self.get(f"job/{name}/{number}/consoleText")
        story.expect(found["result"] == "SUCCESS", log)
        return number

    def wait_for_agents(self, *names: str) -> None:
        """Wait until these agents are online."""

        def all_online() -> bool:
            try:
                seen = self.json("computer")["computer"]
            except (OSError, HTTPException, ValueError):
                return False
            return set(names) <= {each["displayName"] for each in seen if not each["offline"]}

        story.wait_until(f"agents {' '.join(names)} are online", all_online, seconds=120)

    def _build(self, name: str, number: int) -> dict[str, Any] | None:
        try:
            return self.json(f"job/{name}/{number}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _answers(self) -> bool:
        try:
            self._request("api/json")
        except (OSError, HTTPException):
            return False
        return True

    def _request(
        self, path: str, *, body: bytes | None = None, kind: str = "", node: str | None = None
    ) -> str:
        address = self._address(node or self.manager)
        request = urllib.request.Request(f"http://{address}:{PORT}/{path}", data=body)
        if kind:
            request.add_header("Content-Type", kind)
        try:
            return _read(request)
        except TimeoutError:
            if body is not None:
                raise
            # Hudson's web server now and then loses a request: accepted, and never looked at.
            return _read(request)

    def _address(self, name: str) -> str:
        if not self._addresses:
            self._addresses = {node.name: node.address for node in self.lab.nodes}
        return self._addresses[name]


def _read(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


def _job(*, node: str, script: str, archive: str) -> bytes:
    text = script.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    publishers = _ARCHIVE.format(files=archive) if archive else ""
    return _JOB.format(node=node, script=text, publishers=publishers).encode()


def _sequence(generation: str) -> int:
    return Generation.parse(generation).sequence
