"""Restore a video from semantic latents: python tools/decode.py x.safetensors -o y.mp4."""

import argparse

from diffusion.app.options import (
    add_model_options,
    add_sampling_options,
    device_options,
    output_file,
    read_config,
    sampling_options,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("latents")
    parser.add_argument("-o", "--output", required=True, help="the video, .mp4")
    add_model_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.reconstruct import check_latents, load_latents_of, without_padding
    from diffusion.app.stages import Stages
    from diffusion.data.video_io import VideoWriter
    from diffusion.pipelines.builder import build_cascade

    stages = Stages()
    config = read_config(args)
    sampling = sampling_options(args)
    devices = device_options(args)
    output = output_file(args.output, ".mp4")
    latents, info = load_latents_of(args.latents, config)
    pipeline = build_cascade(config, weights=args.weights, **devices)
    check_latents(args.latents, latents, info, pipeline)
    make_folder(output.parent)
    with stages("denoise"):
        vae_latents = pipeline.restore(latents, **sampling)
    with stages("decode"):
        video = without_padding(pipeline.decode_vae(vae_latents), info)
    with VideoWriter(output, info.fps) as writer:
        writer.write(video)
    print(f"{output}: {video.shape[1]} frames of {video.shape[3]}x{video.shape[2]}")


if __name__ == "__main__":
    run_command(main, build_parser())
