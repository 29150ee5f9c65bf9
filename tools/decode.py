"""Restore a video from semantic latents: python tools/decode.py x.safetensors -o y.mp4."""

import argparse
from pathlib import Path

from diffusion.app.options import add_model_options, add_sampling_options, sampling_options
from diffusion.app.reconstruct import without_padding
from diffusion.app.stages import Stages
from diffusion.config import load_config
from diffusion.data.latents import load_latents
from diffusion.data.video_io import VideoWriter
from diffusion.pipelines.builder import build_cascade
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.devices import choose_device, choose_dtype
from diffusion.utils.errors import UserError
from diffusion.utils.files import make_folder


def main(args: argparse.Namespace) -> None:
    stages = Stages()
    config = load_config(args.config, args.cfg_options)
    sampling = sampling_options(args)
    latents, info = load_latents(args.latents)
    if info.model != config["model_id"]:
        raise UserError(
            f"{args.latents}: made by {info.model}, not by {config['model_id']} of {args.config}; "
            "pass the --config that encoded it"
        )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    make_folder(Path(args.output).parent)
    pipeline = build_cascade(config, weights=args.weights, device=device, dtype=dtype)
    with stages("denoise"):
        vae_latents = pipeline.restore(latents, **sampling)
    with stages("decode"):
        video = without_padding(pipeline.decode_vae(vae_latents), info)
    with VideoWriter(args.output, info.fps) as writer:
        writer.write(video)
    print(f"{args.output}: {video.shape[1]} frames of {video.shape[3]}x{video.shape[2]}")


if __name__ == "__main__":
    parser = CommandParser(description=__doc__)
    parser.add_argument("latents")
    parser.add_argument("-o", "--output", required=True, help="the video, .mp4")
    add_model_options(parser)
    add_sampling_options(parser)
    run_command(main, parser)
