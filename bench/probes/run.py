"""`docker run` without any volume, with the default runtime and with runc by turns. Runs on a machine.

Arguments: image, rounds. Prints a line for each measurement: ``{"operation", "leg", "seconds"}``.
"""

import json
import subprocess
import sys
import time

LEGS = {"ours": [], "theirs": ["--runtime", "runc"]}
IMAGE, ROUNDS = sys.argv[1], int(sys.argv[2])

for number in range(-1, ROUNDS):  # the first one warms up and does not count
    for leg in list(LEGS) if number % 2 else list(reversed(LEGS)):
        run = ["docker", "run", "--rm", "--network", "none", *LEGS[leg], IMAGE, "true"]
        began = time.monotonic()
        subprocess.run(run, check=True)
        seconds = time.monotonic() - began
        if number >= 0:
            print(json.dumps({"operation": "docker run", "leg": leg, "seconds": seconds}))
