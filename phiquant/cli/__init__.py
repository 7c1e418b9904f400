"""The command ``phiquant``: compress, inspect and verify checkpoints."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command with the arguments of this process."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("phiquant: the command needs click: pip install 'phiquant[cli]'")
    from phiquant.cli.commands import phiquant

    phiquant(prog_name="phiquant")
