import golden_data
import pytest
import torch

from diffusion.models.embeddings import (
    TimestepEmbedder,
    position_dims,
    timestep_features,
    video_positions,
)
from diffusion.utils.errors import ConfigError

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.mark.parametrize("name", golden_data.cases("pos_embed"))
def test_positions_match_the_published_table(name):
    meta, t = golden_data.load(name)
    config = meta["config"]
    side = config["latent_size"] // 2
    enlarged = config["latent_size"] // config["input_size"]
    table = video_positions(
        (meta["frames"], side, side),
        1152,
        interpolation=config["pe_interpolation"] * enlarged,
        **CPU,
    ).flatten(0, 2)[None]
    table = table[:, t["rows"]] if "rows" in t else table
    assert golden_data.relative_error(table, t["pos_embed"]) <= 1e-6


def test_timestep_embedding_matches_the_published_one():
    meta, t = golden_data.load("timestep_embed")
    embedder = TimestepEmbedder(1152)
    state = golden_data.case_weights(meta["weights"])
    embedder.load_state_dict({k.removeprefix("t_embedder."): v for k, v in state.items()})
    features, of_half = (timestep_features(x, 256) for x in (t["t"], t["t"].half()))
    # 999 times one unit in the last place of exp, see golden_data.published_frequencies
    assert golden_data.relative_error(features, t["freq"]) <= 1.5e-4
    assert golden_data.relative_error(of_half, t["freq_of_half_t"]) <= 1.5e-4
    assert golden_data.relative_error(embedder(t["t"]), t["out"]) <= 5e-5


def test_timestep_embedding_is_exact_given_the_published_frequencies(golden_frequencies):
    _, t = golden_data.load("timestep_embed")
    assert golden_data.relative_error(timestep_features(t["t"], 256), t["freq"]) <= 1e-6


def test_positions_of_the_published_size_are_thirds():
    assert position_dims(1152) == (384, 384, 384)


@pytest.mark.parametrize("hidden_size", [12, 64, 192, 256, 320, 384, 768, 1024])
def test_any_hidden_size_gives_every_axis_sines_and_cosines(hidden_size):
    dims = position_dims(hidden_size)
    assert sum(dims) == hidden_size
    assert all(dim >= 4 and dim % 2 == 0 for dim in dims)
    table = video_positions((2, 3, 5), hidden_size, **CPU)
    assert table.shape == (2, 3, 5, hidden_size)
    assert len(table.flatten(0, 2).unique(dim=0)) == 30  # no two tokens look alike


def test_a_hidden_size_without_positions_is_refused():
    with pytest.raises(ConfigError, match="330"):
        position_dims(330)


def test_origin_cuts_out_of_a_larger_clip():
    whole = video_positions((4, 6, 9), 192, interpolation=2.0, **CPU)
    part = video_positions((2, 3, 4), 192, origin=(1, 3, 5), interpolation=2.0, **CPU)
    assert torch.equal(part, whole[1:3, 3:6, 5:9])


def test_interpolation_and_fractional_origins_meet_on_a_finer_lattice():
    coarse = video_positions((1, 4, 4), 192, **CPU)
    fine = video_positions((1, 8, 8), 192, interpolation=2.0, **CPU)
    shifted = video_positions((1, 3, 3), 192, origin=(0, 0.5, 0.5), **CPU)
    torch.testing.assert_close(fine[:, ::2, ::2], coarse)
    torch.testing.assert_close(fine[:, 1:7:2, 1:7:2], shifted)


def test_positions_are_computed_once_per_clip():
    tables = [video_positions((2, 3, 3), 192, origin=(0, 7, 0), **CPU) for _ in range(2)]
    assert tables[0] is tables[1]
    assert video_positions((2, 3, 3), 192, origin=(0, 8, 0), **CPU) is not tables[0]
