"""Labelled comparisons, to be looked at."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_HEIGHT = 28
ZOOM = 3


def label_strip(names: list[str], width: int) -> np.ndarray:
    """(LABEL_HEIGHT, width * len(names), 3) uint8: one name centred above each column."""
    strip = Image.new("RGB", (width * len(names), LABEL_HEIGHT), "black")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=min(18, max(9, width // 12)))
    for i, name in enumerate(names):
        position = (width * (i + 0.5), LABEL_HEIGHT / 2)
        draw.text(position, name, fill="white", font=font, anchor="mm")
    return np.asarray(strip)


def side_by_side(videos: Mapping[str, np.ndarray]) -> np.ndarray:
    """name -> (F, H, W, 3) uint8, all of one size -> (F, LABEL_HEIGHT + H, W * n, 3)."""
    frames = np.concatenate(list(videos.values()), axis=2)
    columns = next(iter(videos.values())).shape[2]
    strip = label_strip(list(videos), columns)
    return np.concatenate([np.broadcast_to(strip, (len(frames), *strip.shape)), frames], axis=1)


def comparison_picture(videos: Mapping[str, np.ndarray], frame: int) -> Image.Image:
    """One frame of each side by side, and below it the most detailed part, enlarged ZOOM times."""
    frames = {name: video[frame] for name, video in videos.items()}
    original = next(iter(frames.values()))
    top, left, height, width = most_detailed(original)
    enlarged = [
        np.asarray(
            Image.fromarray(picture[top : top + height, left : left + width]).resize(
                (original.shape[1], original.shape[0]), Image.Resampling.NEAREST
            )
        )
        for picture in frames.values()
    ]
    whole = side_by_side({name: picture[None] for name, picture in frames.items()})[0]
    return Image.fromarray(np.concatenate([whole, np.concatenate(enlarged, axis=1)], axis=0))


def most_detailed(picture: np.ndarray) -> tuple[int, int, int, int]:
    """(H, W, 3) -> (top, left, height, width) of the 1/ZOOM sized part with the most gradient."""
    grey = picture.astype(np.float32).mean(2)
    height, width = (max(1, side // ZOOM) for side in grey.shape)
    gradient = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(
        np.diff(grey, axis=1, append=grey[:, -1:])
    )
    corners = [
        (top, left)
        for top in range(0, grey.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, grey.shape[1] - width + 1, max(1, width // 2))
    ]
    top, left = max(
        corners, key=lambda c: gradient[c[0] : c[0] + height, c[1] : c[1] + width].sum()
    )
    return top, left, height, width
