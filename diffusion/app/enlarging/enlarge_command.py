"""What tools/upscale.py and tools/interpolate.py share: a video in, a folder of results out."""

import argparse
from pathlib import Path
from typing import Any

from diffusion.app.options import (
    CLIP_HELP,
    add_clip_options,
    add_model_options,
    add_sampling_options,
)
from diffusion.utils.cli import CommandParser
from diffusion.utils.files import make_folder


def enlarging_parser(description: str, kind: str) -> argparse.ArgumentParser:
    """kind: see `enlarge_video`."""
    parser = CommandParser(description=description)
    parser.add_argument("video", help=CLIP_HELP)
    parser.add_argument("--output-dir", help=f"default: outputs/<name of the video>.{kind}")
    add_model_options(parser)
    add_clip_options(parser)
    add_sampling_options(parser)
    return parser


def enlarge_video(args: argparse.Namespace, kind: str, **options: Any) -> str:
    """What was made and measured, for people to read; empty if this process helped another one.

    kind: "upscale" or "interpolate", see KINDS in app/enlarging/enlarge.py.
    """
    # not above: --help need not wait for torch
    from diffusion.app.enlarging.enlarge import OUTPUTS, enlarge_clip, summary
    from diffusion.app.opened_cascade import open_cascade_for_clip

    opened = open_cascade_for_clip(args)
    default = Path("outputs") / f"{opened.source.name}.{kind}"
    folder = make_folder(args.output_dir or default)
    metrics = enlarge_clip(opened, folder, kind, options)
    if metrics is None:
        return ""
    return "\n".join([summary(metrics), *(f"  {folder / output}" for output in OUTPUTS)])
