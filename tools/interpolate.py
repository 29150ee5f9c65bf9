"""Restore frames between those of a video: python tools/interpolate.py VIDEO --factor 4.

Leaves result.mp4, compare.mp4 and compare.png (beside repeated and blended frames), metrics.json.
"""

import argparse

from diffusion.app.enlarging.enlarge_command import enlarge_video, enlarging_parser
from diffusion.app.options import whole_number
from diffusion.utils.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    parser = enlarging_parser(__doc__, "interpolate")
    parser.add_argument("--factor", type=whole_number(2, 8), default=4, help="default: %(default)s")
    parser.add_argument(
        "--from-original",
        action="store_true",
        help="leave frames out first, and measure against them",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    made = enlarge_video(args, "interpolate", factor=args.factor, from_original=args.from_original)
    if made:
        print(made)


if __name__ == "__main__":
    run_command(main, build_parser())
