"""Small video files for tests, made with PyAV."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from diffusion.data.video.rgb import EXACT


def moving_frames(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(F, H, W, 3) uint8: a smooth texture that moves, every frame different from all others."""
    generator = np.random.default_rng(seed)
    phases = generator.uniform(0, 2 * np.pi, (3, 3))
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(num_frames):
        waves = [
            np.sin(x / 5 + p + index / 3) + np.cos(y / 7 + q - index / 5) + np.sin((x + y) / 9 + r)
            for p, q, r in phases
        ]
        frames.append(127.5 + 40 * np.stack(waves, axis=-1))
    return np.asarray(frames).clip(0, 255).round().astype(np.uint8)


def flat_frames(num_frames: int, color: tuple[int, int, int], height=48, width=64) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (num_frames, height, width, 3)).copy()


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int | Fraction = 25,
    times_ms: list[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    matrix: int | None = None,
    tag: int | None = None,
    full_range: bool = False,
) -> Path:
    """matrix: swscale's number, used for the conversion; tag: H.273 number, written to the file."""
    _, height, width, _ = frames.shape
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if tag is not None:
            stream.codec_context.colorspace = tag
            stream.codec_context.color_range = 2 if full_range else 1
        for index, image in enumerate(frames):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(
                format=pix_fmt,
                dst_colorspace=matrix,
                dst_color_range=None if matrix is None else 2 if full_range else 1,
                interpolation=EXACT,
            )
            frame.pts = index if times_ms is None else times_ms[index]
            frame.time_base = 1 / Fraction(rate) if times_ms is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Overwrite the rotation in an mp4's track header: (x, y) -> (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
