"""Size and length of every video of a training set, read once and kept in a file."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import VideoError
from diffusion.utils.files import file_identity, locked, make_folder, replacing
from diffusion.utils.progress import track

log = logging.getLogger(__name__)

INDEX = "videos.json"
MANY = 200  # videos whose reading takes long enough to be announced


@dataclass(frozen=True)
class VideoFacts:
    """height, width: of upright frames. num_frames: exact. problem: why it cannot be read."""

    height: int = 0
    width: int = 0
    num_frames: int = 0
    problem: str = ""


def index_videos(paths: Sequence[Path], cache_dir: str | Path) -> list[VideoFacts]:
    """The facts of each video; those of files that have not changed come from `cache_dir`.

    What could not be read is tried again every time.

    Several processes share one index: the first reads, the others wait.
    """
    file = make_folder(cache_dir) / INDEX
    keys = [_key(path) for path in paths]
    with locked(file.with_suffix(".lock")):
        known = _load(file)
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
        if missing:
            if len(missing) > MANY:
                log.info("reading the sizes of %d videos", len(missing))
            with ThreadPoolExecutor() as pool:  # FFmpeg lets other threads run
                found = pool.map(read_facts, missing.values())
                known |= dict(zip(track(list(missing)), found, strict=True))
            good = {key: asdict(facts) for key, facts in known.items() if not facts.problem}
            with replacing(file) as partial:
                partial.write_text(json.dumps(good))
    return [known[key] for key in keys]


def read_facts(path: Path) -> VideoFacts:
    try:
        with open_video(path, threads=1) as reader:
            info = reader.info
            return VideoFacts(info.height, info.width, reader.count_frames())
    except VideoError as error:
        return VideoFacts(problem=str(error).removeprefix(f"{path}: "))


def _key(path: Path) -> str:
    """Another file under the same name has another key."""
    try:
        return " ".join(map(str, file_identity(path)))
    except (OSError, ValueError):
        return f"{os.path.abspath(path)} missing"


def _load(file: Path) -> dict[str, VideoFacts]:
    try:
        return {key: VideoFacts(**facts) for key, facts in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError, AttributeError):
        log.warning("%s is damaged and will be made anew", file)
        return {}
