"""Reading clips: ours, with one seek each, against a loader that seeks for every frame."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffusion.data.training.batch import seeded
from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import UserError, VideoError

Read = Callable[[Path, int, int, int], np.ndarray]
"""path, start, num_frames, stride -> (num_frames, H, W, 3) uint8 RGB"""


@dataclass(frozen=True)
class Result:
    """Frames per second of one video at one stride, by loader."""

    video: str
    stride: int
    ours: float
    opencv: float

    @property
    def ratio(self) -> float:
        return self.ours / self.opencv


def read_ours(path: Path, start: int, num_frames: int, stride: int) -> np.ndarray:
    """As VideoClips reads, but with as many threads as the decoder likes, which OpenCV has too."""
    with open_video(path) as reader:
        return np.stack(list(reader.frames(start, num_frames, stride)))


def opencv_reader() -> Read:
    """The plain way to read a clip with OpenCV: go to each frame, then read it."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "the comparison needs OpenCV; run: pip install opencv-python-headless"
        ) from error

    def read(path: Path, start: int, num_frames: int, stride: int) -> np.ndarray:
        capture = cv2.VideoCapture(str(path))
        frames = []
        for number in range(start, start + num_frames * stride, stride):
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            there, frame = capture.read()
            if not there:
                raise VideoError(path, f"OpenCV cannot read frame {number}")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        capture.release()
        return np.stack(frames)

    return read


def benchmark_loaders(
    videos: Sequence[Path],
    *,
    strides: Sequence[int] = (1, 4),
    num_frames: int = 8,
    num_clips: int = 8,
    seed: int = 0,
) -> list[Result]:
    """Both loaders read the same clips, in turn, so that other load on the machine meets both."""
    loaders = {"ours": read_ours, "opencv": opencv_reader()}
    span = (num_frames - 1) * max(strides) + 1
    lengths = {path: length_of(path, span) for path in videos}
    results = []
    for path in tqdm(videos, "videos"):
        for stride in strides:
            starts = lengths[path] - (num_frames - 1) * stride
            seconds = dict.fromkeys(loaders, 0.0)
            rng = seeded(seed)
            for clip in range(-1, num_clips):
                start = int(rng.integers(starts))
                for name, read in loaders.items():
                    begun = time.perf_counter()
                    read(path, start, num_frames, stride)
                    # the first clip brings the file into memory
                    seconds[name] += (time.perf_counter() - begun) * (clip >= 0)
            rates = {name: num_clips * num_frames / spent for name, spent in seconds.items()}
            results.append(Result(path.name, stride, **rates))
    return results


def length_of(path: Path, least: int) -> int:
    """Its number of frames; VideoError if there are fewer than `least`."""
    with open_video(path) as reader:
        length = reader.count_frames()
    if length < least:
        raise VideoError(path, f"has {length} frames, too few: clips reach over {least}")
    return length


def geometric_mean_ratio(results: Sequence[Result]) -> float:
    return statistics.geometric_mean(result.ratio for result in results)
