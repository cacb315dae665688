"""Called by the ``pannier-runtime`` of an earlier version, for as long as this version's is not installed.

It runs this file by its path, with what ``runc features`` says before all else.
"""

import os
import sys

sys.path.append(os.path.abspath(f"{__file__}/../../.."))

from pannier.runtime.start import main

if __name__ == "__main__":
    main(*sys.argv[2:])
