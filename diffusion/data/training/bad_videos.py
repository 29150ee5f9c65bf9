"""Videos that cannot be used: named once, listed, and tolerated up to a share."""

import fcntl
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion.utils.errors import UserError, VideoError, on_one_line
from diffusion.utils.files import make_folder

log = logging.getLogger(__name__)


class BadVideos:
    """The videos of a training set that cannot be used.

    paths: all videos of the set.
    file: where the bad ones are listed, `path<TAB>problem` per line, by all processes of a training
        together; what an earlier run listed stays and counts. None keeps them to this process.
    max_share: above this share of bad ones, `add` refuses to go on.
    """

    def __init__(self, paths: Sequence[Path], file: Path | None, max_share: float):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_bad_share is {max_share}, but must be between 0 and 1")
        self.file, self.max_share = file, max_share
        self._all = {on_one_line(path) for path in paths}
        self._bad: set[str] = set()

    def add_all(self, failed: Mapping[Path, VideoError]) -> None:
        """Note what was found before the first step, and say how many they are.

        UserError if there are too many, or if they are all.
        """
        if failed and len(failed) == len(self._all):
            raise UserError(
                f"none of the {len(failed)} videos of video_list can be used; the first: "
                f"{next(iter(failed.values()))}"
            )
        for path, error in failed.items():
            self.add(path, error)
        if failed:
            where = f"; {self.file} says why" if self.file else ""
            log.info("%d of %d videos are left out%s", len(failed), len(self._all), where)

    def add(self, path: Path, error: VideoError) -> None:
        """Note the video, if it is not known. UserError if there are too many by now."""
        name, problem = on_one_line(path), on_one_line(error)
        if name in self._bad:
            return
        line = f"{name}\t{problem}\n"
        listed = set() if self.file is None else append_line(self.file, name, line)
        self._bad |= {name} | (listed & self._all)
        if name not in listed:
            log.warning("left out: %s", problem)
        if len(self._bad) > self.max_share * len(self._all):
            where = f"; {self.file} lists them, delete it when they are mended" if self.file else ""
            raise UserError(
                f"{len(self._bad)} of {len(self._all)} videos cannot be used, more than the share "
                f"max_bad_share={self.max_share:g}; the last one: {problem}{where}"
            )


def append_line(path: Path, name: str, line: str) -> set[str]:
    """Add the line unless the video is listed; the videos that were listed."""
    make_folder(path.parent)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        old = file.read()
        listed = {entry.partition("\t")[0] for entry in old.splitlines()}
        if name not in listed:
            torn = old and not old.endswith("\n")
            file.write("\n" * bool(torn) + line)
        return listed
