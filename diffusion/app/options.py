"""Command-line options that several commands share."""

import argparse

from diffusion.noise.samplers import SAMPLERS, build_sampler

# The default of --config; relative to the project when not found from the working directory.
DEFAULT_CONFIG = "configs/compact.effn-f32.py"


def whole_number(least: int):
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse


def frame_count(text: str) -> int | str:
    return text if text == "all" else whole_number(1)(text)


frame_count.__name__ = "number of frames"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")
    group.add_argument("--weights", help="folder of <part>.safetensors, or the DiT's file")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    group.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 (default: auto)")
    group.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clip")
    group.add_argument("--size", type=int, help="short edge in pixels; default: the video's")
    group.add_argument("--square", action="store_true", help="crop to the middle square")
    group.add_argument("--start", type=whole_number(0), default=0, help="first frame, from 0")
    group.add_argument(
        "--num-frames", type=frame_count, help="a number or 'all'; default: the config's"
    )
    group.add_argument("--frame-stride", type=whole_number(1), default=1, help="1 is every frame")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--steps", type=whole_number(1), default=8, help="default: %(default)s")
    group.add_argument(
        "--sampler", default="euler_a", help=f"{', '.join(SAMPLERS)}; default: %(default)s"
    )
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def sampling_options(args: argparse.Namespace) -> dict[str, int | str]:
    """Arguments of CascadePipeline.restore; a sampler that cannot be built is refused here."""
    build_sampler(args.sampler, num_inference_steps=args.steps)
    return {"steps": args.steps, "sampler": args.sampler, "seed": args.seed}
