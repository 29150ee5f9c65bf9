"""Train one stage of the cascade: python tools/train.py CONFIG --work-dir DIR.

The same command again continues after the last checkpoint.
"""

import argparse
from pathlib import Path

import torch

from diffusion.app.options import add_config_options, add_device_options, device_options
from diffusion.config import dump_config, load_config
from diffusion.training.builder import build_trainer
from diffusion.utils.cli import CommandParser, run_command
from diffusion.utils.files import make_folder, replacing


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="train_vae.sh", description=__doc__)
    parser.add_argument("config", help="a file in configs/")
    parser.add_argument("--work-dir", help="default: work_dirs/<name of the config>")
    add_device_options(parser)
    add_config_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)  # denormal gradients make CPU steps several times slower
    config = load_config(args.config, args.cfg_options)
    work_dir = Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)
    trainer = build_trainer(config, work_dir, **device_options(args))
    make_folder(work_dir)
    with replacing(work_dir / "config.py") as partial:
        partial.write_text(dump_config(config))
    trainer.run()


if __name__ == "__main__":
    run_command(main, build_parser())
