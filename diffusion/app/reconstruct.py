"""A video file through the whole cascade, with everything a user wants to see of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.app.pictures import comparison_picture, side_by_side
from diffusion.app.stages import Stages, peak_memory_mb
from diffusion.data.latents import LatentsInfo, save_latents
from diffusion.data.transforms import crop_square, resize, resize_short_edge, to_uint8
from diffusion.data.video_io import Clip, VideoReader, VideoWriter, read_video
from diffusion.evaluation.metrics import psnr, ssim
from diffusion.pipelines.cascade import CascadePipeline
from diffusion.registry import call_with
from diffusion.utils.errors import UserError


@dataclass(frozen=True)
class ClipOptions:
    """Which part of a video, at which size.

    num_frames: None is all there are from `start`, but no more than `max_frames`.
    size: short edge in pixels; None keeps the video's, but no more than `max_short_edge`.
    """

    start: int = 0
    num_frames: int | None = None
    frame_stride: int = 1
    size: int | None = None
    square: bool = False
    max_frames: int | None = None
    max_short_edge: int | None = None


@dataclass(frozen=True)
class Reconstruction:
    """videos: all (3, F, H, W) in [-1, 1], of the input's size; latents (1, C, F, h, w)."""

    original: Tensor
    preview: Tensor
    restored: Tensor
    latents: Tensor
    fps: float


def clip_options(config: Mapping[str, Any], **given: Any) -> ClipOptions:
    """Options of the command line, where not None, over those of the config's `reconstruct`."""
    defaults = dict(config.get("reconstruct", {}))
    named = {
        "max_frames": defaults.pop("num_frames", None),
        "max_short_edge": defaults.pop("max_short_edge", None),
    }
    call_with(ClipOptions, defaults, "reconstruct")  # refuses what is left
    if given.get("num_frames") == "all":
        given["num_frames"], named["max_frames"] = None, None
    return ClipOptions(**named, **{key: v for key, v in given.items() if v is not None})


def read_clip(path: str | Path, options: ClipOptions) -> Clip:
    """The clip as the cascade gets it. Raises VideoError, or UserError for impossible options."""
    if options.size is not None and not 16 <= options.size <= 8192:
        raise UserError(f"--size {options.size} must lie between 16 and 8192 pixels")
    num_frames = options.num_frames
    if num_frames is None and options.max_frames is not None:
        with VideoReader(path) as reader:
            left = math.ceil((reader.count_frames() - options.start) / options.frame_stride)
        num_frames = max(1, min(left, options.max_frames))
    clip = read_video(
        path, start=options.start, num_frames=num_frames, frame_stride=options.frame_stride
    )
    video = crop_square(clip.video) if options.square else clip.video
    short_edge = min(video.shape[-2:])
    size = options.size or min(short_edge, options.max_short_edge or short_edge)
    return Clip(video if size == short_edge else resize_short_edge(video, size), clip.fps)


def encode_clip(pipeline: CascadePipeline, clip: Clip, model: str) -> tuple[Tensor, LatentsInfo]:
    """(3, F, H, W) -> semantic latents (1, C, F, h, w), and what decoding them needs to know."""
    latents = pipeline.encode(clip.video[None])
    height, width = clip.video.shape[-2:]
    step = pipeline.compressor.spatial_compression
    padding = (latents.shape[-2] * step - height, latents.shape[-1] * step - width)
    return latents, LatentsInfo(model, clip.fps, height, width, (0, 0, height, width), padding)


def without_padding(video: Tensor, info: LatentsInfo) -> Tensor:
    """(1, 3, F, H', W') as decoded -> (3, F, H, W) as encoded."""
    height, width = video.shape[-2] - info.padding[0], video.shape[-1] - info.padding[1]
    return video[0, ..., :height, :width]


def full_size_preview(pipeline: CascadePipeline, preview: Tensor, info: LatentsInfo) -> Tensor:
    """(1, 3, F, H', W') of the previewer, enlarged where it is smaller than the video."""
    factor = pipeline.compressor.spatial_compression // pipeline.previewer.upscaling
    height, width = (factor * side for side in preview.shape[-2:])
    return without_padding(resize(preview[0], height, width)[None], info).cpu()


def reconstruct(
    pipeline: CascadePipeline,
    clip: Clip,
    model: str,
    stages: Stages,
    *,
    latents_path: Path,
    steps: int,
    sampler: str,
    seed: int,
) -> Reconstruction:
    """Encode, store the latents, and decode what the file holds: float16, as anyone would."""
    with stages("encode"):
        latents, info = encode_clip(pipeline, clip, model)
        latents = latents.half().float()
    with stages("write"):
        save_latents(latents_path, latents, info)
    with stages("preview"):
        preview = pipeline.preview(latents)
    with stages("denoise"):
        vae_latents = pipeline.restore(
            latents, steps=steps, sampler=sampler, seed=seed, preview=preview
        )
    with stages("decode"):
        restored = without_padding(pipeline.decode_vae(vae_latents), info).cpu()
    shown = full_size_preview(pipeline, preview, info)
    return Reconstruction(clip.video, shown, restored, latents.cpu(), clip.fps)


def write_results(result: Reconstruction, folder: Path) -> None:
    """preview.mp4, recon.mp4, compare.mp4 and compare.png."""
    videos = {
        "original": to_uint8(result.original),
        "without LDM": to_uint8(result.preview),
        "with LDM": to_uint8(result.restored),
    }
    outputs = {
        "preview.mp4": videos["without LDM"],
        "recon.mp4": videos["with LDM"],
        "compare.mp4": side_by_side(videos),
    }
    for name, frames in outputs.items():
        with VideoWriter(folder / name, result.fps) as writer:
            writer.write(frames)
    picture = comparison_picture(videos, len(frames) // 2)
    partial = folder / ".compare.partial"
    picture.save(partial, format="png")
    partial.replace(folder / "compare.png")


def measure(result: Reconstruction, pipeline: CascadePipeline) -> dict[str, Any]:
    """Quality and size; means over frames of values on [0, 255] colours that are not rounded."""
    _, frames, height, width = result.original.shape
    return {
        "psnr": psnr(result.restored, result.original).mean().item(),
        "ssim": ssim(result.restored, result.original).mean().item(),
        "preview_psnr": psnr(result.preview, result.original).mean().item(),
        "preview_ssim": ssim(result.preview, result.original).mean().item(),
        "frames": frames,
        "height": height,
        "width": width,
        "fps": result.fps,
        "latent_shape": list(result.latents.shape),
        "values_ratio": pipeline.compressor.spatial_compression**2,
        "peak_memory_mb": peak_memory_mb(pipeline.device),
    }


def write_json(values: Mapping[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)
