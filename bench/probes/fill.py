"""Fills a directory. Arguments: directory, number of files, bytes of each."""

import os
import sys

CHUNK = os.urandom(1 << 20)

root, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(count):
    folder = f"{root}/{number // 100}"
    if number % 100 == 0:
        os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{number}", "wb", buffering=0) as file:
        left = size
        while left:
            # No two blocks alike, at the price of a copy: nothing below may take them for one.
            chunk = number.to_bytes(8, "big") + left.to_bytes(8, "big") + CHUNK[16:]
            left -= file.write(chunk[: min(left, len(chunk))])
