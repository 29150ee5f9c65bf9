"""Encode a training set once: python tools/prepare_latents.py CONFIG --output DIR.

Each video gives shards of consecutive frames, resized by a random factor; a shard that is already
there is not encoded again.
"""

import argparse
import hashlib

from tqdm import tqdm

from diffusion.app.options import (
    add_config_options,
    add_device_options,
    device_options,
    whole_number,
)
from diffusion.config import load_config
from diffusion.data.clips import list_videos, random_segment, read_first_frames, seeded
from diffusion.data.latent_cache import save_shard
from diffusion.data.transforms import to_float
from diffusion.pipelines.builder import build_cascade
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.files import make_folder

AUTOENCODERS = ("compressor", "previewer", "vae")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    count = whole_number(1)
    parser.add_argument("config")
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument("--weights", help="folder with the autoencoders' weights")
    parser.add_argument("--segments", type=count, default=2, help="shards per video")
    parser.add_argument("--num-frames", type=count, default=16, help="frames per shard")
    parser.add_argument("--max-frames", type=count, default=96, help="frames read per video")
    parser.add_argument(
        "--short-edge", type=whole_number(32), nargs=2, default=(256, 512), metavar="PIXELS"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0)
    add_device_options(parser)
    add_config_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.cfg_options)
    if "video_list" not in config:
        raise UserError(f"{args.config}: has no video_list to encode")
    videos = list_videos(config["video_list"])
    devices = device_options(args)
    pipeline = build_cascade(config, weights=args.weights, only=AUTOENCODERS, **devices)
    folder = make_folder(args.output)
    for path in tqdm(videos, desc="encode"):
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        shards = [folder / f"{name}-{i}.safetensors" for i in range(args.segments)]
        if all(shard.exists() for shard in shards):
            continue
        try:
            frames = read_first_frames(path, args.max_frames)
        except VideoError as error:
            tqdm.write(f"left out: {error}")
            continue
        for i, shard in enumerate(shards):
            rng = seeded(args.seed, int(name, 16) >> 1, i)
            piece = random_segment(frames, args.num_frames, args.short_edge, rng)
            video = to_float(piece)[None]
            semantic = pipeline.encode(video)
            tensors = {
                "target": pipeline.encode_vae(video),
                "semantic": semantic,
                "base": pipeline.base(semantic),
            }
            stored = {key: value[0].cpu() for key, value in tensors.items() if value is not None}
            save_shard(shard, stored, str(path))


if __name__ == "__main__":
    run_command(main, build_parser())
