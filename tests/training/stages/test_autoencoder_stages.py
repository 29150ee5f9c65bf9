import copy

import pytest
import torch

from diffusion.data.training.batch import Batch
from diffusion.models.compact import CompactCompressor, CompactPreviewer, CompactVAE
from diffusion.models.weights import save_weights
from diffusion.training.draws import Draws
from diffusion.training.stages.autoencoder_stages import CompressorStage, VAEStage

WIDTHS = {
    "encoder_channels": [8, 8],
    "decoder_channels": [8, 8],
    "encoder_depths": [1, 1],
    "decoder_depths": [1, 1],
}


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    coarse = torch.rand(2, 3, 1, 8, 8, generator=generator) * 2 - 1
    return Batch(coarse.repeat_interleave(8, -1).repeat_interleave(8, -2), ["a", "b"])


def some_steps(stage, count: int = 3) -> None:
    optimizer = torch.optim.Adam(stage.parts.parameters(), lr=1e-2)
    for step in range(count):
        draws = Draws(seed=0, step=step, first=0, count=2)
        optimizer.zero_grad()
        torch.stack(list(stage.loss(batch(step), draws).values())).sum().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CompactVAE(**WIDTHS)


def test_a_decoder_is_finished_behind_latents_that_stay(vae, tmp_path):
    save_weights(vae, tmp_path / "vae.safetensors", {})
    trained = CompactVAE(**WIDTHS)
    stage = VAEStage(
        vae=trained,
        adversarial_weight=0.1,
        train_encoder=False,
        init_from=str(tmp_path / "vae.safetensors"),
    )
    stage.prepare(batch)
    some_steps(stage)
    before, after = vae.state_dict(), trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_the_adversarial_stage_trains_its_discriminator_too(vae):
    stage = VAEStage(vae=copy.deepcopy(vae), adversarial_weight=0.1)
    judge = copy.deepcopy(stage.parts["discriminator"])
    some_steps(stage)
    for before, after in zip(
        judge.parameters(), stage.parts["discriminator"].parameters(), strict=True
    ):
        assert not torch.equal(before, after)


def test_a_previewer_is_finished_behind_latents_that_stay(tmp_path):
    networks = {"compressor": CompactCompressor, "previewer": CompactPreviewer}
    parts = {
        name: network(stem=2, channels=[8, 8, 8], depths=[1, 1, 1])
        for name, network in networks.items()
    }
    for name, part in parts.items():
        save_weights(part, tmp_path / f"{name}.safetensors", {})
    before = copy.deepcopy(parts)
    stage = CompressorStage(**parts, train_compressor=False, init_from=str(tmp_path))
    stage.prepare(batch)
    some_steps(stage)
    for name, unchanged in (("compressor", True), ("previewer", False)):
        old, new = before[name].state_dict(), parts[name].state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old) == unchanged


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_stages_reconstruct_clips_of_any_size(vae, size):
    video = torch.rand(2, 3, 3, *size) * 2 - 1
    networks = {"compressor": CompactCompressor, "previewer": CompactPreviewer}
    parts = {
        name: network(channels=[8, 8, 8], depths=[1, 1, 1]) for name, network in networks.items()
    }
    for stage, trained in ((VAEStage(vae=vae), {"vae": vae}), (CompressorStage(**parts), parts)):
        out = stage.reconstruct(trained, video)
        assert out.shape == video.shape
        assert out.abs().max() <= 1
