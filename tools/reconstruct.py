"""Compress a video 1x32x32 and restore it: bash recon.sh [VIDEO] [options].

Leaves latents.safetensors, preview.mp4, recon.mp4, compare.mp4, compare.png and metrics.json.
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
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder

ROOT = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="recon.sh", description=__doc__)
    parser.add_argument("video", nargs="?", default=str(ROOT / "example" / "city.mp4"))
    parser.add_argument("--output-dir", help="default: outputs/<name of the video>")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.clip import read_clip
    from diffusion.app.reconstruct import OUTPUTS, measure, reconstruct, write_json, write_results
    from diffusion.app.stages import Stages
    from diffusion.app.table import print_results
    from diffusion.pipelines.builder import build_cascade, weights_of

    stages = Stages()
    config = read_config(args)
    sampling = sampling_options(args)
    devices = device_options(args)
    with stages("read"):
        clip = read_clip(args.video, clip_options(args, config))
    with stages("load"):
        pipeline = build_cascade(config, weights=args.weights, **devices)
    folder = make_folder(args.output_dir or Path("outputs") / Path(args.video).stem)
    result = reconstruct(pipeline, clip, config["model_id"], stages, **sampling)
    with stages("write"):
        write_results(result, folder)
    metrics = {
        **measure(result, pipeline),
        "latents_bytes": (folder / "latents.safetensors").stat().st_size,
        "seconds": stages.seconds,
        "config": str(args.config),
        "weights": {name: str(path) for name, path in weights_of(config, args.weights).items()},
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **sampling,
    }
    write_json(metrics, folder / "metrics.json")
    print_results(metrics, [folder / name for name in OUTPUTS])


if __name__ == "__main__":
    run_command(main, build_parser())
