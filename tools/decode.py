"""Restore a video from semantic latents: python tools/decode.py x.safetensors -o y.mp4."""

import argparse
from collections import deque

from diffusion.app.options import add_model_options, add_sampling_options, output_file
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("latents")
    parser.add_argument("-o", "--output", required=True, help="the video, .mp4")
    add_model_options(parser)
    add_sampling_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.opened_cascade import open_cascade
    from diffusion.app.reconstruction import coding
    from diffusion.app.reconstruction.result_files import video_file
    from diffusion.data.transforms import to_uint8
    from diffusion.utils.overlap import Overlap

    output = output_file(args.output, ".mp4")
    opened = open_cascade(args, args.latents, coding.open_latents_of)
    latents, pipeline, stages = opened.source, opened.pipeline, opened.stages
    coding.check_latents(latents, pipeline)
    make_folder(output.parent)
    info, frames = latents.info, latents.shape[2]
    with (
        opened.running(output.with_name(f".{output.name}.unfinished")) as (is_first, unfinished),
        Overlap(stages.wait) as overlap,
    ):
        pieces = ((piece, None) for piece in latents.chunks(coding.CHUNK))
        videos = coding.decode_pieces(
            *(pipeline, pieces, (info.height, info.width), frames, unfinished, stages),
            **opened.sampling,
        )
        if not is_first:
            deque(videos, maxlen=0)  # its share of the work
            return
        write = overlap.behind(video_file(output, info.fps, stages))
        for video in videos:
            shown = coding.without_padding(video, info)
            write(to_uint8(shown))
    height, width = shown.shape[-2:]
    print(f"{output}: {frames} frames of {width}x{height}")


if __name__ == "__main__":
    run_command(main, build_parser())
