"""Draw the curves of training runs: python tools/plot_training.py WORK_DIR [WORK_DIR ...].

Several runs are laid over each other. A run may be drawn while it goes on.
"""

import argparse
from pathlib import Path

from diffusion.app.training.training_plot import plot_training
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.errors import UserError
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="X.png", help="default: training.png in the first"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    output = args.output or args.work_dirs[0] / "training.png"
    if output.suffix != ".png":
        raise UserError(f"--output {output}: must end in .png")
    if args.output is not None:
        make_folder(output.parent)
    plot_training(args.work_dirs, output)
    print(output)


if __name__ == "__main__":
    run_command(main, build_parser())
