"""Writes every hundredth of the files anew that ``fill.py`` has made. Arguments: directory, number of files, which of each hundred."""

import os
import sys

root, count, which = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(which % 100, count, 100):
    path = f"{root}/{number // 100}/{number}"
    size = os.path.getsize(path)
    with open(path, "wb", buffering=0) as file:
        file.write(os.urandom(size))
os.sync()
