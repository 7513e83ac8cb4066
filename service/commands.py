"""`dlen serve`, `dlen models`, `dlen rank`: what they take; the work is done elsewhere, imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

SERVE_EXAMPLE = "example: dlen serve --models models --fusion configs/fusion.yaml --port 8080"
MODELS_EXAMPLE = "example: dlen models list --models models"
VERIFY_EXAMPLE = "example: dlen models verify --models models --trusted-keys-file trusted.pem"
SIGN_EXAMPLE = "example: dlen models sign --bundle models/kuairand/2 --key signing.pem"
RANK_EXAMPLE = "example: dlen rank --url http://127.0.0.1:8080 --request examples/request.json"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the service's commands."""
    _register_serve(commands)
    _register_models(commands)
    _register_rank(commands)


def _register_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    serve = commands.add_parser(
        "serve",
        help="serve rank requests over HTTP",
        description="Serve rank requests over HTTP. Every setting may also come from --settings FILE or DLEN_<NAME>;"
        " docs/serving.md lists them.",
        epilog=SERVE_EXAMPLE,
        formatter_class=raw,
    )
    serve.add_argument("--models", help="folder of <name>/<version>/ bundles")
    serve.add_argument("--fusion", help="fusion config: a YAML file or a directory of them")
    serve.add_argument("--fusion-state", help="folder for the config's history and pin (default: none kept)")
    serve.add_argument("--keys-file", help="file with callers' keys, one per line (default: open to anybody)")
    serve.add_argument("--admin-keys-file", help="file with admin keys, one per line (default: no admin routes)")
    serve.add_argument(
        "--trusted-keys-file", help="PEM file of public keys, one of which must have signed a version (default: none)"
    )
    serve.add_argument("--model", help="name of the one model to serve (default: all in the folder)")
    serve.add_argument("--version", help="version to hold on to (default: the highest good one)")
    serve.add_argument("--host", help="address of the API (default 127.0.0.1)")
    serve.add_argument("--port", help="port of the API, 0 for a free one (default 8080)")
    serve.add_argument("--metrics-host", help="address of /metrics (default 127.0.0.1)")
    serve.add_argument("--metrics-port", help="port of /metrics, 0 for a free one (default 9100)")
    serve.add_argument("--workers", help="worker processes (default 0: one per core)")
    serve.add_argument("--settings", type=Path, metavar="FILE", help="YAML file of settings")
    serve.set_defaults(run=run_serve)


def _register_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    models = commands.add_parser("models", help="look at bundles on disk", epilog=MODELS_EXAMPLE, formatter_class=raw)
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="list every version and whether it may serve", epilog=MODELS_EXAMPLE, formatter_class=raw
    )
    listing.add_argument("--models", type=Path, required=True, help="folder of <name>/<version>/ bundles")
    listing.add_argument("--json", type=Path, metavar="FILE", help="write the list as JSON")
    listing.set_defaults(run=run_models_list)
    verify = actions.add_parser(
        "verify", help="list every version and whether a trusted key has signed it", epilog=VERIFY_EXAMPLE,
        formatter_class=raw,
    )  # fmt: skip
    verify.add_argument("--models", type=Path, required=True, help="folder of <name>/<version>/ bundles")
    verify.add_argument("--trusted-keys-file", type=Path, required=True, metavar="FILE", help="PEM file of public keys")
    verify.add_argument("--json", type=Path, metavar="FILE", help="write the list as JSON")
    verify.set_defaults(run=run_models_list)
    sign = actions.add_parser(
        "sign", help="sign a version; signatures of other keys stay", epilog=SIGN_EXAMPLE, formatter_class=raw
    )
    sign.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="models/NAME/VERSION, as it will serve")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="PEM file of an Ed25519 private key")
    sign.set_defaults(run=run_models_sign)


def _register_rank(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rank = commands.add_parser(
        "rank",
        help="send one rank request and print the ordered feed",
        epilog=RANK_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rank.add_argument("--url", default="http://127.0.0.1:8080", help="where the service listens")
    rank.add_argument("--request", type=Path, required=True, metavar="FILE", help="a request body (JSON)")
    rank.add_argument("--key-file", type=Path, metavar="FILE", help="file with the key to show (its first one)")
    rank.add_argument("--explain", action="store_true", help="show how each score came to be")
    rank.add_argument("--top", type=int, default=20, metavar="K", help="rows to print (default 20)")
    rank.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait (default 10)")
    rank.add_argument("--json", type=Path, metavar="FILE", help="write the whole answer as JSON")
    rank.set_defaults(run=run_rank)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    import os

    from service.settings import Settings, load_settings
    from service.supervisor import serve

    flags = {name: getattr(args, name) for name in Settings.model_fields if hasattr(args, name)}
    return serve(load_settings(flags, os.environ, args.settings))


def run_models_list(args: argparse.Namespace) -> int:
    """Print every version on disk; with trusted keys, whether one of them has signed it."""
    from bundle.signature import read_trusted_keys
    from service.inventory import print_models

    file = getattr(args, "trusted_keys_file", None)
    return print_models(args.models, args.json, None if file is None else read_trusted_keys(file))


def run_models_sign(args: argparse.Namespace) -> int:
    """Sign a version on disk."""
    from service.inventory import sign_version

    return sign_version(args.bundle, args.key)


def run_rank(args: argparse.Namespace) -> int:
    """Send one request and print the answer."""
    from service.show import print_ranking

    return print_ranking(args.url, args.request, args.explain, args.top, args.timeout, args.json, args.key_file)
