"""`dlen loadtest compare --peers`: the order of its steps."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from types import FrameType

from rich.table import Table

from loadtest.errors import PlanInvalid
from loadtest.files import write_file
from loadtest.peers.catalogue import chosen, services
from loadtest.peers.install import install_peers
from loadtest.peers.kit import read_kit
from loadtest.peers.rounds import Results, Settings, measure_servers
from loadtest.peers.show import comparison_document, comparison_tables, plot_lines, plot_peers
from loadtest.report import html_page, json_bytes


def compare_peers(args: argparse.Namespace, say: Callable[[str | Table], None]) -> int:
    """Install or measure the peers that are wanted; return the exit code: 1 where a wanted one was skipped."""
    peers = chosen(args.peers)
    if args.install:
        return 1 if install_peers(peers, say) else 0
    if args.kit is None:
        raise PlanInvalid("--kit", found="nothing", expected="a folder made by `dlen benchmark kit`")
    kit = read_kit(args.kit)
    candidates = kit.candidates if args.candidates is None else tuple(sorted(args.candidates))
    if unknown := set(candidates) - set(kit.candidates):
        raise PlanInvalid("--candidates", found=sorted(unknown), expected=f"some of {list(kit.candidates)}")
    settings = _settings(args)
    signal.signal(signal.SIGTERM, _interrupt)  # so that servers are stopped on SIGTERM as on Ctrl-C
    results = measure_servers(kit, [*services(), *peers], candidates, settings, say)
    tables = comparison_tables(results, candidates)
    for table in tables:
        say(table)
    _write(args, results, candidates, settings, tables)
    return 1 if any(peer.name in results.skipped for peer in peers) else 0


def _settings(args: argparse.Namespace) -> Settings:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise PlanInvalid("cores", found=cores, expected="two, one for the server and one for the client")
    settings = Settings(
        rounds=args.rounds,
        duration_s=args.duration,
        warmup_s=args.warmup,
        connections=args.connections,
        server_core=cores[0],
        client_core=cores[1],
    )
    if settings.rounds < 1 or settings.connections < 1 or not 0 < settings.duration_s < 600:
        raise PlanInvalid("rounds, connections, duration", found=settings, expected="1 or more, above 0 s")
    return settings


def _write(
    args: argparse.Namespace, results: Results, candidates: tuple[int, ...], settings: Settings, tables: list[Table]
) -> None:
    document = comparison_document(results, candidates, settings)
    if args.json:
        write_file(args.json, json_bytes(document))
    if args.plot:
        write_file(args.plot, plot_peers(results, candidates))
    if args.lines:
        write_file(args.lines, plot_lines(results))
    if args.html:
        write_file(args.html, html_page("This service against its peers", tables, plot_peers(results, candidates)))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
