"""How work is spread over a Ray cluster: training workers, evaluation actors, search trials."""

import sys
from pathlib import Path

try:
    Path.home()
except RuntimeError:  # ray.train asks for it while it is imported, and knows no other answer
    print("error: this user has no home folder and no passwd entry; set HOME to a folder", file=sys.stderr)
    sys.exit(2)
