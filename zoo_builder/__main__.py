"""`python -m zoo_builder` is `zoo-builder`."""

from __future__ import annotations

import sys

from zoo_builder.cli import main

if __name__ == "__main__":
    sys.exit(main())
