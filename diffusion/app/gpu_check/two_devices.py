"""Two GPUs, or two processes on a CPU: one video shared out, and training together."""

from collections.abc import Iterator

import torch

from diffusion.app.gpu_check.check_result import Outcome, Setting, Skipped, at_most
from diffusion.app.gpu_check.continuing_checks import (
    LOSS_BOUND,
    PSNR_BOUND,
    psnr_in,
    recon_arguments,
    scalars_of,
    training_arguments,
)
from diffusion.app.gpu_check.project_commands import command, run


def check_shared_recon(setting: Setting) -> Iterator[Outcome]:
    """A reconstruction by two processes against that of one."""
    need_two(setting)
    folders = {count: setting.folder / f"recon_by_{count}" for count in (1, 2)}
    for count, folder in folders.items():
        arguments = recon_arguments(setting, folder)
        run(command("tools/reconstruct.py", *arguments, processes=count))
    apart = abs(psnr_in(folders[1]) - psnr_in(folders[2]))
    yield at_most("recon by two processes, PSNR (dB) apart", apart, PSNR_BOUND)


def check_ddp(setting: Setting) -> Iterator[Outcome]:
    """Two processes with one clip each train as one with two clips."""
    need_two(setting)
    yield trained_together(setting, "DDP")


def check_fsdp(setting: Setting) -> Iterator[Outcome]:
    """The same, with the weights in shards."""
    need_two(setting)
    if not setting.is_cuda:
        raise Skipped("weights are sharded over GPUs only")
    yield trained_together(setting, "FSDP2", "train.fsdp={}")


def trained_together(setting: Setting, name: str, *changes: str) -> Outcome:
    folders = {count: setting.folder / f"train_{name}_by_{count}" for count in (1, 2)}
    for count, folder in folders.items():
        sharded = changes if count > 1 else ()
        arguments = training_arguments(
            setting, folder, *sharded, f"data.batch_size={2 // count}", "train.optimizer.type=AdamW"
        )
        run(command("tools/train.py", *arguments, processes=count))
    one, two = (scalars_of(folder)[-1]["loss"] for folder in folders.values())
    bound = 2 * LOSS_BOUND
    return at_most(f"{name} on two, last loss apart", abs(one - two) / abs(one), bound)


def need_two(setting: Setting) -> None:
    if setting.is_cuda and torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU")
