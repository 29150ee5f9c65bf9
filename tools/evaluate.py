"""Measure video autoencoders: python tools/evaluate.py [CONFIG] --videos PATH --output DIR.

Models are measured on the same videos and put into one table and one page. Running again
continues with what is missing. A model is one of

  compact, s1024            the cascades of configs/, or the path of a config
  previewer, vae, linear    of compact, or of another: previewer:CONFIG
  bicubic, h264             bicubic:VALUES_PER_PIXEL, h264:BITS_PER_PIXEL
  diffusers:FOLDER          an autoencoder of diffusers; or its repository's name
  stablecascade             its decoder; or stablecascade:FOLDER
  upscale, interpolate      of a quarter of the sides, of the frames; beside them
                            upscale_compressor, bicubic:3/16, frames:blended, frames:repeated

On several GPUs: --workers N, or torchrun. As published: --protocol inter4k-200 --videos Inter4K
"""

import argparse
import re
from pathlib import Path

from diffusion.app.options import (
    DEFAULT_CONFIG,
    add_device_options,
    add_steps_option,
    device_options,
    whole_number,
)
from diffusion.utils.cli import CommandParser, run_command

BASELINES = ["linear", "bicubic", "h264", "previewer", "vae"]


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="compact", metavar="CONFIG")
    parser.add_argument(
        "--videos", nargs="+", required=True, help="videos, pictures, folders or lists"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--models", nargs="*", default=BASELINES, help=f"beside CONFIG; {' '.join(BASELINES)}"
    )
    parser.add_argument("--protocol", default="whole-16", help="default: %(default)s")
    parser.add_argument("--metrics", nargs="+", default=[], help="default: all")
    parser.add_argument("--dino", type=Path, metavar="FOLDER", help="for subject consistency")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="for background consistency")
    parser.add_argument(
        "--vbench", nargs="*", metavar="DIMENSION", help="default: the published six"
    )
    add_steps_option(parser)
    parser.add_argument("--sampler", help="default: each config's")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--workers", type=whole_number(1), default=1, help="processes, one a GPU")
    parser.add_argument("--part", help="i/n: only the i-th of n parts of the videos")
    add_device_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.evaluating import evaluation_request as request
    from diffusion.app.evaluating.evaluation_run import measure_part
    from diffusion.app.evaluating.publication import Publication
    from diffusion.app.evaluating.workers import parse_part, start_workers
    from diffusion.evaluation.codecs.codecs_by_name import CodecOptions
    from diffusion.evaluation.protocol import get_protocol
    from diffusion.noise.sampling import Sampling

    Sampling().changed(args.sampler, args.steps)  # refuses what cannot be
    config = "compact" if args.config == DEFAULT_CONFIG else args.config
    models = [config, *(name for text in args.models for name in re.split(r"[,\s]+", text) if name)]
    protocol = get_protocol(args.protocol)
    what = request.Evaluation(
        list(dict.fromkeys(models)),
        request.name_videos(protocol.select(args.videos)),
        protocol,
        request.choose_metrics(args.metrics, args.dino, args.clip),
        args.output,
        request.choose_dimensions(args.vbench),
    )
    part = parse_part(args.part)
    chosen = device_options(args, part.index)
    publication = Publication(what, chosen["device"])
    if args.workers > 1:
        start_workers(args.workers)
    else:
        sampling = (args.steps, args.sampler, args.seed)
        measure_part(what, CodecOptions(chosen["device"], chosen["dtype"], *sampling), part)
    publication.collect()
    publication.publish_once(again=part.index == 0)


if __name__ == "__main__":
    run_command(main, build_parser())
