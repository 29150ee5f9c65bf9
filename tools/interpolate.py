"""Restore frames between those of a video: python tools/interpolate.py VIDEO --factor 4.

Leaves result.mp4, compare.mp4 and compare.png (beside repeated and blended frames), metrics.json.
"""

import argparse
from pathlib import Path

from diffusion.app.options import (
    add_clip_options,
    add_model_options,
    add_sampling_options,
    clip_options,
    device_options,
    read_config,
    sampling_options,
    whole_number,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("--factor", type=whole_number(2, 8), default=4, help="default: %(default)s")
    parser.add_argument(
        "--from-original",
        action="store_true",
        help="leave frames out first, and measure against them",
    )
    parser.add_argument("--output-dir", help="default: outputs/<name of the video>.interpolate")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.clip import every_nth, open_clip
    from diffusion.app.enlarge import OUTPUTS, interpolate, summary
    from diffusion.app.reconstruct import write_json
    from diffusion.app.unfinished import UnfinishedRun, run_key
    from diffusion.pipelines.builder import build_cascade, weights_of

    config = read_config(args)
    sampling, devices = sampling_options(args, config), device_options(args)
    limits, options = clip_options(args, config), {"factor": args.factor}
    clip, original = open_clip(args.video, limits), None
    if args.from_original:
        original, clip = clip, every_nth(clip, args.factor)
    pipeline = build_cascade(config, weights=args.weights, **devices)
    folder = make_folder(
        args.output_dir or Path("outputs") / f"{Path(args.video).stem}.interpolate"
    )
    weights = weights_of(config, args.weights)
    key = run_key(config, weights, args.video, **devices, **sampling, **options, clip=clip)
    with UnfinishedRun(folder / ".unfinished", key) as unfinished:
        metrics = interpolate(pipeline, clip, original, folder, unfinished, **options, **sampling)
    write_json({**metrics, **options, **sampling}, folder / "metrics.json")
    print(summary(metrics))
    for output in OUTPUTS:
        print(f"  {folder / output}")


if __name__ == "__main__":
    run_command(main, build_parser())
