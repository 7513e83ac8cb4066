"""A ranker and a Prometheus on loopback, and traffic with planted faults: what the dashboards are proven on.

`python -m deploy.rehearsal --models models --requests requests.jsonl --seconds 180 --out docs/images` runs it and
draws the dashboards. Requests come from `dlen request --count 20 --candidates 50`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.traffic import Traffic
from loadtest.processes import free_ports, running
from loadtest.scenarios.stack import ranker_words

ROOT = Path(__file__).parents[1]
FUSION = """
format: 1
default: feed
policies:
  feed: {formula: weighted_sum, weights: {click: 1.0, like: 3.0}, p_up: 0.5}
  plain: {formula: weighted_sum, signal: marginal, weights: {click: 1.0, like: 3.0}}
test_users: [tester]
layers:
  - name: ranking
    experiments:
      - name: p_up
        variants:
          - {name: up_off, weight: 0.5, policy: plain}
          - {name: up_on, weight: 0.5, policy: feed}
  - name: diversity
    experiments:
      - name: author_cap
        traffic: 0.4
        variants:
          - {name: uncapped, weight: 0.75}
          - name: capped
            weight: 0.25
            patch: {rules: [{type: mmr, relevance: 0.7, depth: 20, pool: 100},
                            {type: window_cap, key: group, max: 1, window: 5}]}
"""


@dataclass(frozen=True)
class Stack:
    """What runs: its addresses, and the fusion config that it follows."""

    service: str
    metrics: str
    prometheus: str
    fusion: Path


def prometheus_config(target: str) -> str:
    """Return deploy/prometheus/prometheus.yml with one ranker as its target, read each second."""
    folder = ROOT / "deploy" / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / pattern) for pattern in config["rule_files"]]
    jobs = [job for job in config["scrape_configs"] if job["job_name"] == "ranker"]
    config["scrape_configs"] = [{**job, "static_configs": [{"targets": [target]}]} for job in jobs]
    return str(yaml.safe_dump(config))


@contextmanager
def started(folder: Path, models: Path, prometheus: str) -> Iterator[Stack]:
    """Run a ranker of two workers and a Prometheus (the command's path) that reads it, until the block ends."""
    port, metrics_port, prometheus_port = free_ports(3)
    fusion, config = folder / "fusion.yaml", folder / "prometheus.yml"
    fusion.write_text(FUSION)
    config.write_text(prometheus_config(f"127.0.0.1:{metrics_port}"))
    service, metrics, watched = (f"http://127.0.0.1:{p}" for p in (port, metrics_port, prometheus_port))
    stack = Stack(service, metrics, watched, fusion)
    limits = {"DLEN_WORKERS": "2", "DLEN_MAX_IN_FLIGHT": "4", "DLEN_DRAIN_SECONDS": "0.2", "DLEN_LOG_LEVEL": "warning"}
    watcher = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    watcher.append(f"--web.listen-address=127.0.0.1:{prometheus_port}")
    ranker = ranker_words(models, fusion, port, metrics_port)
    with (
        running(ranker, folder / "ranker.log", f"{stack.service}/readyz", OMP_NUM_THREADS="1", **limits),
        running(watcher, folder / "prometheus.log", f"{stack.prometheus}/-/ready"),
    ):
        yield stack


def rehearse(stack: Stack, bodies: list[dict[str, object]], seconds: float) -> Traffic:
    """Send traffic with one fault after another, at fixed parts of the time; return what was sent and answered."""
    start = time.monotonic()

    def until(part: float) -> float:
        return start + part * seconds

    with Traffic(stack.service, bodies) as traffic:
        traffic.steady(until(0.25))
        traffic.steady(until(0.4), without=traffic.first_user_feature)
        traffic.steady(until(0.5))
        traffic.overload(until(0.65))
        traffic.steady(until(0.75))
        good = stack.fusion.read_text()
        stack.fusion.write_text(good.replace("like: 3.0", "no_such_task: 3.0"))
        traffic.steady(until(0.9))
        stack.fusion.write_text(good)
        traffic.steady(until(1.0))
    return traffic


def main() -> int:
    """Rehearse, then draw the dashboards; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.rehearsal", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of <name>/<version>/ bundles")
    parser.add_argument("--requests", type=Path, required=True, help="one /v1/rank body per line")
    parser.add_argument("--seconds", type=float, default=180.0, help="default: 180")
    parser.add_argument("--out", type=Path, required=True, help="folder for one PNG per dashboard")
    arguments = parser.parse_args()
    from deploy.pictures import draw_dashboards

    bodies = [json.loads(line) for line in arguments.requests.read_text().splitlines()]
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        sys.stdout.write("prometheus: got no such command, want Debian's package of that name\n")
        return 2
    with (
        tempfile.TemporaryDirectory() as folder,
        started(Path(folder), arguments.models.resolve(), prometheus) as stack,
    ):
        began = time.time()
        traffic = rehearse(stack, bodies, arguments.seconds)
        time.sleep(2)  # the last scrape
        draw_dashboards(stack.prometheus, arguments.out, began, time.time())
    sys.stdout.write(f"answers by status: {dict(sorted(traffic.statuses.items()))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
