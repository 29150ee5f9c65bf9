"""What tools/upscale.py and tools/interpolate.py share: a video in, a folder of results out."""

import argparse
from pathlib import Path
from typing import Any

from diffusion.app.options import (
    CLIP_HELP,
    add_clip_options,
    add_model_options,
    add_sampling_options,
    clip_options,
    device_options,
    read_config,
    sampling_options,
)
from diffusion.utils.cli import CommandParser
from diffusion.utils.files import make_folder, write_json


def enlarging_parser(description: str, kind: str) -> argparse.ArgumentParser:
    """kind: see `enlarge_video`."""
    parser = CommandParser(description=description)
    parser.add_argument("video", help=CLIP_HELP)
    parser.add_argument("--output-dir", help=f"default: outputs/<name of the video>.{kind}")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def enlarge_video(args: argparse.Namespace, kind: str, **options: Any) -> str:
    """What was made and measured, for people to read.

    kind: "upscale" or "interpolate", the function of app/enlarging/enlarge.py that takes `options`.
    """
    # not above: --help need not wait for torch
    from diffusion.app.enlarging.enlarge import KINDS, OUTPUTS, summary
    from diffusion.app.reconstruction.clip_source import open_clip
    from diffusion.app.reconstruction.unfinished import UnfinishedRun, run_key
    from diffusion.pipelines.cascade_builder import build_cascade, weights_of

    config = read_config(args)
    sampling, devices = sampling_options(args, config), device_options(args)
    clip = open_clip(args.video, clip_options(args, config))
    pipeline = build_cascade(config, weights=args.weights, **devices)
    default = Path("outputs") / f"{clip.name}.{kind}"
    folder = make_folder(args.output_dir or default)
    weights = weights_of(config, args.weights)
    key = run_key(config, weights, args.video, **devices, **sampling, **options, clip=clip)
    with UnfinishedRun(folder / ".unfinished", key) as unfinished:
        metrics = KINDS[kind](pipeline, clip, folder, unfinished, **options, **sampling)
    write_json(folder / "metrics.json", {**metrics, **options, **sampling})
    return "\n".join([summary(metrics), *(f"  {folder / output}" for output in OUTPUTS)])
