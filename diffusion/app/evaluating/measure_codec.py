"""Measuring one codec on one video: what is written into the folder of an evaluation."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.app.evaluating.evaluation_request import Evaluation
from diffusion.data.transforms import to_uint8
from diffusion.data.video.clip import Clip
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.codecs.codec import Codec
from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.protocol import Protocol
from diffusion.evaluation.report.results import ORIGINAL, Measurements, file_name, value_of
from diffusion.utils.devices import sent
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
        source = source_of(path)
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
            measurements.write(ORIGINAL, name, {"bad": str(error), "source": source})
            continue
        video = write_video(measurements.folder, ORIGINAL, name, to_uint8(clip.video), clip.fps)
        measurements.write(ORIGINAL, name, {"video": video, "source": source})
        good[name] = path
    return good


def source_of(path: Path) -> dict[str, Any]:
    """Tells a video from another one in its place."""
    size = path.stat().st_size if path.is_file() else None
    return {"path": str(path.resolve()), "bytes": size}


def write_video(folder: Path, model: str, name: str, frames: np.ndarray, fps: float) -> str:
    """frames: (F, H, W, 3) uint8. The video's path within the folder."""
    relative = Path("videos") / file_name(model) / f"{file_name(name)}.mp4"
    make_folder((folder / relative).parent)
    with VideoWriter(folder / relative, fps) as writer:
        writer.write(frames)
    return relative.as_posix()


def is_measured(record: Mapping[str, Any] | None, metrics: Mapping[str, Metric]) -> bool:
    """Whether the record has all metrics that can be had by now."""
    return record is not None and ("failed" in record or metrics.keys() <= record["metrics"].keys())


def count_unmeasured(measurements: Measurements, what: Evaluation) -> int:
    """Pairs of a model and a video that no process has measured or found impossible so far."""
    metrics, count = what.usable_metrics(), 0
    for name, path in what.videos.items():
        original = measurements.read(ORIGINAL, name)
        if original is not None and "bad" in original:
            is_mended = original.get("source") != source_of(path)
            count += is_mended * len(what.models)
        else:
            records = [measurements.read(model, name) for model in what.models]
            count += sum(not is_measured(record, metrics) for record in records)
    return count


@dataclass(frozen=True)
class Measured:
    """frames: the reconstruction (F, H, W, 3) uint8; None of a video that the codec refused."""

    model: str
    video: str
    record: dict[str, Any]
    frames: np.ndarray | None = None
    fps: float = 0.0


def keep_measured(item: Measured, measurements: Measurements) -> None:
    """Write the reconstruction, then the record that names it."""
    record = item.record
    if item.frames is not None:
        place = (measurements.folder, item.model, item.video)
        record = {**record, "reconstruction": write_video(*place, item.frames, item.fps)}
    measurements.write(item.model, item.video, record)


class CodecMeasurer:
    """Measures one codec, video by video. All is on `device` until only pictures are left."""

    def __init__(self, codec: Codec, metrics: Mapping[str, Metric], device: torch.device):
        self.codec, self.metrics, self.device = codec, metrics, device
        self._warm_sizes: set[tuple[int, ...]] = set()

    def __call__(self, name: str, clip: Clip) -> Measured:
        """A codec may refuse a video, for its size for example."""
        video = sent(clip.video, self.device)
        try:
            self._warm_up(video)
            record, frames = self._measure(video)
        except UserError as error:
            tqdm.write(f"left out: {self.codec.name} on {name}: {error}", file=sys.stderr)
            return Measured(self.codec.name, name, {"failed": str(error)})
        record = {"fps": float(clip.fps), **record}
        return Measured(self.codec.name, name, record, frames, clip.fps)

    def _warm_up(self, video: Tensor) -> None:
        """A GPU's libraries choose their kernels at the first call with frames of a size."""
        size = tuple(video.shape[2:])
        if self.device.type != "cuda" or size in self._warm_sizes:
            return
        self.codec.decode(self.codec.encode(video[None, :, :WARM_UP_FRAMES]))
        self._warm_sizes.add(size)

    def _measure(self, video: Tensor) -> tuple[dict[str, Any], np.ndarray]:
        """(3, F, H, W) -> one entry of `videos` in results.json, and (F, H, W, 3) uint8."""
        reset_peak_memory(self.device)
        seconds: dict[str, float] = {}
        with timed(seconds, "encode", self.device):
            encoded = self.codec.encode(video[None])
        with timed(seconds, "decode", self.device):
            reconstruction = self.codec.decode(encoded)[0]
        peak = peak_memory_mb(self.device)
        reconstruction = sent(reconstruction, self.device)  # some codecs know no GPU
        _, frames, height, width = video.shape
        record = {
            "frames": frames,
            "height": height,
            "width": width,
            "metrics": {
                metric.name: measure_metric(metric, reconstruction, video)
                for metric in self.metrics.values()
            },
            "seconds": seconds,
            "peak_memory_mb": peak,
            "bits": encoded.bits,
        }
        return record, to_uint8(reconstruction)


def measure_metric(metric: Metric, reconstruction: Tensor, original: Tensor) -> dict[str, Any]:
    """`mean` is None for a video that it cannot measure, and where only all videos have a value."""
    unfit = metric.unfit(*original.shape[1:])
    if unfit is not None:
        return {"mean": None, "per_frame": [], "unfit": unfit}
    values = metric(reconstruction, original).cpu()
    if not metric.per_frame:
        return {"mean": None, "per_frame": [], "values": values.tolist()}
    return value_of(values)
