"""The `lightning-deadkernel` command."""

from lightning_deadkernel.cli.main import main

__all__ = ["main"]
