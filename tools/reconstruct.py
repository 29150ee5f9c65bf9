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
    clip_options,
    device_options,
    read_config,
    sampling_options,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder, write_json

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
    from diffusion.app.reconstruction.clip_source import open_clip
    from diffusion.app.reconstruction.printed_table import print_results
    from diffusion.app.reconstruction.reconstruction import OUTPUTS, Reconstruction
    from diffusion.app.reconstruction.several_processes import output_folder, sharing
    from diffusion.app.reconstruction.stage_times import Stages
    from diffusion.app.reconstruction.unfinished import UnfinishedRun, run_key
    from diffusion.pipelines.cascade_builder import build_cascade, weights_of

    stages = Stages()
    config = read_config(args)
    sampling = sampling_options(args, config)
    devices = device_options(args)
    with stages("read"):
        clip = open_clip(args.video, clip_options(args, config))
    with stages("load"):
        pipeline = build_cascade(config, weights=args.weights, **devices)
    weights = weights_of(config, args.weights)
    folder = make_folder(args.output_dir or Path("outputs") / clip.name)
    key = run_key(config, weights, args.video, **devices, **sampling, clip=clip)
    with (
        sharing(pipeline) as is_first,
        UnfinishedRun(folder / ".unfinished", key, writes=is_first) as unfinished,
        output_folder(folder, is_first) as own_folder,
    ):
        result = Reconstruction(pipeline, clip, config["model_id"], own_folder, stages)
        measured = result.run(unfinished, **sampling)
    if not is_first:
        return
    metrics = {
        **measured,
        "latents_bytes": (folder / "latents.safetensors").stat().st_size,
        "seconds": stages.seconds,
        "config": str(args.config),
        "weights": {name: str(path) for name, path in weights.items()},
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **sampling,
    }
    write_json(folder / "metrics.json", metrics)
    print_results(metrics, [folder / name for name in OUTPUTS])


if __name__ == "__main__":
    run_command(main, build_parser())
