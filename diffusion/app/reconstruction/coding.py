"""The two halves of the cascade, on clips that come piece by piece."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.app.reconstruction.clip_source import ClipSource
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.reconstruction.unfinished import UnfinishedRun
from diffusion.data.latents import LatentsInfo, LatentsReader
from diffusion.data.transforms import resize
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.padding import round_up
from diffusion.utils.devices import sent
from diffusion.utils.errors import UserError
from diffusion.utils.overlap import Overlap

CHUNK = 8  # frames that are read and encoded at a time


def latents_info(
    pipeline: Cascade, clip: ClipSource, model: str
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


def check_latents(reader: LatentsReader, pipeline: Cascade) -> None:
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


def full_size_preview(pipeline: Cascade, preview: Tensor, info: LatentsInfo) -> Tensor:
    """(1, 3, F, H', W') of the previewer, enlarged where it is smaller than the video."""
    factor = pipeline.compressor.spatial_compression // pipeline.previewer.upscaling
    height, width = (factor * side for side in preview.shape[-2:])
    return without_padding(resize(preview[0], height, width)[None], info)


def encode_chunks(
    pipeline: Cascade, clip: ClipSource, stages: Stages, overlap: Overlap
) -> Iterator[tuple[Tensor, Tensor]]:
    """Videos (3, f, H, W), and their semantic latents (1, C, f, h, w) as a latents file has them.

    Always cut alike, so that the result does not depend on how the file is read.
    """
    for video in overlap.ahead(stages.each("read", clip.chunks(CHUNK))):
        with stages("encode"):
            video = sent(video, pipeline.device)
            latents = pipeline.encode(video[None]).half().float()
        yield video, latents


def decode_pieces(
    pipeline: Cascade,
    pieces: Iterable[tuple[Tensor, Tensor | None]],
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
    restored = stages.each("write", run.keep(stages.each("denoise", restored)))
    return stages.each("decode", pipeline.decode_vae_stream(restored, num_frames))


def single_frames(videos: Iterable[Tensor]) -> Iterator[Tensor]:
    """(C, f, H, W) of any number of frames -> (C, 1, H, W)."""
    for video in videos:
        yield from (video[:, i : i + 1] for i in range(video.shape[1]))
