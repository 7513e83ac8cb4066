"""The command line as a whole: what it offers, what it imports, how it fails."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

import cli

PROMISED = {
    "simulate", "prepare", "train", "evaluate", "export", "serve", "rank", "request", "models", "demo", "loadtest",
    "fusion", "benchmark",
}  # fmt: skip


def leaves(parser: argparse.ArgumentParser, name: str = "dlen"):
    """Yield every command that can be run, with its parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, child in group.choices.items():
            yield from leaves(child, f"{name} {word}")
    if not groups:
        yield name, parser


COMMANDS = dict(leaves(cli.parser()))


def test_every_promised_command_is_there():
    assert {name.split()[1] for name in COMMANDS} >= PROMISED


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_every_command_ends_with_an_example_of_itself(name):
    help_text = COMMANDS[name].format_help()
    assert "example" in help_text
    assert name in help_text.split("example", 1)[1]


@pytest.mark.parametrize("command", ["serve", "rank", "loadtest", "simulate"])
def test_light_commands_never_load_torch(command):
    code = (
        "import sys, contextlib, io, cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    cli.main([{command!r}, '--help'])\n"
        "print(sorted({'torch', 'polars', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_bug_is_not_dressed_as_bad_input(monkeypatch):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setattr("demo._demo", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["demo"])
