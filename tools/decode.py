"""Restore a video from semantic latents: python tools/decode.py x.safetensors -o y.mp4."""

import argparse

from diffusion.app.options import (
    add_model_options,
    add_sampling_options,
    device_options,
    output_file,
    read_config,
    sampling_options,
)
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
    from diffusion.app.reconstruction.reconstruction import (
        CHUNK,
        check_latents,
        decode_pieces,
        open_latents_of,
        without_padding,
    )
    from diffusion.app.reconstruction.several_processes import output_folder, sharing
    from diffusion.app.reconstruction.stage_times import Stages
    from diffusion.app.reconstruction.unfinished import UnfinishedRun, run_key
    from diffusion.data.video.video_writer import VideoWriter
    from diffusion.pipelines.cascade_builder import build_cascade, weights_of

    config = read_config(args)
    sampling = sampling_options(args, config)
    devices = device_options(args)
    output = output_file(args.output, ".mp4")
    latents = open_latents_of(args.latents, config)
    pipeline = build_cascade(config, weights=args.weights, **devices)
    check_latents(latents, pipeline)
    make_folder(output.parent)
    key = run_key(config, weights_of(config, args.weights), args.latents, **devices, **sampling)
    with (
        sharing(pipeline) as is_first,
        UnfinishedRun(
            output.with_name(f".{output.name}.unfinished"), key, writes=is_first
        ) as unfinished,
        output_folder(output.parent, is_first) as folder,
        VideoWriter(folder / output.name, latents.info.fps) as writer,
    ):
        pieces = ((piece, None) for piece in latents.chunks(CHUNK))
        frames, size = latents.shape[2], (latents.info.height, latents.info.width)
        decoded = decode_pieces(pipeline, pieces, size, frames, unfinished, Stages(), **sampling)
        for video in decoded:
            writer.write(without_padding(video, latents.info))
    if is_first:
        width, height = writer.size
        print(f"{output}: {frames} frames of {width}x{height}")


if __name__ == "__main__":
    run_command(main, build_parser())
