"""One way to open whatever shows frames."""

import os
from pathlib import Path

from diffusion.data.video.frame_reader import FrameReader
from diffusion.data.video.pictures import PictureReader
from diffusion.data.video.video_reader import VideoReader
from diffusion.data.video_list import PICTURE_SUFFIXES


def open_video(path: str | os.PathLike[str], *, threads: int = 0) -> FrameReader:
    """Whatever `list_videos` lists: a video, a picture, or a folder of numbered pictures."""
    if os.path.isdir(path) or Path(path).suffix.lower() in PICTURE_SUFFIXES:
        return PictureReader(path)
    return VideoReader(path, threads=threads)
