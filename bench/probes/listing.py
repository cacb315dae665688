"""Lists all volumes with `pannier volume ls`, again and again, until it is stopped. Runs on a machine."""

import subprocess

while True:
    subprocess.run(["pannier", "volume", "ls"], check=True, stdout=subprocess.DEVNULL)
