"""`python -m lightning_deadkernel` is the `lightning-deadkernel` command."""

import sys

from lightning_deadkernel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
