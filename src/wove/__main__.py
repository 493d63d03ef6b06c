"""``python -m wove``: the same as the command ``wove``."""

from __future__ import annotations

import sys

from wove.cli import main

if __name__ == "__main__":
    sys.exit(main())
