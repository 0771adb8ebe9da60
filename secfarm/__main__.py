"""`python -m secfarm`: the command line."""

from __future__ import annotations

import sys

from secfarm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
