"""Compress a video to semantic latents: python tools/encode.py VIDEO -o x.safetensors."""

import argparse
from collections import deque

from diffusion.app.options import CLIP_HELP, add_clip_options, add_model_options, output_file
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("video", help=CLIP_HELP)
    parser.add_argument("-o", "--output", required=True, help="the latents file, .safetensors")
    add_model_options(parser)
    add_clip_options(parser)
    parser.set_defaults(num_frames="all")
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.opened_cascade import open_cascade_for_clip
    from diffusion.app.reconstruction.coding import encode_chunks, latents_info
    from diffusion.app.reconstruction.result_files import latents_file
    from diffusion.app.reconstruction.several_processes import sharing
    from diffusion.utils.overlap import Overlap

    output = output_file(args.output, ".safetensors")
    opened = open_cascade_for_clip(args, parts=("compressor",))
    pipeline, clip, stages = opened.pipeline, opened.source, opened.stages
    make_folder(output.parent)
    info, shape = latents_info(pipeline, clip, opened.config["model_id"])
    with sharing(pipeline) as is_first, Overlap(stages.wait) as overlap:
        encoded = (latents for _, latents in encode_chunks(pipeline, clip, stages, overlap))
        if not is_first:
            deque(encoded, maxlen=0)  # its share of the work
            return
        write = overlap.behind(latents_file(output, shape, info, stages))
        for latents in encoded:
            write(latents.cpu())
    print(f"{output}: {list(shape)}, {output.stat().st_size} bytes")


if __name__ == "__main__":
    run_command(main, build_parser())
