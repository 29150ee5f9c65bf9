"""Compress a video to semantic latents: python tools/encode.py VIDEO -o x.safetensors."""

import argparse

from diffusion.app.options import (
    CLIP_HELP,
    add_clip_options,
    add_model_options,
    clip_options,
    device_options,
    output_file,
    read_config,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("video", help=CLIP_HELP)
    parser.add_argument("-o", "--output", required=True, help="the latents file, .safetensors")
    add_model_options(parser)
    add_clip_options(parser)
    parser.set_defaults(num_frames="all")
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.reconstruction.clip_source import open_clip
    from diffusion.app.reconstruction.reconstruction import encode_chunks, latents_info
    from diffusion.app.reconstruction.stage_times import Stages
    from diffusion.data.latents import LatentsWriter
    from diffusion.pipelines.cascade_builder import build_cascade

    stages = Stages()
    config = read_config(args)
    devices = device_options(args)
    output = output_file(args.output, ".safetensors")
    clip = open_clip(args.video, clip_options(args, config))
    pipeline = build_cascade(config, weights=args.weights, only=("compressor",), **devices)
    make_folder(output.parent)
    info, shape = latents_info(pipeline, clip, config["model_id"])
    with LatentsWriter(output, shape, info) as writer:
        for _, latents in encode_chunks(pipeline, clip, stages):
            writer.write(latents)
    print(f"{output}: {list(shape)}, {output.stat().st_size} bytes")


if __name__ == "__main__":
    run_command(main, build_parser())
