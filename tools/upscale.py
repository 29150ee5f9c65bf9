"""Restore a video at a larger size: python tools/upscale.py VIDEO --scale 4.

Leaves result.mp4, compare.mp4 and compare.png (beside bicubic), and metrics.json.
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
    parser.add_argument("--scale", type=whole_number(2, 8), default=4, help="default: %(default)s")
    parser.add_argument(
        "--condition",
        default="enlarged",
        help="what the refiner sees: enlarged, compressor, vae; default: %(default)s",
    )
    parser.add_argument(
        "--from-original", action="store_true", help="reduce VIDEO first, and measure against it"
    )
    parser.add_argument("--output-dir", help="default: outputs/<name of the video>.upscale")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.clip import open_clip
    from diffusion.app.enlarge import OUTPUTS, summary, upscale
    from diffusion.app.reconstruct import write_json
    from diffusion.app.unfinished import UnfinishedRun, run_key
    from diffusion.pipelines.builder import build_cascade, weights_of

    config = read_config(args)
    sampling, devices = sampling_options(args, config), device_options(args)
    clip = open_clip(args.video, clip_options(args, config))
    options = {"scale": args.scale, "condition": args.condition}
    options["from_original"] = args.from_original
    pipeline = build_cascade(config, weights=args.weights, **devices)
    name = f"{Path(args.video).stem}.upscale"
    folder = make_folder(args.output_dir or Path("outputs") / name)
    weights = weights_of(config, args.weights)
    key = run_key(config, weights, args.video, **devices, **sampling, **options, clip=clip)
    with UnfinishedRun(folder / ".unfinished", key) as unfinished:
        metrics = upscale(pipeline, clip, folder, unfinished, **options, **sampling)
    write_json({**metrics, **options, **sampling}, folder / "metrics.json")
    print(summary(metrics))
    for output in OUTPUTS:
        print(f"  {folder / output}")


if __name__ == "__main__":
    run_command(main, build_parser())
