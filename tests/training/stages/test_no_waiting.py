"""Between two log lines no step waits for the GPU, which is then never out of work."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from pretend_cuda import pretend_cuda
from test_autoencoder_stages import WIDTHS
from test_autoencoder_stages import batch as picture_batch
from test_refiner_stage import (
    PUBLISHED,
    config_of,
    latent_batch,
    stage_of,
    teacher_file,
    video_batch,
)
from trainings import Line, line_trainer, scalars

from diffusion.models.compact import CompactCompressor, CompactPreviewer, CompactVAE
from diffusion.training.records import TrainingDiverged
from diffusion.training.stages.autoencoder_stages import CompressorStage, VAEStage
from diffusion.training.stages.decoder_stage import DecoderStage
from diffusion.training.stages.distillation_stage import DistillationStage
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.picture_stage import OneStepStage, PictureStage
from diffusion.training.stages.refiner_stage import JointStage, RefinerStage

POSITIONS = {"position_range": [2, 4, 4]}


def autoencoder_stages():
    torch.manual_seed(0)
    vae = CompactVAE(**WIDTHS)
    compressor = CompactCompressor(channels=[8, 8, 8], depths=[1, 1, 1], stem=2)
    previewer = CompactPreviewer(channels=[8, 8, 8], depths=[1, 1, 1], stem=2)
    return {
        "VAE": lambda: VAEStage(vae=vae, perceptual_weight=1.0, adversarial_weight=0.1),
        "compressor": lambda: CompressorStage(
            compressor=compressor, previewer=previewer, perceptual_weight=1.0
        ),
    }


def stage_and_batch(name, tiny_config, folder):
    """One of the stages with all that it can do, and a batch for it."""
    if name in autoencoder_stages():
        return autoencoder_stages()[name](), picture_batch(0)
    learns_variance = name in ("published", "distillation")
    students = {"distillation": ["steps=2", "sampler=ddim"], "one step": ["steps=1"]}
    overrides = [f"reconstruct.{option}" for option in students.get(name, ())]
    config = config_of(tiny_config, *(PUBLISHED if learns_variance else ()), *overrides)
    latents = latent_batch(base=not learns_variance)
    if name in ("refiner", "published"):
        multi_scale = {"latent_crop": 8, "multi_scale": True}
        return stage_of(config, RefinerStage, **multi_scale, **POSITIONS), latents
    if name == "videos":
        return stage_of(config, RefinerStage, sample_posterior=True), video_batch()
    if name == "joint":
        return stage_of(config, JointStage), video_batch()
    if name == "pictures":
        return stage_of(config, PictureStage), video_batch()
    if name == "decoder":
        return DecoderStage(networks=FrozenNetworks(config), steps=(1, 2), rank=4), video_batch()
    teacher = teacher_file(config, folder)
    if name == "one step":
        return stage_of(config, OneStepStage, teacher=teacher, rank=4, **POSITIONS), video_batch()
    return stage_of(config, DistillationStage, teacher=teacher, steps=2), latents


STAGES = ["VAE", "compressor", "refiner", "published", "videos", "joint", "pictures", "decoder"]


def waits_per_step(work_dir, stage, batch, steps=5, **options):
    """What each step waited for, from the second on; the last ends with a log line."""
    train = options.pop("train", {})
    train = {**train, "loop": {"max_steps": steps, "log_interval": steps}}
    seen: list[Counter] = []
    with pretend_cuda() as device:
        trainer = line_trainer(work_dir, stage, train=train, device="cuda", **options)
        trainer.stage.prepare = lambda batches: None

        def batches(step):
            seen.append(device.by_line())
            return batch

        trainer.batches = batches
        trainer.run()
    return [after - before for before, after in pairwise(seen[1:])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [*STAGES, "one step", "distillation"])
def test_a_step_of_no_stage_waits(name, dtype, tiny_config, tmp_path):
    stage, batch = stage_and_batch(name, tiny_config, tmp_path)
    assert waits_per_step(tmp_path / "work", stage, batch, dtype=dtype) == [Counter()] * 3


@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Muon", "SGD"])
def test_no_optimizer_waits(optimizer, tmp_path):
    stage = autoencoder_stages()["VAE"]()
    train = {"optimizer": {"type": optimizer}, "learning_rate": {"peak": 1e-3}}
    waits = waits_per_step(tmp_path / "work", stage, picture_batch(0), train=train)
    assert waits == [Counter()] * 3


def test_waiting_would_be_noticed(tmp_path):
    class Impatient(Line):
        def loss(self, batch, draws):
            terms = super().loss(batch, draws)
            assert terms["error"].item() >= 0
            return terms

    batch = video_batch(count=1, side=2)
    for waits in waits_per_step(tmp_path / "work", Impatient(), batch):
        (what,) = waits
        assert what.startswith("synchronise: item, bool or float at ")


def test_what_diverges_between_two_log_lines_is_named_and_not_kept(tmp_path):
    """The step and the clips are those of the first loss that is not finite."""
    train = {"loop": {"max_steps": 9, "log_interval": 4}, "saving": {"interval": 2}}
    with pretend_cuda():
        trainer = line_trainer(tmp_path, Line(diverge=True), train=train, device="cuda")
        with pytest.raises(TrainingDiverged, match=r"loss nan at step 1; clips: clip1\.mp4$"):
            trainer.run()
        assert trainer.step == 2  # where a checkpoint would have been
    assert trainer.checkpoints.steps() == []
    assert not (tmp_path / "line.safetensors").exists()


def test_records_are_those_of_a_cpu(tmp_path):
    """Means over all the steps since the last log line, though they are read at its time only."""
    train = {"loop": {"max_steps": 7, "log_interval": 3}, "saving": {"interval": 2}}
    line_trainer(tmp_path / "cpu", train=train).run()
    with pretend_cuda():
        line_trainer(tmp_path / "cuda", train=train, device="cuda").run()
    assert scalars(tmp_path / "cuda") == scalars(tmp_path / "cpu")
