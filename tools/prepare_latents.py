"""Encode a training set once: python tools/prepare_latents.py CONFIG --output DIR.

Each video gives shards of consecutive frames, resized by a random factor; a shard that is already
there is not encoded again.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion.config import load_config
from diffusion.data.clips import list_videos, random_segment, read_first_frames, seeded
from diffusion.data.latent_cache import save_shard
from diffusion.data.transforms import to_float
from diffusion.pipelines.builder import build_cascade
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.devices import choose_device, choose_dtype
from diffusion.utils.errors import UserError, VideoError


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.cfg_options)
    if "video_list" not in config:
        raise UserError(f"{args.config}: has no video_list to encode")
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    pipeline = build_cascade(
        config,
        weights=args.weights,
        device=device,
        dtype=dtype,
        only=("compressor", "previewer", "vae"),
    )
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(list_videos(config["video_list"]), desc="encode"):
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        shards = [output / f"{name}-{i}.safetensors" for i in range(args.segments)]
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
            video = to_float(piece)[None].to(device)
            semantic = pipeline.encode(video)
            tensors = {"target": pipeline.encode_vae(video), "semantic": semantic}
            base = pipeline.base(semantic)
            if base is not None:
                tensors["base"] = base
            save_shard(shard, {key: value[0].cpu() for key, value in tensors.items()}, str(path))


if __name__ == "__main__":
    parser = CommandParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument("--weights", help="folder with the autoencoders' weights")
    parser.add_argument("--segments", type=int, default=2, help="shards per video")
    parser.add_argument("--num-frames", type=int, default=16, help="frames per shard")
    parser.add_argument("--max-frames", type=int, default=96, help="frames read per video")
    parser.add_argument("--short-edge", type=int, nargs=2, default=(256, 512), metavar="PIXELS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="KEY=VALUE")
    run_command(main, parser)
