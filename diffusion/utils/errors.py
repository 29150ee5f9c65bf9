"""Errors that a user can cause; each message is one line that names the thing and the remedy."""

import os


def on_one_line(text: object) -> str:
    """What it says, without line breaks and double spaces."""
    return " ".join(str(text).split())


class UserError(ValueError):
    """Shown by the commands as one line on stderr, with exit code 2 and no traceback."""


class ConfigError(UserError):
    """A config file, a key or a value in it."""


class WeightsError(UserError):
    """Weights that are missing, unreadable or of another shape."""


class VideoError(UserError):
    """A video file that cannot be used; `path` is the file."""

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{path}: {problem}")
        self.path = path
