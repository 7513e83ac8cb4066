"""One page of all experiments in a folder, for `dlen compare --page`; pictures go to `images/results` beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bundle.files import write_file
from training.results import FIGURES_FILE, RESULTS_FOLDER, TEXT_FILE

PICTURES_FOLDER = Path("images/results")
_INTRODUCTION = """# Results

Written by `dlen compare`, one section an experiment; what the figures mean is said in [training](training.md). Each
section stands on its own command; finished runs are not repeated, so a command run again only draws its section anew.
"""


def write_page(out: Path, page: Path) -> list[str]:
    """Write the page of every experiment that has results in `out`, by name; return the names.

    The pictures go to `images/results/EXPERIMENT-PICTURE` beside the page.
    """
    sections, names = [_INTRODUCTION], []
    for folder in sorted(path.parent for path in out.glob(f"*/{RESULTS_FOLDER}/{FIGURES_FILE}")):
        name = folder.parent.name
        names.append(name)
        title = json.loads((folder / FIGURES_FILE).read_text("utf-8"))["title"]
        for picture in sorted(folder.glob("*.png")):
            target = page.parent / PICTURES_FOLDER / f"{name}-{picture.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, picture.read_bytes())
        sections.append(_section(name, title, (folder / TEXT_FILE).read_text("utf-8")))
    write_file(page, "\n".join(sections).encode())
    return names


def _section(name: str, title: str, text: str) -> str:
    """Return an experiment's text one heading lower, with its command and the places of its pictures."""
    body = text.partition("\n\n")[2]
    body = re.sub(r"(?m)^#", "##", body)
    body = re.sub(r"\]\((\w+\.png)\)", rf"]({PICTURES_FOLDER.as_posix()}/{name}-\1)", body)
    command = f"`dlen compare --config configs/experiments/{name}.yaml --page docs/results.md`"
    return f"## {title}\n\n{command}\n\n{body}"
