"""Encoding a training set once, by one or several processes."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusion.data.training.batch import seeded
from diffusion.data.training.latent_folder import LatentFolder, clip_name
from diffusion.data.training.segments import places, read_segment, shrink
from diffusion.data.video_list import list_videos
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import build_cascade, weights_of
from diffusion.pipelines.interpolation import stretched_pieces
from diffusion.pipelines.upscaling import enlarge, reduce
from diffusion.utils.devices import DTYPE_NAMES
from diffusion.utils.errors import ConfigError, UserError, VideoError

log = logging.getLogger(__name__)

AUTOENCODERS = ("compressor", "previewer", "vae")
CONDITIONS = ("own", "enlarged", "stretched")
FACTOR = 4  # of sides or frames


@dataclass(frozen=True)
class Segments:
    """What is encoded of each video; a folder holds latents of one kind.

    segments: clips per video, spread over its length.
    short_edge: least and most pixels, drawn between them per clip.
    enlarged, stretched: shares of the clips whose condition is that of tools/upscale.py, from a
        quarter of the sides, or of tools/interpolate.py, from a quarter of the frames.
    """

    segments: int = 2
    num_frames: int = 16
    frame_stride: int = 1
    short_edge: tuple[int, int] = (256, 512)
    seed: int = 0
    enlarged: float = 0.0
    stretched: float = 0.0

    def draw_condition(self, rng: np.random.Generator) -> str:
        """One of CONDITIONS."""
        shares = (self.enlarged, self.stretched)
        return str(rng.choice(CONDITIONS, p=(1 - sum(shares), *shares)))


@dataclass(frozen=True)
class Part:
    """The share of the videos that this process encodes: every `count`th, from `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_process(cls) -> "Part":
        """What torchrun says; all where it did not start this process."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def prepare_latents(
    config: Mapping[str, Any],
    folder: Path,
    what: Segments,
    part: Part,
    *,
    weights: str | Path | None = None,
    shard_clips: int = 32,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Encode what is not in the folder yet; how many clips it then has."""
    if "video_list" not in config:
        raise ConfigError("the config has no 'video_list' to encode")
    videos = list_videos(config["video_list"])
    pipeline = build_cascade(config, weights=weights, only=AUTOENCODERS, device=device, dtype=dtype)
    output = LatentFolder(folder, made_with(config, weights, what, pipeline), shard_clips)
    left_out = encoded = 0
    for path in tqdm(videos[part.index :: part.count], f"encode {part.index + 1}/{part.count}"):
        try:
            for i, place in enumerate(places(what.segments)):
                name = clip_name(path, i)
                if output.has(name, str(path)):
                    continue
                rng = seeded(what.seed, int(name.partition("-")[0], 16), i)
                frames = read_segment(path, place, what.num_frames, what.frame_stride, rng)
                video = shrink(frames, what.short_edge, rng)[None]
                condition = what.draw_condition(rng)
                output.add(name, str(path), encode(pipeline, video, condition))
                encoded += 1
        except VideoError as error:
            left_out += 1
            tqdm.write(f"left out: {error}")
    total = output.finish()
    if not total and part.count == 1:  # of several, the others may not be ready
        raise UserError(f"none of the {len(videos)} videos of video_list could be encoded")
    log.info("%d clips encoded, %d videos left out; %s has %d", encoded, left_out, folder, total)
    return total


def encode(
    pipeline: Cascade, video: torch.Tensor, condition: str = "own"
) -> dict[str, torch.Tensor]:
    """(1, 3, F, H, W) -> what LatentBatch holds of one clip: (C, F, h, w) by name.

    condition: "own" is what the clip itself gives; "enlarged" and "stretched": see Segments.
    """
    preview = None
    if condition == "stretched":
        pieces = stretched_pieces(pipeline, [video[:, :, ::FACTOR]], FACTOR)
        semantic, preview = (torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True))
        video = video[:, :, : semantic.shape[2]]  # nothing is known of what comes later
    else:
        if condition == "enlarged":
            preview = enlarge(reduce(video, FACTOR), FACTOR)  # as Upscaler does
        semantic = pipeline.encode(video if preview is None else preview)
    tensors = {
        "target": pipeline.encode_vae(video),
        "semantic": semantic,
        "base": pipeline.base(semantic, preview),
    }
    return {name: tensor[0] for name, tensor in tensors.items() if tensor is not None}


def made_with(
    config: Mapping[str, Any], weights: str | Path | None, what: Segments, pipeline: Cascade
) -> dict[str, str]:
    """All that latents depend on but the videos.

    (And but for the device: in one number format devices differ by what float16 rounds away.)
    """
    paths = weights_of(config, weights)
    networks = json.dumps([config[name] for name in AUTOENCODERS], sort_keys=True)
    has_base = config.get("conditioning", {}).get("residual_std") is not None
    return {
        "model_id": str(config["model_id"]),
        "networks": hashlib.sha256(networks.encode()).hexdigest()[:16],
        "latents of previews": str(has_base),
        "--dtype": number_format(pipeline),
        **{f"weights of {name}": weights_files_digest(paths[name]) for name in AUTOENCODERS},
        **{f"--{key.replace('_', '-')}": json.dumps(value) for key, value in asdict(what).items()},
    }


def number_format(pipeline: Cascade) -> str:
    """What the networks computed in, as --dtype has it."""
    uses_tf32 = pipeline.device.type == "cuda" and pipeline.compute.tf32
    rounded = pipeline.dtype == torch.float32 and uses_tf32
    return DTYPE_NAMES[pipeline.dtype] + " with cascade.compute.tf32" * rounded


def weights_files_digest(weights: Path) -> str:
    """Of a file's content, or of all safetensors in a folder."""
    digest = hashlib.sha256()
    for path in sorted(weights.glob("*.safetensors")) if weights.is_dir() else [weights]:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:16]
