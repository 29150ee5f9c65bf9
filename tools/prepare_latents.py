"""Encode a training set once: python tools/prepare_latents.py CONFIG --output DIR.

Each video gives some clips of consecutive frames, made smaller by a random factor. A run that was
stopped continues; what is encoded already is not encoded again. Several processes share the work
when started by torchrun, or each with its --part.
"""

import argparse
import re
from pathlib import Path

from diffusion.app.options import (
    add_config_options,
    add_device_options,
    device_options,
    whole_number,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    count = whole_number(1)
    parser.add_argument("config")
    parser.add_argument("--output", type=Path, required=True, help="folder of the latents")
    parser.add_argument("--weights", help="folder with the autoencoders' weights")
    parser.add_argument("--segments", type=count, default=2, help="clips per video")
    parser.add_argument("--num-frames", type=count, default=16, help="frames per clip")
    parser.add_argument("--frame-stride", type=count, default=1, help="1 is every frame")
    parser.add_argument(
        "--short-edge", type=whole_number(32), nargs=2, default=(256, 512), metavar="PIXELS"
    )
    parser.add_argument(
        "--enlarged",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the clips, with the condition that tools/upscale.py gives",
    )
    parser.add_argument(
        "--stretched", type=float, default=0.0, metavar="SHARE", help="tools/interpolate.py"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--part", help="i/n: the i-th of n processes, from 1/n to n/n")
    parser.add_argument("--shard-clips", type=count, default=32, help="clips per shard")
    add_device_options(parser)
    add_config_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.training.encode_set import Part, Segments, prepare_latents
    from diffusion.config import load_config

    low, high = args.short_edge
    if low > high:
        raise UserError(f"--short-edge {low} {high}: the least comes first")
    shares = (args.enlarged, args.stretched)
    if min(shares) < 0 or sum(shares) > 1:
        raise UserError(f"--enlarged {shares[0]} --stretched {shares[1]}: shares of 0 to 1 in all")
    part = Part.of_process()
    if args.part:
        match = re.fullmatch(r"(\d+)/(\d+)", args.part)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--part {args.part}: is not of the form i/n, such as 1/4")
        part = Part(int(match[1]) - 1, int(match[2]))
    lengths = (args.segments, args.num_frames, args.frame_stride)
    what = Segments(*lengths, (low, high), args.seed, *shares)
    prepare_latents(
        load_config(args.config, args.cfg_options),
        args.output,
        what,
        part,
        weights=args.weights,
        shard_clips=args.shard_clips,
        **device_options(args),
    )


if __name__ == "__main__":
    run_command(main, build_parser())
