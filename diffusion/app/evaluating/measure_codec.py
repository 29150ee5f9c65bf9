"""Measuring one codec on one video: what is written into the folder of an evaluation."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.data.video.clip import Clip
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.codecs.codecs_by_name import Codec, CodecOptions
from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.protocol import Protocol
from diffusion.evaluation.report.results import ORIGINAL, Measurements, file_name, value_of
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.files import make_folder
from diffusion.utils.measuring import peak_memory_mb, reset_peak_memory, timed

WARM_UP_FRAMES = 4


def keep_originals(
    measurements: Measurements, videos: Mapping[str, Path], protocol: Protocol
) -> dict[str, Path]:
    """Write what each video is compared with; the videos that can be read.

    A video that could not be read is tried again by the next run.
    """
    good = {}
    for name, path in videos.items():
        source = {"path": str(path.resolve()), "bytes": size_of(path)}
        known = measurements.read(ORIGINAL, name)
        if known is not None and "video" in known:
            if known["source"] != source:
                raise UserError(
                    f"{path}: is not the video {name!r} that was measured before; choose another "
                    "--output"
                )
            good[name] = path
            continue
        try:
            clip = protocol.read(path)
        except VideoError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            measurements.write(ORIGINAL, name, {"bad": str(error)})
            continue
        video = write_video(measurements.folder, ORIGINAL, name, clip)
        measurements.write(ORIGINAL, name, {"video": video, "source": source})
        good[name] = path
    return good


def size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def write_video(folder: Path, model: str, name: str, clip: Clip) -> str:
    """Its path within the folder."""
    relative = Path("videos") / file_name(model) / f"{file_name(name)}.mp4"
    make_folder((folder / relative).parent)
    with VideoWriter(folder / relative, clip.fps) as writer:
        writer.write(clip.video)
    return relative.as_posix()


def is_measured(record: Mapping[str, Any] | None, metrics: Mapping[str, Metric]) -> bool:
    """Whether the record has all metrics that can be had by now."""
    return record is not None and ("failed" in record or metrics.keys() <= record["metrics"].keys())


def measure_or_say_why(
    codec: Codec,
    clip: Clip,
    name: str,
    metrics: Mapping[str, Metric],
    folder: Path,
    options: CodecOptions,
) -> dict[str, Any]:
    """A codec may refuse a video, for its size for example."""
    try:
        return measure(codec, clip, name, metrics, folder, options)
    except VideoError:  # the reconstruction cannot be written
        raise
    except UserError as error:
        tqdm.write(f"left out: {codec.name} on {name}: {error}", file=sys.stderr)
        return {"failed": str(error)}


def measure(
    codec: Codec,
    clip: Clip,
    name: str,
    metrics: Mapping[str, Metric],
    folder: Path,
    options: CodecOptions,
) -> dict[str, Any]:
    """One entry of `videos` in results.json."""
    reset_peak_memory(options.device)
    seconds: dict[str, float] = {}
    with timed(seconds, "encode", options.device):
        encoded = codec.encode(clip.video[None])
    with timed(seconds, "decode", options.device):
        reconstruction = codec.decode(encoded)[0]
    peak = peak_memory_mb(options.device)
    _, frames, height, width = clip.video.shape
    return {
        "frames": frames,
        "height": height,
        "width": width,
        "fps": float(clip.fps),
        "metrics": {
            metric.name: measure_metric(metric, reconstruction, clip.video, options.device)
            for metric in metrics.values()
        },
        "seconds": seconds,
        "peak_memory_mb": peak,
        "bits": encoded.bits,
        "reconstruction": write_video(folder, codec.name, name, Clip(reconstruction, clip.fps)),
    }


def measure_metric(
    metric: Metric, reconstruction: Tensor, original: Tensor, device: torch.device
) -> dict[str, Any]:
    """`mean` is None for a video that it cannot measure, and where only all videos have a value."""
    unfit = metric.unfit(*original.shape[1:])
    if unfit is not None:
        return {"mean": None, "per_frame": [], "unfit": unfit}
    values = metric(reconstruction.to(device), original.to(device)).cpu()
    if not metric.per_frame:
        return {"mean": None, "per_frame": [], "values": values.tolist()}
    return value_of(values)


def warm_up(codec: Codec, clip: Clip) -> None:
    """Libraries choose their kernels at the first call, which would count as the first video's."""
    codec.decode(codec.encode(clip.video[None, :, :WARM_UP_FRAMES]))
