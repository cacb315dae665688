"""Two machines with the real runtime and barrier, and a strategy that does as the test tells it."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import re
import shlex
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_world import DEADLINE_SECONDS, IMAGE, Outcome
from demo import looks, story

from pannier.lab import Lab

MOUNTS = "/var/lib/pannier/mounts"
WORDS = "/run/barrier-test"
PYTHON = "/usr/bin/python3"
_TOOLS = [f"-v{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", "/opt/test")]
_DAEMON = Path(__file__).with_name("barrier_daemon.py")
_CALLER = Path(__file__).with_name("barrier_caller.py")

# Before runc, and for these machines only: they cannot give a container CAP_SYS_RESOURCE.
_LESSER_RUNC = """#!/usr/bin/python3
import json, os, sys
words = sys.argv
path = None
if "create" in words:
    path = words[words.index("--bundle") + 1] + "/config.json"
elif "--process" in words:
    path = words[words.index("--process") + 1]
if path:
    whole = json.load(open(path))
    for names in (whole.get("process") or whole).get("capabilities", {}).values():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")
    json.dump(whole, open(path, "w"))
os.execv("/usr/lib/runc-itself", words)
"""

_SET_UP = """
mkdir -p /pool {words} {mounts}
mkfs.btrfs -q /dev/pannier-pool
mount /dev/pannier-pool /pool
for name in one two loose; do
  btrfs subvolume create /pool/$name >/dev/null
  mkdir -p /pool/$name/_data {mounts}/$name
  mount --bind /pool/$name/_data {mounts}/$name
