"""Measure the speed of a cascade: python tools/benchmark.py CONFIG [options].

Runs on random video; weights that are not there are drawn at random.
"""

import argparse
from pathlib import Path

from diffusion.app.options import (
    add_config_options,
    add_device_options,
    device_options,
    read_config,
    whole_number,
)
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import write_json


def clip_size(text: str) -> tuple[int, int, int]:
    frames, height, width = (whole_number(1, 8192)(side) for side in text.split("x"))
    return frames, height, width


clip_size.__name__ = "size such as 16x512x512"  # argparse names the type in its message


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--weights", help="folder of <part>.safetensors, or the DiT's file")
    parser.add_argument("--height", type=whole_number(16, 8192), default=512)
    parser.add_argument("--width", type=whole_number(16, 8192), default=512)
    parser.add_argument("--frames", type=whole_number(1), default=16)
    parser.add_argument("--steps", type=whole_number(1), help="default: the config's")
    parser.add_argument("--sampler", help="default: the config's")
    parser.add_argument(
        "--stage", choices=("all", "refiner"), default="all", help="refiner: one forward of it only"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        choices=("dtypes", "attention", "compile"),
        help="the refiner's forward in these ways, against eager fp32",
    )
    parser.add_argument("--compare-steps", type=whole_number(1), nargs="+", default=[])
    parser.add_argument(
        "--compare-sizes", type=clip_size, nargs="+", default=[], metavar="FxHxW", help="of clips"
    )
    parser.add_argument(
        "--attention", help="auto, sdpa, matmul, xformers, flash_attn; default: the config's"
    )
    parser.add_argument("--compile", action="store_true", help="every block by itself")
    parser.add_argument("--channels-last", action="store_true", help="the VAE's weights")
    parser.add_argument("--warmup", type=whole_number(0), default=1, help="runs not counted")
    parser.add_argument("--repeat", type=whole_number(1), default=3, help="the median is reported")
    parser.add_argument("--output", type=Path, metavar="X.json", help="write the numbers there")
    add_device_options(parser)
    add_config_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.app.benchmarking.speed import Options, Workload, benchmark
    from diffusion.app.benchmarking.speed_table import print_benchmark
    from diffusion.pipelines.cascade_builder import sampling_of

    config = read_config(args)
    sampling = sampling_of(config, args.sampler, args.steps)
    result = benchmark(
        config,
        Workload(args.height, args.width, args.frames, sampling.steps, sampling.sampler),
        weights=args.weights,
        stage=args.stage,
        options=Options(
            compare=args.compare,
            compare_steps=args.compare_steps,
            compare_sizes=args.compare_sizes,
            attention=args.attention,
            compiled=args.compile,
            channels_last=args.channels_last,
        ),
        warmup=args.warmup,
        repeat=args.repeat,
        **device_options(args),
    )
    result["config"] = args.config
    if args.output is not None:
        write_json(args.output, result)
    print_benchmark(result)


if __name__ == "__main__":
    run_command(main, build_parser())
