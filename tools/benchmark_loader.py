"""Frames per second of our clip reading and of OpenCV with a seek per frame, in one run.

python tools/benchmark_loader.py VIDEO ... (default: the example; needs opencv-python-headless)
"""

import argparse

from diffusion.app.options import whole_number
from diffusion.utils.cli import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    count = whole_number(1)
    parser.add_argument("videos", nargs="*", help="videos, folders or lists of them")
    parser.add_argument("--strides", type=count, nargs="+", default=[1, 4])
    parser.add_argument("--num-frames", type=count, default=8, help="frames per clip")
    parser.add_argument("--clips", type=count, default=8, help="per video and stride")
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from rich.console import Console
    from rich.table import Table

    from diffusion.app.benchmarking.loader_speed import benchmark_loaders, geometric_mean_ratio
    from diffusion.data.video_list import list_videos

    results = benchmark_loaders(
        list_videos(args.videos or ["example"]),
        strides=args.strides,
        num_frames=args.num_frames,
        num_clips=args.clips,
    )
    table = Table("video", "stride", "ours, frames/s", "OpenCV, frames/s", "ratio")
    for result in results:
        rates = (f"{rate:.1f}" for rate in (result.ours, result.opencv, result.ratio))
        table.add_row(result.video, str(result.stride), *rates)
    Console().print(table)
    print(f"ratio: {geometric_mean_ratio(results):.1f} (geometric mean)")


if __name__ == "__main__":
    run_command(main, build_parser())
