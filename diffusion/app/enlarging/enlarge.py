"""Videos made larger or smoother, beside what plain filters make of them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.app.opened_cascade import OpenedCascade
from diffusion.app.reconstruction.clip_source import ClipSource, every_nth
from diffusion.app.reconstruction.coding import CHUNK, decode_pieces, single_frames
from diffusion.app.reconstruction.frame_means import FrameMeans
from diffusion.app.reconstruction.result_files import (
    comparison_files,
    result_files,
    video_file,
    with_pixels,
)
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.reconstruction.unfinished import UnfinishedRun
from diffusion.data.transforms import to_uint8
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.interpolation import repeat, stretch, stretched_length, stretched_pieces
from diffusion.pipelines.upscaling import Upscaler, enlarge, reduce
from diffusion.utils.devices import sent
from diffusion.utils.errors import UserError
from diffusion.utils.files import write_json
from diffusion.utils.measuring import peak_memory_mb
from diffusion.utils.overlap import Overlap

OUTPUTS = ("result.mp4", "compare.mp4", "compare.png", "metrics.json")
ORIGINAL, RESULT = "original", "cascade"


@dataclass(frozen=True)
class Enlargement:
    """What the cascade makes a larger or smoother video of, and what that is compared with.

    pieces: condition and preview, for `Cascade.restore_stream` of `pipeline`.
    size: height and width of the result.
    columns: name -> videos (3, f, H, W) of other means, the original first where it is known.
    every: each of so many frames was given, and the others are new; 1: all are new.
    """

    pipeline: Cascade
    pieces: Iterator[tuple[Tensor, Tensor]]
    size: tuple[int, int]
    num_frames: int
    fps: float
    columns: Mapping[str, Iterator[Tensor]]
    every: int = 1

    @property
    def new(self) -> list[int]:
        """Frames that were not given, or the only one."""
        every = self.every
        return [i for i in range(self.num_frames) if every == 1 or i % every] or [0]


def upscaled(
    opened: OpenedCascade[ClipSource],
    overlap: Overlap,
    *,
    scale: int,
    condition: str,
    from_original: bool,
) -> Enlargement:
    """The clip with `scale` times the height and width, beside a bicubic enlargement.

    from_original: reduce the clip first, and measure both results against it.
    """
    clip, stages = opened.source, opened.stages
    upscaler = Upscaler(opened.pipeline, scale, condition)
    height, width = clip.height, clip.width
    if from_original:
        height, width = height // scale, width // scale
    size = (scale * height, scale * width)

    def originals() -> Iterator[Tensor]:
        for video in stages.each("read", clip.chunks(1)):
            yield video[..., : size[0], : size[1]]

    def small(chunk: int) -> Iterator[Tensor]:
        for video in stages.each("read", clip.chunks(chunk)):
            video = video[None]
            yield reduce(video[..., : size[0], : size[1]], scale) if from_original else video

    videos = (sent(video, opened.pipeline.device) for video in overlap.ahead(small(CHUNK)))
    pieces = stages.each("encode", upscaler.pieces(videos))
    columns = {ORIGINAL: originals()} if from_original else {}
    columns["bicubic"] = (enlarge(video, scale)[0] for video in small(1))
    return Enlargement(upscaler.pipeline, pieces, size, clip.num_frames, clip.fps, columns)


def interpolated(
    opened: OpenedCascade[ClipSource], overlap: Overlap, *, factor: int, from_original: bool
) -> Enlargement:
    """The clip with factor - 1 new frames between any two, beside repeated and blended frames.

    from_original: take every `factor`th frame first, and measure the new frames of all three.
    """
    original, stages, pipeline = opened.source, opened.stages, opened.pipeline
    clip = every_nth(original, factor) if from_original else original
    if clip.num_frames < 2:
        raise UserError(
            f"{clip.path}: one frame has nothing to interpolate to; give a video, or a folder of "
            f"numbered pictures, of at least {factor + 1 if from_original else 2} frames"
        )

    def known(chunk: int) -> Iterator[Tensor]:
        return (video[None] for video in stages.each("read", clip.chunks(chunk)))

    videos = (sent(video, pipeline.device) for video in overlap.ahead(known(CHUNK)))
    pieces = stages.each("encode", stretched_pieces(pipeline, videos, factor))
    columns = {ORIGINAL: stages.each("read", original.chunks(1))} if from_original else {}
    columns["repeated"] = (video[0] for video in repeat(known(1), factor))
    columns["blended"] = (video[0] for video in stretch(known(1), factor))
    size, num_frames = (clip.height, clip.width), stretched_length(clip.num_frames, factor)
    fps = factor * clip.fps
    return Enlargement(pipeline, pieces, size, num_frames, fps, columns, every=factor)


KINDS: Mapping[str, Callable[..., Enlargement]] = {
    "upscale": upscaled,
    "interpolate": interpolated,
}


def enlarge_clip(
    opened: OpenedCascade[ClipSource], folder: Path, kind: str, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Write all OUTPUTS -> what is in metrics.json. None if this process helped another one.

    kind: one of KINDS, which takes `options`.
    """
    stages = opened.stages
    with opened.running(folder / ".unfinished", **options) as (is_first, unfinished):
        if not is_first:
            with Overlap(stages.wait) as overlap:
                work = KINDS[kind](opened, overlap, **options)
                deque(restored(work, unfinished, stages, opened.sampling), maxlen=0)
            return None
        with result_files(folder, OUTPUTS) as places:
            with Overlap(stages.wait) as overlap:
                work = KINDS[kind](opened, overlap, **options)
                frames = restored(work, unfinished, stages, opened.sampling)
                means = write_and_measure(work, frames, places, stages, overlap)
            metrics = {
                **means.over(len(work.new)),
                "frames": work.num_frames,
                "height": work.size[0],
                "width": work.size[1],
                "fps": work.fps,
                "seconds": stages.seconds(),
                "peak_memory_mb": peak_memory_mb(opened.pipeline.device),
                **options,
                **opened.sampling,
            }
            write_json(places["metrics.json"], metrics)
    return metrics


