"""Restore a video at a larger size: python tools/upscale.py VIDEO --scale 4.

Leaves result.mp4, compare.mp4 and compare.png (beside bicubic), and metrics.json.
"""

import argparse

from diffusion.app.enlarging.enlarge_command import enlarge_video, enlarging_parser
from diffusion.app.options import whole_number
from diffusion.utils.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    parser = enlarging_parser(__doc__, "upscale")
    parser.add_argument("--scale", type=whole_number(2, 8), default=4, help="default: %(default)s")
    parser.add_argument(
        "--condition",
        default="enlarged",
        help="what the refiner sees: enlarged, compressor, vae; default: %(default)s",
    )
    parser.add_argument(
        "--from-original", action="store_true", help="reduce VIDEO first, and measure against it"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    options = {"scale": args.scale, "condition": args.condition}
    made = enlarge_video(args, "upscale", **options, from_original=args.from_original)
    if made:
        print(made)


if __name__ == "__main__":
    run_command(main, build_parser())
