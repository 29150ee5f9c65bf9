from pathlib import Path

import golden_data
import pytest
import torch
from einops import rearrange

from diffusion.models.semantic_compressor import SemanticCompressor
from diffusion.models.weights import load_weights, save_weights
from diffusion.utils.errors import UserError


def load_golden(entry: dict, folder: Path) -> SemanticCompressor:
    """With the weights of a golden case, loaded the way a user loads the published file."""
    path = folder / "effnet_encoder.safetensors"
    save_weights(golden_data.case_weights(entry), path, {})
    compressor = SemanticCompressor().eval().requires_grad_(False)
    load_weights(compressor, path)
    return compressor


@pytest.fixture(scope="module")
def compressor(tmp_path_factory):
    # Not the constructor's random weights: with those, frames hardly differ in the output.
    meta, _ = golden_data.load("effnet_2x96x128")
    return load_golden(meta["weights"], tmp_path_factory.mktemp("weights"))


def test_network_matches_the_published_one(compressor):
    meta, tensors = golden_data.load("effnet_2x96x128")
    latents = compressor(2 * tensors["image01"] - 1)
    tolerance = meta["suggested_rel_tol"]["out"]
    assert golden_data.relative_error(latents, tensors["out"]) < tolerance


def test_encode_matches_the_published_wrapper(tmp_path):
    meta, tensors = golden_data.load("evae_wrappers_a")
    compressor = load_golden(meta["weights"]["enc"], tmp_path)
    latents = compressor.encode(tensors["video"])
    tolerance = meta["suggested_rel_tol"]["enc"]
    assert golden_data.relative_error(latents, tensors["enc"]) < tolerance


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_do_not_change_the_latents(compressor, monkeypatch, chunk):
    video = torch.rand(2, 3, 4, 32, 64) * 2 - 1
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    whole = rearrange(compressor(frames), "(b f) c h w -> b c f h w", b=2)
    monkeypatch.setattr(compressor, "frames_per_chunk", chunk)
    torch.testing.assert_close(compressor.encode(video), whole, rtol=1e-4, atol=1e-5)


def test_attributes_describe_the_latents(compressor):
    latents = compressor.encode(torch.zeros(1, 3, 2, 64, 96))
    assert latents.shape[1] == compressor.latent_channels
    assert latents.shape[2] * compressor.temporal_compression == 2
    assert latents.shape[3] * compressor.spatial_compression == 64
    assert latents.shape[4] * compressor.spatial_compression == 96


def test_only_published_names_are_saved(compressor):
    assert {key.split(".")[0] for key in compressor.state_dict()} == {"backbone", "mapper"}


@pytest.mark.parametrize("size", [(33, 64), (64, 100)])
def test_sizes_that_would_be_cut_are_refused(compressor, size):
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} .* multiples of 32"):
        compressor.encode(torch.zeros(1, 3, 1, *size))
