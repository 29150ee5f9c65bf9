"""What every command does the same way: parse, call, and turn a user's mistake into one line."""

import argparse
import errno
import logging
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from diffusion.utils.allocator import keep_freed_memory
from diffusion.utils.errors import UserError, on_one_line

USER_ERROR = 2  # exit code of everything that the user can mend
INTERRUPTED = 130  # what shells report for Ctrl-C

OUT_OF_MEMORY = "out of memory: lower --size, or `memory_gb`, `tile` and `vae_tile` in the config"

LOADER_KILLED = (
    "a process that loads data ended, mostly because memory did: lower train.loop.num_workers, or "
    "set it to 0"
)


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {message}; --help lists the options\n")
        sys.exit(USER_ERROR)


def run_command(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
) -> None:
    """Parse `argv` and call `main`; exit with 2 and one line on stderr for a user's mistake.

    `--debug` is added to every command and shows the traceback instead, and the warnings of
    libraries, which speak to programmers.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            if not args.debug:
                warnings.simplefilter("ignore")
            main(args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = one_line(error)
        if args.debug or line is None:
            raise
        sys.stderr.write(f"{parser.prog}: error: {line}\n")
        sys.exit(USER_ERROR)


def one_line(error: Exception) -> str | None:
    """What a user should read about `error`; None if it is a defect of ours."""
    if isinstance(error, UserError):
        return on_one_line(error)
    if (
        isinstance(error, MemoryError)
        # torch's by its name: importing torch takes seconds, for which --help need not wait
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    ):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return LOADER_KILLED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'disk'}: no space left; free some or choose another folder"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None
