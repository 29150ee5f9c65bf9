"""The loss and the gradients of every stage on a CUDA device that is not there: the CPU's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pretend_cuda import PretendCuda, pretend_cuda

from diffusion.config import load_config
from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.weights import save_weights
from diffusion.training.draws import Draws
from diffusion.training.stages.stage import Stage
from diffusion.training.trainer_builder import STAGES, provide

LEARNED_VARIANCE = (
    "conditioning.residual_std=None",
    "refiner.condition_channels=16",
    "refiner.learned_variance=True",
    "noise.learned_variance=True",
    "noise.prediction_type=epsilon",
    "refiner.gradient_checkpointing=True",
)
FLOW = ("noise.prediction_type=flow_prediction",)
TWO_STEPS, ONE_STEP = ("reconstruct={'steps': 2, 'sampler': 'ddim'}",), ("reconstruct.steps=1",)
# Options of a stage, which may name the teacher's file; overrides of the config.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "VAEStage": ({"adversarial_weight": 0.1}, ()),
    "CompressorStage": ({"perceptual_weight": 0.1}, ()),
    "RefinerStage": ({"position_range": [2, 4, 4], "sample_posterior": True}, ()),
    "RefinerStage, learned variance": ({}, LEARNED_VARIANCE),
    "RefinerStage, flow": ({}, FLOW),
    "RefinerStage, latents, multi-scale": ({"latent_crop": 8, "multi_scale": True}, ()),
    "RefinerStage, latents": ({"image_share": 1.0}, ()),
    "JointStage": ({}, ()),
    "DistillationStage": ({"steps": 2, "teacher": "teacher"}, TWO_STEPS),
    "DistillationStage, learned variance": (
        {"steps": 2, "teacher": "teacher"},
        (*TWO_STEPS, *LEARNED_VARIANCE),
    ),
    "PictureStage": ({"adversarial_weight": 0.1}, ()),
    "OneStepStage": ({"teacher": "teacher", "rank": 4}, ONE_STEP),
    "DecoderStage": ({"rank": 4, "steps": [2]}, ()),
}


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


def build(case: str, path: Path, folder: Path) -> Stage:
    options, overrides = CASES[case]
    config = load_config(path, overrides)
    parts = tiny.random_parts(config)
    weights = {name: str(folder / f"{name}.safetensors") for name in parts}
    for name, part in parts.items():
        save_weights(part, Path(weights[name]), {"part": name})
    config = {**config, "weights": weights}
    if "teacher" in options:
        options = options | {"teacher": weights["refiner"]}
    torch.manual_seed(0)
    kind = case.partition(",")[0]
    stage = provide(STAGES, {"type": kind, **options}, "train.stage", config)
    if "refiner" in stage.parts and "teacher" not in options:
        stage.parts["refiner"].load_state_dict(parts["refiner"].state_dict())
    return stage


def batch_of(case: str) -> Batch | LatentBatch:
    generator = torch.Generator().manual_seed(0)
    if "latents" in case:
        fine, coarse = (2, 4, 8, 16, 16), (2, 16, 8, 4, 4)
        sizes = {"target": fine, "semantic": coarse, "base": fine}
        drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        return LatentBatch(**drawn, sources=["a", "b"])
    levels = torch.randint(256, (2, 3, 8, 64, 64), generator=generator, dtype=torch.uint8)
    return Batch(levels, ["a.mp4", "b.mp4"])


def step(stage: Stage, case: str, number: int = 0) -> dict[str, torch.Tensor]:
    """The terms of the loss, whose gradients are added to the weights'."""
    place = next(stage.parts.parameters()).device
    draws = Draws(seed=0, step=number, first=0, count=2, device=place)
    terms = stage.loss(batch_of(case).pin_memory().to(place), draws)
    torch.stack(list(terms.values())).sum().backward()
    return terms


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_cpus_and_no_step_waits(device, tiny_config, tmp_path, case):
    here, there = (build(case, tiny_config, tmp_path) for _ in range(2))
    there.to("cuda")
    terms, wanted = step(there, case), step(here, case)
    assert terms.keys() == wanted.keys()
    for name, term in terms.items():
        assert term.device.type == "cuda", name
        torch.testing.assert_close(term.detach().cpu(), wanted[name].detach())
    for (name, p), q in zip(there.parts.named_parameters(), here.parts.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            torch.testing.assert_close(p.grad.cpu(), q.grad)
    for number in (1, 2):  # by the second one all is there that is made once
        device.stalls.clear()
        step(there, case, number)
    assert not device.by_line()


@pytest.mark.parametrize("case", ["VAEStage", "JointStage", "PictureStage", "DecoderStage"])
def test_no_step_waits_in_low_precision(device, tiny_config, tmp_path, case):
    stage = build(case, tiny_config, tmp_path).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        for number in range(3):
            device.stalls.clear()
            terms = step(stage, case, number)
    waited = device.by_line()
    assert not waited
    assert all(term.isfinite() for term in terms.values())


RECONSTRUCTING = ("VAEStage", "CompressorStage", "RefinerStage", "OneStepStage", "DecoderStage")


@pytest.mark.parametrize("case", RECONSTRUCTING)
def test_reconstructions(device, tiny_config, tmp_path, case):
    here, there = (build(case, tiny_config, tmp_path) for _ in range(2))
    there.to("cuda")
    video = batch_of("").to("cpu").video[:1]
    restored = there.reconstruct(there.parts, video.cuda())
    assert restored.device.type == "cuda"
    torch.testing.assert_close(restored.cpu(), here.reconstruct(here.parts, video))
