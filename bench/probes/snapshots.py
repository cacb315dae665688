"""Takes a read-only snapshot each second, and keeps the last two. Runs until it is stopped.

Arguments: the subvolume, and a folder for the snapshots.
"""

import itertools
import os
import subprocess
import sys
import time


def btrfs(*words: str) -> None:
    subprocess.run(["btrfs", "subvolume", *words], check=True, stdout=subprocess.DEVNULL)


subvolume, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
for number in itertools.count():
    begin = time.monotonic()
    btrfs("snapshot", "-r", subvolume, f"{folder}/{number}")
    if os.path.exists(f"{folder}/{number - 2}"):
        btrfs("delete", f"{folder}/{number - 2}")
    time.sleep(max(0.0, begin + 1 - time.monotonic()))
