"""Docker commands with volumes of two drivers by turns. Runs on a machine.

Arguments: image, rounds of `docker run`, rounds of `docker volume create`.
Prints a line for each measurement: ``{"operation", "leg", "seconds"}``.
"""

import http.client
import json
import socket
import subprocess
import sys
import time

LEGS = {"ours": "pannier", "theirs": "local"}
IMAGE = sys.argv[1]
RUNS, CREATIONS = int(sys.argv[2]), int(sys.argv[3])


class Engine(http.client.HTTPConnection):
    """Docker's API over its unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect("/var/run/docker.sock")


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, stdout=subprocess.DEVNULL)


def run(leg: str, _: int) -> None:
    docker("run", "--rm", "--network", "none", "-v", f"bench-run-{leg}:/data", IMAGE, "true")


def run_first(leg: str, number: int) -> None:
    volume = f"bench-first-{leg}-{number}"
    docker("run", "--rm", "--network", "none", "-v", f"{volume}:/data", IMAGE, "true")


def create(leg: str, number: int) -> None:
    docker("volume", "create", "--driver", LEGS[leg], f"bench-create-{leg}-{number}")


def create_by_api(leg: str, number: int) -> None:
    engine = Engine("docker")
    body = json.dumps({"Name": f"bench-api-{leg}-{number}", "Driver": LEGS[leg]})
    engine.request("POST", "/volumes/create", body, {"Content-Type": "application/json"})
    answer = engine.getresponse()
    if answer.status != 201:
        raise SystemExit(f"{answer.status}: {answer.read()!r}")
    answer.read()
    engine.close()


def rounds(operation: str, count: int, work) -> None:
    for number in range(-1, count):  # the first one warms up and does not count
        for leg in list(LEGS) if number % 2 else list(reversed(LEGS)):
            began = time.monotonic()
            work(leg, number)
            seconds = time.monotonic() - began
            if number >= 0:
                print(json.dumps({"operation": operation, "leg": leg, "seconds": seconds}))


for leg in LEGS:
    docker("volume", "create", "--driver", LEGS[leg], f"bench-run-{leg}")
    for number in range(-1, RUNS):
        docker("volume", "create", "--driver", LEGS[leg], f"bench-first-{leg}-{number}")
rounds("docker run, the volume is mounted", RUNS, run)
rounds("docker run, first attach", RUNS, run_first)
rounds("docker volume create", CREATIONS, create)
rounds("the same, only the engine's answer", CREATIONS, create_by_api)