done
mkdir -p /run/pannier/barrier/held && touch /run/pannier/barrier/held/one /run/pannier/barrier/held/two
[ -e /usr/lib/runc-itself ] || mv /usr/sbin/runc /usr/lib/runc-itself
chmod 755 /opt/test/lesser-runc && cp /opt/test/lesser-runc /usr/sbin/runc
/opt/pannier/venv/bin/python -c 'from pannier.setup import install_runtime; install_runtime()'
systemctl daemon-reload
systemctl start pannierd-barrier.socket pannierd
systemctl reload docker || systemctl restart docker
"""
_SETTINGS = {
    "storage-driver": "overlay2",
    "runtimes": {"pannier": {"path": "/usr/local/bin/pannier-runtime"}},
    "default-runtime": "pannier",
}


@dataclass(slots=True)
class Box:
    """One machine."""

    lab: Lab
    node: str
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=8))

    # -- commands --------------------------------------------------------------------------------

    def sh(self, script: str) -> str:
        """What a shell script prints; it must succeed."""
        done = self.lab.run(self.node, ["sh", "-euc", script], timeout=DEADLINE_SECONDS)
        return str(done.stdout)

    def attempt(self, *command: str) -> Outcome:
        """How a command ends, whatever it does."""
        done = self.lab.run(self.node, command, check=False, timeout=DEADLINE_SECONDS)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def put(self, path: str, text: str) -> None:
        """Write a file."""
        folder = shlex.quote(str(Path(path).parent))
        script = f"mkdir -p {folder}; cat >{shlex.quote(path)}"
        self.lab.run(self.node, ["sh", "-euc", script], input=text, timeout=DEADLINE_SECONDS)

    def set_up(self) -> None:
        """Pool, volumes ``one`` and ``two`` (held) and ``loose``, runtime, units, Docker's default."""
        self.put("/opt/test/daemon.py", _DAEMON.read_text())
        self.put("/opt/test/caller.py", _CALLER.read_text())
        self.put("/opt/test/lesser-runc", _LESSER_RUNC)
        self.put("/etc/systemd/system/pannierd.service", _unit())
        self.put("/etc/docker/daemon.json", json.dumps(_SETTINGS))
        self.sh(_SET_UP.format(words=WORDS, mounts=MOUNTS))

    def clean(self) -> None:
        """No containers, no words; the daemon runs."""
        self.attempt("sh", "-c", f"docker ps -aq | xargs -r docker rm -f; rm -f {WORDS}/[!s]*")
        self.sh(f"rm -f {WORDS}/seconds; systemctl start pannierd-barrier.socket pannierd")
        self.wait_until("no listener is left", lambda: self.stored() == 0)

    # -- containers ------------------------------------------------------------------------------

    def docker(self, *flags: str, volumes: tuple[str, ...] = ("one",)) -> list[str]:
        """The command line up to the caller's words."""
        mounts = [f"-v{MOUNTS}/{name}:/{name}" for name in volumes]
        return ["docker", "run", "--network=none", *flags, *mounts, *_TOOLS, IMAGE, *CALLER]

    def commit(self, *command: str, image: str = IMAGE) -> list[float]:
        """Let a program commit in /one; it prints how many milliseconds each commit took. In seconds."""
        options = ["--rm", f"-v{MOUNTS}/one:/one", *(_TOOLS if image == IMAGE else ())]
        done = self.lab.run(self.node, ["docker", "run", *options, image, *command], timeout=60)
        return [int(line) / 1000 for line in done.stdout.split()]

    def call(self, *words: str, flags: tuple[str, ...] = (), volumes: Any = ("one",)) -> Calls:
        """Let a container make the calls ``words`` and end; see ``barrier_caller``."""
        done = self.lab.run(
            self.node, [*self.docker("--rm", *flags, volumes=volumes), *words], timeout=60
        )
        return Calls.read(done.stdout)

    def calling(self, *words: str, flags: tuple[str, ...] = ()) -> Future[Calls]:
        """The same beside the test."""
        return self._pool.submit(self.call, *words, flags=flags)

    def sleeper(self, *flags: str) -> str:
        """A container that does nothing; returns its name."""
        name = f"sleeper-{next(self._numbers)}"
        command = self.docker("-d", f"--name={name}", *flags)
        self.lab.run(self.node, [*command, "sleep"], timeout=60)
        return name

    # -- the barrier -----------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """A path of the machine's, as the host sees it."""
        return looks.root(self.lab, self.node) / inside.lstrip("/")

    def tell(self, word: str, text: str = "") -> None:
        """Say a word to the strategy."""
        self.path(f"{WORDS}/{word}").write_text(text)

    def take_back(self, word: str) -> None:
        self.path(f"{WORDS}/{word}").unlink(missing_ok=True)

    def groups(self) -> list[str]:
        """A line for each group that was made durable."""
        return looks.text(self.path(f"{WORDS}/groups")).splitlines()

    def listeners(self) -> list[str]:
        """What the runtime has left for the daemon."""
        return [each.name for each in self.path("/run/pannier/barrier/listeners").iterdir()]

    def state(self, volume: str = "one") -> dict[str, Any]:
        """What the barrier says of a volume."""
        return dict(json.loads(self.path(f"{WORDS}/state").read_text()).get(volume, {}))

    def stored(self) -> int:
        """How many descriptors systemd keeps."""
        shown = self.sh("systemctl show pannierd -p NFileDescriptorStore --value")
        return int(shown)

    def journal(self) -> str:
        return self.sh("journalctl -b -u pannierd --no-pager -o cat -n 200")

    def kill(self) -> None:
        """SIGKILL to the daemon; systemd starts it again a second later."""
        self.sh("systemctl kill --kill-who=main -s KILL pannierd")

    def wait_until_it_runs(self) -> None:
        ready = "systemctl show pannierd -p ActiveState --value"
        self.wait_until("the daemon runs", lambda: self.sh(ready).strip() == "active")

    def wait_for_calls(self, number: int, volume: str = "one") -> None:
        what = f"{number} calls wait for {volume}"
        self.wait_until(what, lambda: self.state(volume).get("calls") == number)

    @staticmethod
    def wait_until(what: str, true: Any) -> None:
        story.wait_until(what, true, seconds=20)


CALLER = (PYTHON, "/opt/test/caller.py")


@dataclass(frozen=True, slots=True)
class Calls:
    """How a container's calls ended, in order: what, seconds, and the errno's name or ``ok``."""

    made: tuple[tuple[str, float, str], ...]

    @classmethod
    def read(cls, text: str) -> Calls:
        return cls(tuple((word, float(took), how) for word, took, how in _LINE.findall(text)))

    def seconds(self, word: str) -> float:
        """How long a call took; it must have succeeded."""
        (found,) = [(took, how) for name, took, how in self.made if name == word]
        assert found[1] == "ok", self
        return found[0]

    def error(self, word: str) -> str:
        (found,) = [how for name, _took, how in self.made if name == word]
        return found


_LINE = re.compile(r"^(\S+) ([0-9.]+) (\S+)$", re.MULTILINE)


def _unit() -> str:
    """The product's own unit, with the test's daemon."""
    text = importlib.resources.files("pannier").joinpath("systemd/pannierd.service").read_text()
    text = re.sub(r"(?m)^ConditionPathExists=.*\n", "", text)
    start = "ExecStart=/opt/pannier/venv/bin/python /opt/test/daemon.py"
    return re.sub(r"(?m)^ExecStart=.*$", start, text)
