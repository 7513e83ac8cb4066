"""`python -m deploy.dashboards [--check]`: write the dashboards, or say which are not current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards.experiments import experiments_dashboard
from deploy.dashboards.quality import quality_dashboard
from deploy.dashboards.service import service_dashboard

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"


def dashboard_json(made: dashboard.Dashboard) -> str:
    """Return a dashboard as the JSON that Grafana reads, its panels numbered from 1."""
    document = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(document["panels"], 1):
        panel["id"] = number
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check all dashboards; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name what is not current")
    check = parser.parse_args().check
    made = {
        FOLDER / "service.json": service_dashboard(),
        FOLDER / "quality.json": quality_dashboard(),
        FOLDER / "experiments.json": experiments_dashboard(),
    }
    code = 0
    for file, board in made.items():
        text = dashboard_json(board)
        if not check:
            file.write_text(text)
        elif not file.is_file() or file.read_text() != text:
            sys.stdout.write(f"{file}: not current; run python -m deploy.dashboards\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
