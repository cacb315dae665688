"""Writes what an image has to stdout, piece by piece, but not its holes. Runs on a machine.

Arguments: the image. First comes its size, then the place, the length and the bytes of each piece; numbers
have eight bytes.
"""

import errno
import os
import sys

PIECE_BYTES = 1 << 20


def ranges(fd, size):
    """From where to where there is data."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole follows
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def write(content):
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(1, rest) :]


image = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(image).st_size
write(size.to_bytes(8, "big"))
for start, end in ranges(image, size):
    for at in range(start, end, PIECE_BYTES):
        length = min(PIECE_BYTES, end - at)
        write(at.to_bytes(8, "big") + length.to_bytes(8, "big"))
        write(os.pread(image, length, at))
        # As Pannier does: the other leg must not find it in memory.
        os.posix_fadvise(image, at, length, os.POSIX_FADV_DONTNEED)
