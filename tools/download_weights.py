"""Fetch the published weights: bash pretrained/download.sh [--only PART ...].

An interrupted download continues where it stopped; files that are already there stay.
"""

import argparse
import logging
from pathlib import Path

from diffusion.app.weights.published_weights import PUBLISHED, fetch_published
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder

ROOT = Path(__file__).resolve().parent.parent


def main(args: argparse.Namespace) -> None:
    for client in ("httpx", "httpx2"):  # the hub's client: a line per request
        logging.getLogger(client).setLevel(logging.WARNING)
    fetch_published(make_folder(args.output_dir), args.only)


if __name__ == "__main__":
    parser = CommandParser(prog="download.sh", description=__doc__)
    parts = [weights.part for weights in PUBLISHED]
    parser.add_argument("--only", nargs="+", choices=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument(
        "--output-dir", type=Path, default=ROOT / "pretrained", help="default: %(default)s"
    )
    run_command(main, parser)
