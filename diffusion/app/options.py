"""Command-line options that several commands share, and what they stand for.

What computes is imported inside the functions: --help and mistakes in the arguments need not wait
for torch.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.utils.errors import UserError

if TYPE_CHECKING:
    import torch

    from diffusion.app.reconstruction.clip_source import ClipOptions

# The default of --config; relative to the project when not found from the working directory.
DEFAULT_CONFIG = "configs/compact.effn-f32.py"

CLIP_HELP = "a video, a picture, or a folder of numbered pictures (shown at 25 per second)"

SAMPLER_NAMES = ("euler_a", "ddim", "dpmpp", "euler")  # the keys of SAMPLERS, for --help


def whole_number(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least}..{most}")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse


def frame_count(text: str) -> int | str:
    return text if text == "all" else whole_number(1)(text)


frame_count.__name__ = "number of frames"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change the config"
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 (default: auto)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")
    group.add_argument("--weights", help="folder of <part>.safetensors, or the DiT's file")
    add_device_options(group)
    add_config_options(group)


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clip")
    group.add_argument(
        "--size", type=whole_number(16, 8192), help="short edge in pixels; default: the video's"
    )
    group.add_argument("--square", action="store_true", help="crop to the middle square")
    group.add_argument("--start", type=whole_number(0), default=0, help="first frame, from 0")
    group.add_argument(
        "--num-frames", type=frame_count, help="a number or 'all'; default: the config's"
    )
    group.add_argument("--frame-stride", type=whole_number(1), default=1, help="1 is every frame")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    add_steps_option(group)
    group.add_argument("--sampler", help=f"{', '.join(SAMPLER_NAMES)}; default: the config's")
    group.add_argument("--seed", type=whole_number(0), default=0, help="default: %(default)s")


def add_steps_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--steps", type=whole_number(1), help="default: the config's, mostly 8")


def read_config(args: argparse.Namespace) -> Mapping[str, Any]:
    """The config of a command that uses the cascade; a key that nothing reads is refused."""
    from diffusion.config import load_config
    from diffusion.pipelines.cascade_builder import check_config

    config = load_config(args.config, args.cfg_options)
    check_config(config)
    return config


def device_options(
    args: argparse.Namespace, number: int = 0
) -> "dict[str, torch.device | torch.dtype]":
    """Arguments `device` and `dtype` of whatever computes; the device becomes the current one.

    number: of this process, where others compute on this machine too and torchrun started none.
    """
    from diffusion.utils.devices import choose_device, choose_dtype, own_device

    device = own_device(choose_device(args.device), number)
    return {"device": device, "dtype": choose_dtype(args.dtype, device)}


def clip_options(args: argparse.Namespace, config: Mapping[str, Any]) -> "ClipOptions":
    """Which part of the video at which size; the config's limits hold where nothing is given."""
    from diffusion.app.reconstruction.clip_source import ClipOptions
    from diffusion.pipelines.cascade_builder import reconstruct_of

    limits = reconstruct_of(config)
    return ClipOptions(
        start=args.start,
        num_frames=None if args.num_frames == "all" else args.num_frames,
        frame_stride=args.frame_stride,
        size=args.size,
        square=args.square,
        max_frames=None if args.num_frames == "all" else limits.num_frames,
        max_short_edge=limits.max_short_edge,
        published_preprocess=limits.published_preprocess,
    )


def sampling_options(args: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, int | str]:
    """Arguments of Cascade.restore; a sampler that the model cannot have is refused."""
    from diffusion.pipelines.cascade_builder import sampling_of

    sampling = sampling_of(config, args.sampler, args.steps)
    return {"steps": sampling.steps, "sampler": sampling.sampler, "seed": args.seed}


def output_file(path: str, suffix: str) -> Path:
    """The file to write; refused unless it ends in `suffix`, so that no input is overwritten."""
    if Path(path).suffix != suffix:
        raise UserError(f"--output {path}: must end in {suffix}")
    return Path(path)
