"""The `dlen` command: finds each folder's commands and runs one; imports nothing heavy itself."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = (
    "simulator.commands",
    "training.commands",
    "model_export.commands",
    "service.commands",
    "fusion.commands",
    "loadtest.commands",
    "demo",
)
"""Modules that bring sub-commands, in the order of the path from logs to feed."""


def parser() -> argparse.ArgumentParser:
    """Return the whole command line; each module's `register` adds its own sub-commands."""
    root = argparse.ArgumentParser(
        prog="dlen",
        description="Train, export, serve and measure the DLEN feed ranker.",
        epilog="`dlen COMMAND --help` shows a command's options and an example.",
    )
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name not in (name, name.partition(".")[0]):
                raise
            continue  # a slim install (the service image) leaves whole folders out
        module.register(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit code 2."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        sys.stderr.write("dlen: interrupted\n")
        return 130
    except Exception as exc:
        code = getattr(exc, "exit_code", None)
        if code is None:
            raise
        sys.stderr.write(f"dlen: error: {exc}\n")
        return int(code)


if __name__ == "__main__":
    sys.exit(main())
