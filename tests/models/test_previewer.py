from pathlib import Path

import golden_data
import pytest
import torch
from einops import rearrange

from diffusion.models.previewer import Previewer
from diffusion.models.weights import load_weights, save_weights


def load_golden(entry: dict, folder: Path) -> Previewer:
    """With the weights of a golden case, loaded the way a user loads the published file."""
    path = folder / "previewer.safetensors"
    save_weights(golden_data.case_weights(entry), path, {})
    previewer = Previewer().eval().requires_grad_(False)
    load_weights(previewer, path)
    return previewer


@pytest.fixture(scope="module")
def previewer(tmp_path_factory):
    # Not the constructor's random weights: with those, frames hardly differ in the output.
    meta, _ = golden_data.load("previewer_2x3x4")
    return load_golden(meta["weights"], tmp_path_factory.mktemp("weights"))


def test_network_matches_the_published_one(previewer):
    meta, tensors = golden_data.load("previewer_2x3x4")
    frames = previewer.blocks(tensors["lat"])
    tolerance = meta["suggested_rel_tol"]["out"]
    assert golden_data.relative_error(frames, tensors["out"]) < tolerance


def test_decode_matches_the_published_wrapper(tmp_path):
    meta, tensors = golden_data.load("evae_wrappers_a")
    previewer = load_golden(meta["weights"]["dec"], tmp_path)
    video = previewer.decode(tensors["lat"])
    tolerance = meta["suggested_rel_tol"]["dec"]
    assert golden_data.relative_error(video, tensors["dec"]) < tolerance
    assert video.min() == -1
    assert video.max() == 1


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_do_not_change_the_video(previewer, monkeypatch, chunk):
    latents = torch.randn(2, previewer.latent_channels, 3, 4, 2)
    frames = rearrange(latents, "b c f h w -> (b f) c h w")
    whole = rearrange(previewer(frames), "(b f) c h w -> b c f h w", b=2)
    monkeypatch.setattr(previewer, "frames_per_chunk", chunk)
    torch.testing.assert_close(previewer.decode(latents), whole, rtol=1e-4, atol=1e-5)


def test_attributes_describe_the_preview(previewer):
    video = previewer.decode(torch.zeros(1, previewer.latent_channels, 2, 4, 3))
    assert video.shape == (1, 3, 2, 4 * previewer.upscaling, 3 * previewer.upscaling)
