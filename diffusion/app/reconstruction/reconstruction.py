"""A clip through the whole cascade in constant memory, with everything a user wants to see."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.app.reconstruction.clip_source import ClipSource
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.reconstruction.unfinished import UnfinishedRun
from diffusion.data.latents import LatentsInfo, LatentsReader, LatentsWriter
from diffusion.data.transforms import resize, side_by_side, to_uint8
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.pipelines.cascade import CascadePipeline
from diffusion.pipelines.padding import round_up
from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing
from diffusion.utils.labels import comparison_picture, with_labels
from diffusion.utils.measuring import peak_memory_mb

CHUNK = 8  # frames that are read and encoded at a time

# What a reconstruction leaves in its folder.
OUTPUTS = (
    "latents.safetensors",
    "preview.mp4",
    "recon.mp4",
    "compare.mp4",
    "compare.png",
    "metrics.json",
)
COLUMNS = ["original", "without LDM", "with LDM"]


def latents_info(
    pipeline: CascadePipeline, clip: ClipSource, model: str
) -> tuple[LatentsInfo, tuple[int, ...]]:
    """What decoding the clip's latents needs to know, and their shape (1, C, F, h, w)."""
    step, sides = pipeline.compressor.spatial_compression, (clip.height, clip.width)
    padded = [round_up(side, step) for side in sides]
    padding = (padded[0] - clip.height, padded[1] - clip.width)
    info = LatentsInfo(model, clip.fps, *sides, (0, 0, *sides), padding)
    channels = pipeline.compressor.latent_channels
    return info, (1, channels, clip.num_frames, *(side // step for side in padded))


def open_latents_of(path: str | Path, config: Mapping[str, Any]) -> LatentsReader:
    """Latents that the config's model can decode; UserError for those of another."""
    reader = LatentsReader(path)
    if reader.info.model != config["model_id"]:
        raise UserError(
            f"{path}: made by {reader.info.model!r}, not by {config['model_id']!r}; pass the "
            "--config that encoded it"
        )
    return reader


def check_latents(reader: LatentsReader, pipeline: CascadePipeline) -> None:
    """Refuse latents, or a header, that do not fit the networks."""
    path, padding = reader.path, reader.info.padding
    channels, step = pipeline.compressor.latent_channels, pipeline.compressor.spatial_compression
    if reader.shape[1] != channels:
        raise UserError(f"{path}: has {reader.shape[1]} channels, the model's have {channels}")
    if any(cut >= step for cut in padding):
        raise UserError(f"{path}: its header is damaged (padding {padding} of at most {step})")


def without_padding(video: Tensor, info: LatentsInfo) -> Tensor:
    """(1, 3, F, H', W') as decoded -> (3, F, H, W) as encoded."""
    height, width = video.shape[-2] - info.padding[0], video.shape[-1] - info.padding[1]
    return video[0, ..., :height, :width]


def full_size_preview(pipeline: CascadePipeline, preview: Tensor, info: LatentsInfo) -> Tensor:
    """(1, 3, F, H', W') of the previewer, enlarged where it is smaller than the video."""
    factor = pipeline.compressor.spatial_compression // pipeline.previewer.upscaling
    height, width = (factor * side for side in preview.shape[-2:])
    return without_padding(resize(preview[0], height, width)[None], info).cpu()


def encode_chunks(pipeline: CascadePipeline, clip: ClipSource, stages: Stages) -> Iterator[tuple]:
    """Videos (3, f, H, W), and their semantic latents (1, C, f, h, w) as a latents file has them.

    Always cut alike, so that the result does not depend on how the file is read.
    """
    for video in stages.each("read", clip.chunks(CHUNK)):
        with stages("encode"):
            latents = pipeline.encode(video[None]).half().float()
        yield video, latents


def decode_pieces(
    pipeline: CascadePipeline,
    pieces: Iterator[tuple[Tensor, Tensor | None]],
    size: tuple[int, int],
    num_frames: int,
    run: UnfinishedRun,
    stages: Stages,
    **sampling: Any,
) -> Iterator[Tensor]:
    """Semantic latents and previews -> frames (1, 3, f, H', W'), while the rest is not there.

    size: height and width of the frames; UserError if they cannot fit into memory.
    """
    pipeline.check_size(*size, sampling["steps"])
    restored = pipeline.restore_stream(pieces, num_frames, finished=run, **sampling)
    restored = run.keep(stages.each("denoise", restored))
    return stages.each("decode", pipeline.decode_vae_stream(restored, num_frames))


class Reconstruction:
    """One clip on its way into its folder: `run` does all of it."""

    def __init__(
        self, pipeline: CascadePipeline, clip: ClipSource, model: str, folder: Path, stages: Stages
    ):
        self.pipeline, self.clip, self.folder, self.stages = pipeline, clip, folder, stages
        self.info, self.latent_shape = latents_info(pipeline, clip, model)
        self.previews: deque[np.ndarray] = deque()  # (H, W, 3) of frames not restored so far
        self.sums: dict[str, float] = {}

    def run(self, unfinished: UnfinishedRun, **sampling: Any) -> dict[str, Any]:
        """Write all OUTPUTS but the metrics -> their means over frames, and the sizes.

        Metrics are of values on [0, 255] colours that are not rounded.
        """
        names = ("preview.mp4", "recon.mp4", "compare.mp4")
        with ExitStack() as files:
            self.latents = files.enter_context(
                LatentsWriter(self.folder / "latents.safetensors", self.latent_shape, self.info)
            )
            self.preview, self.recon, self.compare = (
                files.enter_context(VideoWriter(self.folder / name, self.info.fps))
                for name in names
            )
            self._restore(unfinished, **sampling)
        frames = self.clip.num_frames
        return {
            **{name: total / frames for name, total in self.sums.items()},
            "frames": frames,
            "height": self.clip.height,
            "width": self.clip.width,
            "fps": self.info.fps,
            "latent_shape": list(self.latent_shape),
            "values_ratio": self.pipeline.compressor.spatial_compression**2,
            "peak_memory_mb": peak_memory_mb(self.pipeline.device),
        }

    def _encode(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Semantic latents and preview of the clip's frames; both are written too."""
        for video, latents in encode_chunks(self.pipeline, self.clip, self.stages):
            with self.stages("preview"):
                preview = self.pipeline.preview(latents)
            shown = full_size_preview(self.pipeline, preview, self.info)
            self._measure("preview_", shown, video)
            with self.stages("write"):
                self.latents.write(latents)
                frames = to_uint8(shown)
                self.preview.write(frames)
            self.previews.extend(frames)
            yield latents, preview

    def _restore(self, unfinished: UnfinishedRun, **sampling: Any) -> None:
        stages, num_frames = self.stages, self.clip.num_frames
        size = (self.clip.height, self.clip.width)
        videos = decode_pieces(
            self.pipeline, self._encode(), size, num_frames, unfinished, stages, **sampling
        )
        # The originals are read again: that is cheaper than to hold them until they are compared.
        originals = single_frames(stages.each("read", self.clip.chunks(CHUNK)))
        restored = single_frames(without_padding(video, self.info).cpu() for video in videos)
        for i, (frame, original) in enumerate(zip(restored, originals, strict=True)):
            self._measure("", frame, original)
            with stages("write"):
                self.recon.write(frame)
                preview = torch.from_numpy(self.previews.popleft()) / 127.5 - 1
                shown = [original, preview.permute(2, 0, 1)[:, None], frame]
                columns = to_uint8(side_by_side(shown))
                self.compare.write(with_labels(columns, COLUMNS))
                if i == num_frames // 2:
                    with replacing(self.folder / "compare.png") as partial:
                        comparison_picture(columns[0], COLUMNS).save(partial, format="png")

    def _measure(self, prefix: str, video: Tensor, original: Tensor) -> None:
        with self.stages("measure"):
            for name, metric in (("psnr", psnr), ("ssim", ssim)):
                total = metric(video, original).sum().item()
                self.sums[prefix + name] = self.sums.get(prefix + name, 0.0) + total


def single_frames(videos: Iterator[Tensor]) -> Iterator[Tensor]:
    """(C, f, H, W) of any number of frames -> (C, 1, H, W)."""
    for video in videos:
        yield from video.split(1, dim=1)