def restored(
    work: Enlargement, unfinished: UnfinishedRun, stages: Stages, sampling: Mapping[str, Any]
) -> Iterator[Tensor]:
    """Single frames (3, 1, H, W), where the networks are."""
    height, width = work.size
    videos = decode_pieces(
        *(work.pipeline, work.pieces, work.size, work.num_frames, unfinished, stages), **sampling
    )
    return single_frames(video[0, ..., :height, :width] for video in videos)


def write_and_measure(
    work: Enlargement,
    frames: Iterator[Tensor],
    places: Mapping[str, Path],
    stages: Stages,
    overlap: Overlap,
) -> FrameMeans:
    """Write the frames as a video, and all columns beside one another; measure the new ones.

    Against the original, if it is known; values on [0, 255] colours that are not rounded.
    """
    new, means = work.new, FrameMeans(stages)
    names = [*work.columns, RESULT]
    compared = (places["compare.mp4"], places["compare.png"], names, work.fps)
    result = overlap.behind(video_file(places["result.mp4"], work.fps, stages))
    compare = overlap.behind(comparison_files(*compared, new[len(new) // 2], stages))
    columns = [overlap.ahead(with_pixels(videos), depth=2) for videos in work.columns.values()]
    # the frames first, whose end is the end of all: an original may go on
    for i, (frame, *others) in enumerate(zip(frames, *columns, strict=False)):
        if ORIGINAL in names and i in new:
            original = others[0][0]
            for name, (other, _) in zip(names[1:], others[1:], strict=False):
                means.add(f"{name}_", other, original)
            means.add(f"{RESULT}_", frame, original)
        with stages("write"):
            pixels = to_uint8(frame)
            result(pixels)
            compare([*(shown for _, shown in others), pixels])
    return means


def summary(metrics: Mapping[str, Any]) -> str:
    """A line for the size, and one for each column that was measured."""
    lines = [f"{metrics['frames']} frames of {metrics['width']}x{metrics['height']}"]
    for key, value in metrics.items():
        if key.endswith("_psnr"):
            name = key.removesuffix("_psnr")
            lines.append(f"  {name:9} {value:.2f} dB, SSIM {metrics[f'{name}_ssim']:.3f}")
    return "\n".join(lines)
