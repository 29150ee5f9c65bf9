"""Pictures and videos inside a page, as far as a budget goes."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import VideoError

QUALITY = 92  # of WebP: differences of codecs stay visible, a megapixel takes some 200 kB
MAX_SIDE = 1280  # of a picture in the page


@dataclass
class Budget:
    """Bytes that a page may still take in."""

    left: int

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int

    @property
    def size(self) -> int:
        return len(self.uri)


def inside(folder: Path, name: str | None) -> Path | None:
    """The file, if it is there and lies in the folder: results name files, and may be others'."""
    if not name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def read_pictures(path: Path | None, frames: Sequence[int]) -> list[Picture] | None:
    """The given frames, ascending; None if the file is missing, broken or shorter."""
    if path is None:
        return None
    try:
        with open_video(path) as reader:
            decoded = enumerate(islice(reader.frames(), frames[-1] + 1))
            pictures = [picture(Image.fromarray(image)) for i, image in decoded if i in frames]
    except VideoError:
        return None
    return pictures if len(pictures) == len(frames) else None


def picture(image: Image.Image) -> Picture:
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return Picture(data_uri(buffer.getvalue(), "image/webp"), image.width, image.height)


def video_source(path: Path | None, folder: Path, budget: Budget) -> str | None:
    """What `<video src>` takes: the video itself while the budget lasts, then a relative link."""
    if path is None:
        return None
    if budget.take(path.stat().st_size * 4 // 3):
        return data_uri(path.read_bytes(), "video/mp4")
    return quote(os.fsencode(path.relative_to(folder.resolve()).as_posix()))


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
