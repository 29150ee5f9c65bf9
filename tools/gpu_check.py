"""Check a GPU, and leave a page of results that can be pasted into an issue.

    bash scripts/gpu_check.sh                        # the first GPU: about half an hour
    bash scripts/gpu_check.sh --device cpu --small   # how it goes, on any machine

Nothing is fetched: weights are the embedded ones or random. A check that fails does not stop the
others; the exit code is 1 if one did.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from diffusion.utils.cli import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="narrow networks and small frames, as a CPU can take"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CHECK", help="some of the checks, by name"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("results"), help="default: %(default)s"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.gpu_check.all_checks import check_device, chosen_checks
    from diffusion.app.gpu_check.check_result import Setting
    from diffusion.utils.devices import choose_device

    checks, device = chosen_checks(args.only), choose_device(args.device)
    with tempfile.TemporaryDirectory(prefix="gpu_check.") as folder:
        report = check_device(checks, Setting(device, args.small, Path(folder)), args.output_dir)
    logging.info("%s: %d checks failed", args.output_dir / "gpu_check.md", report["failed"])
    if report["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, build_parser())
