"""Train one stage of the cascade: python tools/train.py CONFIG --work-dir DIR."""

import argparse
from pathlib import Path

import torch

from diffusion.config import dump_config, load_config
from diffusion.training.builder import build_trainer
from diffusion.utils.cli import CommandParser, run_command


def main(args: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)  # denormal gradients make CPU steps several times slower
    config = load_config(args.config, args.cfg_options)
    work_dir = Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)
    trainer = build_trainer(config, work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "config.py").write_text(dump_config(config))
    trainer.run()


if __name__ == "__main__":
    parser = CommandParser(description=__doc__)
    parser.add_argument("config", help="a file in configs/")
    parser.add_argument("--work-dir", help="default: work_dirs/<name of the config>")
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="KEY=VALUE")
    run_command(main, parser)
