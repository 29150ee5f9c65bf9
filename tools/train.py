"""Train one stage of the cascade: python tools/train.py [CONFIG] [--work-dir DIR].

The same command again continues after the last checkpoint. Ctrl-C or SIGTERM saves and leaves, with
exit code 130 or 143; a second one leaves at once. On several GPUs: scripts/train_distributed.sh.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.app.options import (
    DEFAULT_CONFIG,
    add_config_options,
    add_device_options,
    device_options,
)
from diffusion.utils.cli import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="train_vae.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="?", default=DEFAULT_CONFIG, help="a file in configs/; default: %(default)s"
    )
    parser.add_argument("--work-dir", help="default: work_dirs/<name of the config>")
    parser.add_argument(
        "--dry-run",
        choices=["run", "count"],
        nargs="?",
        const="run",
        help="one step on random data; print parameters, tokens, FLOPs, memory and time; "
        "'count' computes nothing, so that any size can be counted on any machine",
    )
    add_device_options(parser)
    add_config_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # not above: --help need not wait for torch
    import torch

    from diffusion.config import load_config

    torch.set_flush_denormal(True)  # denormal gradients make CPU steps several times slower
    if int(os.environ.get("RANK", 0)) > 0:  # one process of several speaks
        logging.getLogger().setLevel(logging.WARNING)
    config = load_config(args.config, args.cfg_options)
    if args.dry_run:
        from diffusion.app.training.dry_run import dry_run, print_dry_run

        print_dry_run(dry_run(config, **device_options(args), run=args.dry_run == "run"))
    else:
        work_dir = Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)
        train(config, work_dir, **device_options(args))


def train(config: Mapping[str, Any], work_dir: Path, **devices: Any) -> None:
    from diffusion.app.environment import save_environment
    from diffusion.config import dump_config
    from diffusion.training.stopping import exit_code
    from diffusion.training.trainer_builder import build_trainer
    from diffusion.utils.files import replacing

    trainer = build_trainer(config, work_dir, **devices)
    trainer.start()  # refuses another config: only then is the old one replaced
    if trainer.is_main:
        with replacing(work_dir / "config.py") as partial:
            partial.write_text(dump_config(config))
        save_environment(work_dir / "environment.json")
    stopped = trainer.run()
    trainer.accelerator.end_training()
    if stopped:
        sys.exit(exit_code(stopped))


if __name__ == "__main__":
    run_command(main, build_parser())
