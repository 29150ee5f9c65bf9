"""The files of a result: each written by a thread of its own, all with their names at the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion.app.reconstruction.coding import single_frames
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.data.latents import LatentsInfo, LatentsWriter
from diffusion.data.transforms import to_uint8
from diffusion.data.video.video_writer import VideoWriter
from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing, replacing_together
from diffusion.utils.labels import comparison_picture, with_labels


@contextmanager
def result_files(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Name -> where to write it within the block, after which all files have their names.

    After an exception none is left, and older ones stay as they were.
    """
    with replacing_together(folder, names) as partials:
        try:
            yield dict(zip(names, partials, strict=True))
        except UserError as error:
            told = str(error)
            for name, partial in zip(names, partials, strict=True):
                told = told.replace(str(partial), str(folder / name))
            raise UserError(told) from error


def video_file(
    path: Path, fps: float, stages: Stages
) -> Callable[[Iterator[np.ndarray | Tensor]], None]:
    """Writes frames (f, H, W, 3) uint8; for `Overlap.behind`, as all of these."""

    def write(pieces: Iterator[np.ndarray | Tensor]) -> None:
        with stages("write"), VideoWriter(path, fps) as writer:
            for frames in stages.idle(pieces):
                writer.write(frames)

    return write


def latents_file(
    path: Path, shape: Sequence[int], info: LatentsInfo, stages: Stages
) -> Callable[[Iterator[Tensor]], None]:
    """Writes latents (1, C, f, h, w), of `shape` in all."""

    def write(pieces: Iterator[Tensor]) -> None:
        with stages("write"), LatentsWriter(path, shape, info) as writer:
            for latents in stages.idle(pieces):
                writer.write(latents)

    return write


def comparison_files(
    video: Path, picture: Path, names: list[str], fps: float, pictured: int, stages: Stages
) -> Callable[[Iterator[Sequence[np.ndarray]]], None]:
    """Writes the frames of columns, (1, H, W, 3) uint8 each, side by side below their names.

    pictured: which of them becomes the picture too.
    """

    def write(rows: Iterator[Sequence[np.ndarray]]) -> None:
        with stages("write"), VideoWriter(video, fps) as writer:
            for i, row in enumerate(stages.idle(rows)):
                shown = np.concatenate(row, axis=2)
                writer.write(with_labels(shown, names))
                if i == pictured:
                    with replacing(picture) as partial:
                        comparison_picture(shown[0], names).save(partial, format="png")

    return write


def with_pixels(videos: Iterable[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """(3, f, H, W) in [-1, 1] -> single frames (3, 1, H, W), and (1, H, W, 3) uint8 of each."""
    for frame in single_frames(videos):
        yield frame, to_uint8(frame)
