"""A clip through the whole cascade, with everything a user wants to see of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.app.stages import Stages, peak_memory_mb
from diffusion.data.latents import LatentsInfo, load_latents, save_latents
from diffusion.data.transforms import resize, side_by_side, to_uint8
from diffusion.data.video_io import Clip, VideoWriter
from diffusion.evaluation.metrics import psnr, ssim
from diffusion.pipelines.cascade import CascadePipeline
from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing
from diffusion.utils.pictures import comparison_picture, with_labels
from diffusion.utils.progress import track

# What a reconstruction leaves in its folder.
OUTPUTS = (
    "latents.safetensors",
    "preview.mp4",
    "recon.mp4",
    "compare.mp4",
    "compare.png",
    "metrics.json",
)


@dataclass(frozen=True)
class Reconstruction:
    """videos: all (3, F, H, W) in [-1, 1], of the input's size; latents (1, C, F, h, w)."""

    original: Tensor
    preview: Tensor
    restored: Tensor
    latents: Tensor
    info: LatentsInfo


def encode_clip(pipeline: CascadePipeline, clip: Clip, model: str) -> tuple[Tensor, LatentsInfo]:
    """(3, F, H, W) -> semantic latents (1, C, F, h, w), and what decoding them needs to know."""
    latents = pipeline.encode(clip.video[None])
    height, width = clip.video.shape[-2:]
    step = pipeline.compressor.spatial_compression
    padding = (latents.shape[-2] * step - height, latents.shape[-1] * step - width)
    return latents, LatentsInfo(model, clip.fps, height, width, (0, 0, height, width), padding)


def load_latents_of(path: str | Path, config: Mapping[str, Any]) -> tuple[Tensor, LatentsInfo]:
    """Latents that the config's model can decode; UserError for those of another."""
    latents, info = load_latents(path)
    if info.model != config["model_id"]:
        raise UserError(
            f"{path}: made by {info.model!r}, not by {config['model_id']!r}; pass the --config "
            "that encoded it"
        )
    return latents, info


def check_latents(
    path: str | Path, latents: Tensor, info: LatentsInfo, pipeline: CascadePipeline
) -> None:
    """Refuse latents, or a header, that do not fit the networks; `path` is named in the error."""
    channels, step = pipeline.compressor.latent_channels, pipeline.compressor.spatial_compression
    if latents.shape[1] != channels:
        raise UserError(f"{path}: has {latents.shape[1]} channels, the model's have {channels}")
    if any(cut >= step for cut in info.padding):
        raise UserError(f"{path}: its header is damaged (padding {info.padding} of at most {step})")


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
    steps: int,
    sampler: str,
    seed: int,
) -> Reconstruction:
    """Encode, and decode what a latents file would hold: float16, as anyone would."""
    with stages("encode"):
        latents, info = encode_clip(pipeline, clip, model)
        latents = latents.half().float()
    with stages("preview"):
        preview = pipeline.preview(latents)
    with stages("denoise"):
        vae_latents = pipeline.restore(
            latents, steps=steps, sampler=sampler, seed=seed, preview=preview
        )
    with stages("decode"):
        restored = without_padding(pipeline.decode_vae(vae_latents), info).cpu()
    shown = full_size_preview(pipeline, preview, info)
    return Reconstruction(clip.video, shown, restored, latents.cpu(), info)


def write_results(result: Reconstruction, folder: Path) -> None:
    """All OUTPUTS but the metrics."""
    save_latents(folder / "latents.safetensors", result.latents, result.info)
    names = ["original", "without LDM", "with LDM"]
    columns = to_uint8(side_by_side([result.original, result.preview, result.restored]))
    outputs = {
        "preview.mp4": to_uint8(result.preview),
        "recon.mp4": to_uint8(result.restored),
        "compare.mp4": with_labels(columns, names),
    }
    for name, frames in outputs.items():
        with VideoWriter(folder / name, result.info.fps) as writer:
            for frame in track(frames):
                writer.write(frame[None])
    picture = comparison_picture(columns[len(columns) // 2], names)
    with replacing(folder / "compare.png") as partial:
        picture.save(partial, format="png")


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
        "fps": result.info.fps,
        "latent_shape": list(result.latents.shape),
        "values_ratio": pipeline.compressor.spatial_compression**2,
        "peak_memory_mb": peak_memory_mb(pipeline.device),
    }


def write_json(values: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")
