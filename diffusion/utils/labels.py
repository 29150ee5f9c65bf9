"""Labelled comparisons, to be looked at."""

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


def with_labels(frames: np.ndarray, names: list[str]) -> np.ndarray:
    """(F, H, n * W, 3) uint8, n columns -> (F, LABEL_HEIGHT + H, n * W, 3), a name above each."""
    strip = label_strip(names, frames.shape[2] // len(names))
    return np.concatenate([np.broadcast_to(strip, (len(frames), *strip.shape)), frames], axis=1)


def comparison_picture(frame: np.ndarray, names: list[str]) -> Image.Image:
    """(H, n * W, 3) uint8, the original first -> labelled, and enlarged below.

    What is enlarged, ZOOM times, is the part of the original with the most detail.
    """
    columns = np.split(frame, len(names), axis=1)
    top, left, height, width = most_detailed(columns[0])
    size = (columns[0].shape[1], columns[0].shape[0])
    enlarged = [
        np.asarray(
            Image.fromarray(column[top : top + height, left : left + width]).resize(
                size, Image.Resampling.NEAREST
            )
        )
        for column in columns
    ]
    rows = [with_labels(frame[None], names)[0], np.concatenate(enlarged, axis=1)]
    return Image.fromarray(np.concatenate(rows, axis=0))


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
