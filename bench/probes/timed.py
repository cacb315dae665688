"""Runs commands one after the other, and tells how long each took. Runs on a machine.

Arguments: seconds before each, and a JSON list of commands. Prints ``{"began", "seconds", "said"}`` for each: the first is on the
clock that all machines share.
"""

import json
import subprocess
import sys
import time

for command in json.loads(sys.argv[2]):
    time.sleep(float(sys.argv[1]))
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}")
    print(json.dumps({"began": began, "seconds": seconds, "said": done.stdout}))
