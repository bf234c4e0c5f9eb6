"""What the benchmark programs share. They run from this folder's parent, so that it needs no installation.

The tree that holds this file comes before an installed copy: what is measured is what stands here.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

# Torch's profiler, which counts memory, would report its own start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
