"""`python -m probes`."""

import sys

from probes.cli import main

sys.exit(main())
