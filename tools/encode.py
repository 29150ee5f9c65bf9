"""Compress a video to semantic latents: python tools/encode.py VIDEO -o x.safetensors."""

import argparse
from pathlib import Path

from diffusion.app.options import add_clip_options, add_model_options
from diffusion.app.reconstruct import clip_options, encode_clip, read_clip
from diffusion.app.stages import Stages
from diffusion.config import load_config
from diffusion.data.latents import save_latents
from diffusion.pipelines.builder import build_cascade
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.devices import choose_device, choose_dtype
from diffusion.utils.files import make_folder


def main(args: argparse.Namespace) -> None:
    stages = Stages()
    config = load_config(args.config, args.cfg_options)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    options = clip_options(
        config,
        start=args.start,
        num_frames=args.num_frames or "all",
        frame_stride=args.frame_stride,
        size=args.size,
        square=args.square,
    )
    with stages("read"):
        clip = read_clip(args.video, options)
    make_folder(Path(args.output).parent)
    pipeline = build_cascade(
        config, weights=args.weights, device=device, dtype=dtype, only=("compressor",)
    )
    with stages("encode"):
        latents, info = encode_clip(pipeline, clip, config["model_id"])
    save_latents(args.output, latents, info)
    print(f"{args.output}: {list(latents.shape)}, {Path(args.output).stat().st_size} bytes")


if __name__ == "__main__":
    parser = CommandParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("-o", "--output", required=True, help="the latents file")
    add_model_options(parser)
    add_clip_options(parser)
    run_command(main, parser)
