"""Compare our code with the original implementations' numbers: a row per group, exit 1 where one is off.

    python benchmarks/golden.py ../shared/golden [GROUP ...]

The checks are those of `tests/golden/`; this file runs them on any folder, from anywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.golden.check import main

if __name__ == "__main__":
    sys.exit(main())
