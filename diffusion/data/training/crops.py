"""Which part of a frame a clip shows, and the sizes that the clips of a batch may have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from diffusion.data.transforms import as_tensor

Size = tuple[int, int]
"""(height, width)"""

Crop = Literal["random", "center"]


def parse_sizes(size: int | Sequence[int] | Sequence[Sequence[int]], multiple: int) -> list[Size]:
    """What a config's `size` may be: S is S x S; [H, W]; or a list of [H, W], the buckets.

    Buckets should have about equal areas, so that every step costs the same.
    """
    if isinstance(size, int):
        size = [size, size]
    sides = [side for side in size if isinstance(side, int)]
    pairs = [sides] if sides else [pair for pair in size if not isinstance(pair, int)]
    if not pairs:
        raise ValueError("size is empty; give at least one [height, width]")
    return [_parse_size(pair, multiple) for pair in pairs]


def _parse_size(pair: Sequence[int], multiple: int) -> Size:
    if len(pair) != 2 or any(side < multiple or side % multiple for side in pair):
        raise ValueError(f"size {list(pair)} is not [height, width] with multiples of {multiple}")
    height, width = pair
    return height, width


def nearest_size(frame: Size, sizes: Sequence[Size]) -> int:
    """Which of `sizes` has the aspect ratio closest to the frame's."""
    ratios = np.log([height / width for height, width in [frame, *sizes]])
    return int(np.abs(ratios[1:] - ratios[0]).argmin())


@dataclass(frozen=True)
class Window:
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, frames: np.ndarray) -> np.ndarray:
        """(..., H, W, 3) -> (..., height, width, 3)."""
        rows = slice(self.top, self.top + self.height)
        return frames[..., rows, self.left : self.left + self.width, :]


def place_window(frame: Size, size: Size, zoom: float, rng: np.random.Generator | None) -> Window:
    """`zoom` times `size`, or the largest part of the frame with its shape if that is smaller.

    rng: places it at random; None places it in the middle.
    """
    zoom = min(zoom, *(have / want for have, want in zip(frame, size, strict=True)))
    height, width = (
        min(have, max(1, round(want * zoom))) for have, want in zip(frame, size, strict=True)
    )
    spare = (frame[0] - height, frame[1] - width)
    top, left = (n // 2 if rng is None else int(rng.integers(n + 1)) for n in spare)
    return Window(top, left, height, width)


def to_clip(frames: np.ndarray, size: Size, *, flip: bool) -> Tensor:
    """(F, H, W, 3) uint8 of a window -> (3, F, *size) uint8, with antialiasing."""
    piece = rearrange(as_tensor(frames), "f h w c -> f c h w")
    if piece.shape[2:] != size:
        piece = F.interpolate(piece, size, mode="bilinear", antialias=True)
    piece = piece.flip(3) if flip else piece
    return rearrange(piece, "f c h w -> c f h w").contiguous()
