"""Compress a video 1x32x32 and restore it: bash recon.sh [VIDEO] [options].

Leaves latents.safetensors, preview.mp4, recon.mp4, compare.mp4, compare.png and metrics.json.
"""

import argparse
from pathlib import Path

from diffusion.app.options import (
    add_clip_options,
    add_model_options,
    add_sampling_options,
    sampling_options,
)
from diffusion.app.reconstruct import (
    clip_options,
    measure,
    read_clip,
    reconstruct,
    write_json,
    write_results,
)
from diffusion.app.stages import Stages
from diffusion.app.table import print_results
from diffusion.config import ROOT, load_config
from diffusion.pipelines.builder import build_cascade, weights_of
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.devices import choose_device, choose_dtype
from diffusion.utils.files import make_folder


def main(args: argparse.Namespace) -> None:
    stages = Stages()
    config = load_config(args.config, args.cfg_options)
    sampling = sampling_options(args)
    options = clip_options(
        config,
        start=args.start,
        num_frames=args.num_frames,
        frame_stride=args.frame_stride,
        size=args.size,
        square=args.square,
    )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    with stages("read"):
        clip = read_clip(args.video, options)
    folder = make_folder(args.output_dir or Path("outputs") / Path(args.video).stem)
    with stages("load"):
        pipeline = build_cascade(config, weights=args.weights, device=device, dtype=dtype)
    latents_path = folder / "latents.safetensors"
    result = reconstruct(
        pipeline, clip, config["model_id"], stages, latents_path=latents_path, **sampling
    )
    with stages("write"):
        write_results(result, folder)
    metrics = {
        **measure(result, pipeline),
        "latents_bytes": latents_path.stat().st_size,
        "seconds": stages.seconds,
        "config": str(args.config),
        "weights": {name: str(path) for name, path in weights_of(config, args.weights).items()},
        "device": str(device),
        "dtype": args.dtype if args.dtype != "auto" else str(dtype).removeprefix("torch."),
        **sampling,
    }
    write_json(metrics, folder / "metrics.json")
    print_results(metrics, folder)


if __name__ == "__main__":
    parser = CommandParser(prog="recon.sh", description=__doc__)
    parser.add_argument("video", nargs="?", default=str(ROOT / "example" / "city.mp4"))
    parser.add_argument("--output-dir", help="default: outputs/<name of the video>")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    run_command(main, parser)
