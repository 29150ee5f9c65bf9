"""Videos made larger or smoother, beside what plain filters make of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.app.reconstruction.clip_source import ClipSource, every_nth
from diffusion.app.reconstruction.reconstruction import CHUNK, decode_pieces, single_frames
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.reconstruction.unfinished import UnfinishedRun
from diffusion.data.transforms import side_by_side, to_uint8
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.pipelines.cascade import CascadePipeline
from diffusion.pipelines.interpolation import repeat, stretch, stretched_length, stretched_pieces
from diffusion.pipelines.upscaling import Upscaler, enlarge, reduce
from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing
from diffusion.utils.labels import comparison_picture, with_labels
from diffusion.utils.measuring import peak_memory_mb

OUTPUTS = ("result.mp4", "compare.mp4", "compare.png", "metrics.json")
ORIGINAL, RESULT = "original", "cascade"


def upscale(
    pipeline: CascadePipeline,
    clip: ClipSource,
    folder: Path,
    run: UnfinishedRun,
    *,
    scale: int,
    condition: str,
    from_original: bool,
    **sampling: Any,
) -> dict[str, Any]:
    """The clip with `scale` times the height and width, beside a bicubic enlargement.

    from_original: reduce the clip first, and measure both results against it.
    """
    stages, upscaler = Stages(), Upscaler(pipeline, scale, condition)
    height, width = clip.height, clip.width
    if from_original:
        height, width = height // scale, width // scale
    size = (scale * height, scale * width)

    def originals() -> Iterator[Tensor]:
        for video in clip.chunks(CHUNK):
            yield video[None, ..., : size[0], : size[1]]

    def small() -> Iterator[Tensor]:
        for video in stages.each("read", clip.chunks(CHUNK)):
            video = video[None]
            yield reduce(video[..., : size[0], : size[1]], scale) if from_original else video

    pieces = stages.each("encode", upscaler.pieces(small()))
    videos = decode_pieces(
        upscaler.pipeline, pieces, size, clip.num_frames, run, stages, **sampling
    )
    columns = {ORIGINAL: originals()} if from_original else {}
    columns["bicubic"] = (enlarge(video, scale) for video in small())
    columns[RESULT] = (video[..., : size[0], : size[1]].cpu() for video in videos)
    return compare(columns, clip.num_frames, clip.fps, folder) | described(pipeline, stages)


def interpolate(
    pipeline: CascadePipeline,
    clip: ClipSource,
    folder: Path,
    run: UnfinishedRun,
    *,
    factor: int,
    from_original: bool,
    **sampling: Any,
) -> dict[str, Any]:
    """The clip with factor - 1 new frames between any two, beside repeated and blended frames.

    from_original: take every `factor`th frame first, and measure the new frames of all three.
    """
    stages, size, original = Stages(), (clip.height, clip.width), clip
    clip = every_nth(clip, factor) if from_original else clip
    if clip.num_frames < 2:
        raise UserError(
            f"{clip.path}: one frame has nothing to interpolate to; give a video, or a folder of "
            f"numbered pictures, of at least {factor + 1 if from_original else 2} frames"
        )
    num_frames = stretched_length(clip.num_frames, factor)

    def videos() -> Iterator[Tensor]:
        return (video[None] for video in stages.each("read", clip.chunks(CHUNK)))

    pieces = stages.each("encode", stretched_pieces(pipeline, videos(), factor))
    restored = decode_pieces(pipeline, pieces, size, num_frames, run, stages, **sampling)
    columns = {ORIGINAL: (v[None] for v in original.chunks(CHUNK))} if from_original else {}
    columns |= {"repeated": repeat(videos(), factor), "blended": stretch(videos(), factor)}
    columns[RESULT] = (video[..., : size[0], : size[1]].cpu() for video in restored)
    measured = compare(columns, num_frames, factor * clip.fps, folder, every=factor)
    return measured | described(pipeline, stages)


KINDS = {"upscale": upscale, "interpolate": interpolate}


def described(pipeline: CascadePipeline, stages: Stages) -> dict[str, Any]:
    return {"seconds": stages.seconds, "peak_memory_mb": peak_memory_mb(pipeline.device)}


def compare(
    columns: dict[str, Iterator[Tensor]],
    num_frames: int,
    fps: float,
    folder: Path,
    every: int = 1,
) -> dict[str, Any]:
    """Write RESULT as a video, and all columns beside one another; measure what can be.

    columns: name -> videos (1, 3, f, H, W) of any number of frames each.
    every: each of so many frames was given, and the others are new; 1: all are new.
    """
    new = [i for i in range(num_frames) if every == 1 or i % every] or [0]
    pictured = new[len(new) // 2]
    names, sums = list(columns), dict[str, float]()
    frames = (single_frames(video[0] for video in videos) for videos in columns.values())
    height = width = 0
    with (
        VideoWriter(folder / "result.mp4", fps) as result,
        VideoWriter(folder / "compare.mp4", fps) as comparison,
    ):
        for i, row in enumerate(zip(*frames, strict=False)):  # an original may go on
            height, width = row[-1].shape[-2:]
            result.write(row[-1])
            shown = to_uint8(side_by_side(row))
            comparison.write(with_labels(shown, names))
            if i == pictured:
                with replacing(folder / "compare.png") as partial:
                    comparison_picture(shown[0], names).save(partial, format="png")
            if i in new:
                _measure(names, row, sums)
    measured = {name: total / len(new) for name, total in sums.items()}
    return {**measured, "frames": num_frames, "height": height, "width": width, "fps": fps}


def summary(metrics: dict[str, Any]) -> str:
    """A line for the size, and one for each column that was measured."""
    lines = [f"{metrics['frames']} frames of {metrics['width']}x{metrics['height']}"]
    for key, value in metrics.items():
        if key.endswith("_psnr"):
            name = key.removesuffix("_psnr")
            lines.append(f"  {name:9} {value:.2f} dB, SSIM {metrics[f'{name}_ssim']:.3f}")
    return "\n".join(lines)


def _measure(names: Sequence[str], row: Sequence[Tensor], sums: dict[str, float]) -> None:
    """Against the original, if there is one; values on [0, 255] colours that are not rounded."""
    if names[0] != ORIGINAL:
        return
    for name, frame in zip(names[1:], row[1:], strict=True):
        for metric, measure in (("psnr", psnr), ("ssim", ssim)):
            key = f"{name}_{metric}"
            sums[key] = sums.get(key, 0.0) + measure(frame, row[0]).item()
