"""Compress a video 1x32x32 and restore it: bash recon.sh [VIDEO] [options].

Leaves latents.safetensors, preview.mp4, recon.mp4, compare.mp4, compare.png and metrics.json.
"""

import argparse
from pathlib import Path

from diffusion.app.options import (
    CLIP_HELP,
    add_clip_options,
    add_model_options,
    add_sampling_options,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder

ROOT = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="recon.sh", description=__doc__)
    parser.add_argument(
        "video",
        nargs="?",
        default=str(ROOT / "example" / "city.mp4"),
        help=f"{CLIP_HELP}; default: the example",
    )
    parser.add_argument("--output-dir", help="default: outputs/<name of the video>")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.opened_cascade import open_cascade_for_clip
    from diffusion.app.reconstruction.printed_table import print_results
    from diffusion.app.reconstruction.reconstruction import OUTPUTS, reconstruct

    opened = open_cascade_for_clip(args)
    folder = make_folder(args.output_dir or Path("outputs") / opened.source.name)
    metrics = reconstruct(opened, folder, str(args.config))
    if metrics is not None:
        print_results(metrics, [folder / name for name in OUTPUTS])


if __name__ == "__main__":
    run_command(main, build_parser())
