"""The world of nodes is shared with the unit tests."""

import sys
from pathlib import Path

for _place in ("unit", "contract"):
    sys.path.append(str(Path(__file__).parents[1] / _place))
