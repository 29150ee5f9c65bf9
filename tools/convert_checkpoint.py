"""Convert weights: a file to safetensors, or a config's networks to folders of diffusers' format.

convert_checkpoint.py pretrained/s1024.effn-f32.pth -o refiner.safetensors
convert_checkpoint.py configs/s1024.effn-f32.py -o my_cascade --variant fp16 --dtype fp16
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.app.options import add_config_options
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.errors import UserError

if TYPE_CHECKING:
    from diffusion.models.network import Network

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, metavar="IN", help=".pth or .safetensors; or a config")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=".safetensors; or a folder"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="number format; default: the file's"
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights (state_dict_ema) of a .pth"
    )
    folder = parser.add_argument_group("of a config")
    folder.add_argument("--weights", help="folder of <part>.safetensors, or the DiT's file")
    folder.add_argument("--variant", help="part of the files' names, e.g. fp16")
    folder.add_argument("--max-shard-size", default="10GB", help="of a file; default: %(default)s")
    add_config_options(folder)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.input.suffix == ".py" or args.input.is_dir():
        convert_config(args)
    else:
        convert_file(args)


def convert_file(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    from diffusion.models.weights import read_state_dict, save_weights
    from diffusion.utils.devices import DTYPES

    if args.output.suffix != ".safetensors":
        raise UserError(f"{args.output}: the output must end in .safetensors")
    state = read_state_dict(args.input, use_ema=args.ema)
    if args.dtype:
        state = {
            key: value.to(DTYPES[args.dtype]) if value.is_floating_point() else value
            for key, value in state.items()
        }
    metadata = {"converted_from": args.input.name, "ema": str(args.ema).lower()}
    save_weights(state, args.output, metadata)
    parameters = sum(value.numel() for value in state.values())
    logger.info("%s: %d tensors, %.1f M values", args.output, len(state), parameters / 1e6)


def convert_config(args: argparse.Namespace) -> None:
    from diffusion.config import load_config
    from diffusion.pipelines.cascade_builder import (
        PARTS,
        check_config,
        check_weights,
        stored_networks,
    )
    from diffusion.pipelines.cascade_folder import write_cascade_folder
    from diffusion.utils.devices import DTYPES

    if args.ema:
        raise UserError("--ema is for a .pth; convert that first, and name the result as --weights")
    if args.output.suffix == ".safetensors":
        raise UserError(f"{args.output}: what becomes of a config is a folder")
    config = load_config(args.input, args.cfg_options)
    check_config(config)
    check_weights(config, PARTS, args.weights)

    def converted() -> "Iterator[tuple[str, Network]]":
        for name, network in stored_networks(config, args.weights):
            yield name, network.to(DTYPES[args.dtype]) if args.dtype else network
            millions = network.num_parameters() / 1e6
            kind = type(network).__name__
            logger.info("%s: %s, %.1f M parameters", args.output / name, kind, millions)

    options = {"variant": args.variant, "max_shard_size": args.max_shard_size}
    write_cascade_folder(args.output, config, converted(), **options)


if __name__ == "__main__":
    run_command(main, build_parser())
