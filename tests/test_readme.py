"""README's tree holds a line per file, taken from the files' own first docstring line.

`python tests/test_readme.py` writes it anew.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from cli import parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("bundle", "fusion", "simulator", "training", "model_export", "service", "loadtest", "deploy")
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
WIDTH = 30


def first_line(path: Path) -> str:
    """Return the first sentence of a module's docstring, or of a C file's first comment, up to its first line's end."""
    text = path.read_text()
    if path.suffix in (".c", ".h"):
        return text.split("/* ", 1)[1].split("\n", 1)[0].removesuffix(" */").rstrip(".")
    text = text.split('"""')[1] if path.suffix == ".pyx" else ast.get_docstring(ast.parse(text)) or ""
    return text.split("\n", 1)[0].rstrip(".")


def tree() -> str:
    """Return the tree as README shows it."""
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder + '/':<{WIDTH}}{first_line(ROOT / folder / '__init__.py')}")
        for path in sorted((ROOT / folder).rglob("*.*"), key=lambda p: (len(p.parts), p)):
            if path.name == "__init__.py" or path.suffix not in (".py", ".pyx", ".c", ".h"):
                continue
            name = "  " + path.relative_to(ROOT / folder).as_posix()
            lines.append(f"{name:<{WIDTH}}{first_line(path)}")
    for name in ("cli.py", "demo.py", "setup.py"):
        lines.append(f"{name:<{WIDTH}}{first_line(ROOT / name)}")
    return "\n".join(lines) + "\n"


def test_tree_in_readme_is_current():
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == tree(), "run: python tests/test_readme.py"


def test_every_file_named_in_readme_exists():
    text = README.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def commands_of(root: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield every command that runs something, as it is typed after `dlen`."""
    groups = [action for action in root._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, command in group.choices.items():
            yield from commands_of(command, (*path, name))
    if not groups:
        yield " ".join(path)


def test_command_list_in_readme_is_complete():
    section = README.read_text().partition("## The commands")[2].partition("\n## ")[0]
    listed = set()
    for span in re.findall(r"`([^`]+)`", section):
        *group, names = span.removeprefix("dlen ").split()
        listed |= {" ".join([*group, name]) for name in names.split("\\|")}
    assert listed == set(commands_of(parser()))


def test_every_module_says_what_it_is_for():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert len(first_line(path)) > 20, path


if __name__ == "__main__":
    old = README.read_text()
    start, end = old.index(BEGIN) + len(BEGIN), old.index(END)
    README.write_text(old[:start] + tree() + old[end:])
