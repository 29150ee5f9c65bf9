"""Convert weights to safetensors: a published DiT (.pth), or other safetensors to a new dtype."""

import argparse
import logging
from pathlib import Path

from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("input", type=Path, metavar="IN", help=".pth or .safetensors")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT.safetensors", help="file to write"
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights (state_dict_ema)"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="number format; default: the file's"
    )
    return parser


def main(args: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    run_command(main, build_parser())
