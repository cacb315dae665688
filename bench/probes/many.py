"""How long the engine's list of volumes takes, as `docker volume ls`. Runs on a machine.

Arguments: rounds. Prints ``{"seconds", "volumes"}`` for each, after one to warm up.
"""

import json
import subprocess
import sys
import time

for number in range(-1, int(sys.argv[1])):
    began = time.monotonic()
    listed = subprocess.run(["docker", "volume", "ls"], check=True, stdout=subprocess.PIPE)
    seconds = time.monotonic() - began
    if number >= 0:
        print(json.dumps({"seconds": seconds, "volumes": len(listed.stdout.splitlines()) - 1}))
