import pytest
import tiny
import torch

from diffusion.app.benchmarking.speed import count_flop
from diffusion.app.training.dry_run import dry_run, largest, print_dry_run
from diffusion.config import load_config
from diffusion.pipelines.cascade_builder import build_part
from diffusion.utils.errors import ConfigError, WeightsError

LATENTS = """
video_list = ["nowhere"]
data = dict(type="RandomLatents", folder="nowhere", batch_size=3, size=8, num_frames=4)
train = dict(stage=dict(type="RefinerStage"), loop=dict(max_steps=9), learning_rate=dict(peak=1e-3))
"""
REFINER = 'dict(type="RefinerStage", sample_posterior=True)'
VIDEOS = """
video_list = ["nowhere"]
data = dict(type="RandomClips", cache_dir="nowhere", batch_size=2, size=64, num_frames=2)
train = dict(
    stage=dict(type="RefinerStage", sample_posterior=True),
    loop=dict(max_steps=9), learning_rate=dict(peak=1e-3), optimizer=dict(type="CAME"),
)
"""


@pytest.fixture
def dry(tmp_path):
    """Counts what the config (of which no file exists) and the overrides describe."""

    def count(extra, *overrides, run=False):
        path = tiny.write_config(tmp_path / "train.py", extra, tmp_path / "no_weights")
        config = load_config(path, overrides)
        return dry_run(config, torch.device("cpu"), torch.float32, run=run)

    return count


def test_tokens_and_parameters_of_latents(dry):
    report = dry(LATENTS)
    refiner = build_part(load_config("configs/compact.effn-f32.py"), "refiner")
    assert report["tokens"] == 3 * 4 * (8 // refiner.patch_size) ** 2
    assert report["trained"].keys() == {"refiner"}
    assert report["frozen"] == {}
    assert report["data"] == "3 clips of 4 frames of 8x8 VAE latents"
    assert "seconds" not in report


def test_videos_count_the_networks_that_encode_them(dry, tmp_path):
    report = dry(VIDEOS)
    config = load_config(tmp_path / "train.py")
    for name, parameters in (report["trained"] | report["frozen"]).items():
        assert parameters == sum(p.numel() for p in build_part(config, name).parameters())
    assert report["frozen"].keys() == {"compressor", "previewer", "vae"}
    assert report["tokens"] == 2 * 2 * 4 * 4


def test_arithmetic_follows_the_clips(dry):
    once = dry(LATENTS)["tflop"]
    assert dry(LATENTS, "data.batch_size=6")["tflop"] == pytest.approx(2 * once)
    twice = dry(LATENTS, "train.loop.gradient_accumulation=2")
    assert twice["tflop"] == pytest.approx(2 * once)
    assert (twice["clips_per_step"], twice["tokens"]) == (6, 2 * dry(LATENTS)["tokens"])


def test_a_backward_is_two_to_three_forwards_and_checkpointing_one_more(dry, tmp_path):
    plain, again = (
        dry(LATENTS, f"refiner.gradient_checkpointing={on}")["tflop"] for on in (False, True)
    )
    refiner = build_part(load_config(tmp_path / "train.py"), "refiner")
    forward = 3 * count_flop(refiner, (4, 8, 8)) / 1e12
    assert 2.7 < plain / forward < 3.6
    assert 0.7 < (again - plain) / forward <= 1.0


@pytest.mark.parametrize(("extra", "states"), [(LATENTS, 2.0), (VIDEOS, 1.0)])
def test_a_step_is_measured(dry, extra, states, capsys):
    report = dry(extra, run=True)
    assert report["seconds"] > 0
    assert report["loss"] > 0
    weights = 4 * report["trained"]["refiner"] / 1e6
    assert report["weights_mb"] == report["average_mb"] == pytest.approx(weights)
    # AdamW has two values per weight; CAME a momentum, and little more where it factors
    assert report["optimizer_mb"] == pytest.approx(states * weights, rel=0.35)
    assert report["peak_memory_mb"] > 3 * weights
    assert report["clips_per_second"] == report["clips_per_step"] / report["seconds"]
    print_dry_run(report)
    printed = capsys.readouterr().out
    for words in ("refiner, trained", "tokens per step", "TFLOP", "peak memory"):
        assert words in printed


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(64, (64, 64)), ([64, 96], (64, 96)), ([[64, 64], [64, 128], [96, 64]], (64, 128))],
)
def test_of_several_sizes_the_largest_counts(size, wanted):
    assert largest(size) == wanted


def test_the_other_stages_too(dry):
    vae = dry(VIDEOS.replace(REFINER, 'dict(type="VAEStage", perceptual_weight=0.0)'))
    assert vae["trained"].keys() == {"vae"}
    assert vae["tokens"] == 0
    both = dry(VIDEOS.replace(REFINER, 'dict(type="CompressorStage")'))
    assert both["trained"].keys() == {"compressor", "previewer"}
    assert both["tflop"] > 0


def test_a_misspelt_option_is_refused_before_anything_is_built(dry):
    with pytest.raises(ConfigError, match="max_step"):
        dry(LATENTS, "train.max_step=3")


def test_weights_to_start_from_must_be_there_for_a_step(dry):
    options = ("train.stage.init_from=nowhere.pth",)
    assert dry(LATENTS, *options)["tokens"]  # counting needs no file
    with pytest.raises(WeightsError, match=r"train.stage.init_from=\S*nowhere.pth: no such"):
        dry(LATENTS, *options, run=True)


@pytest.mark.slow
def test_the_published_recipe_in_full_size():
    """Counted without computing. The forward is 101 TFLOP for each of four clips."""
    config = load_config("configs/s1024.effn-f32.py")
    report = dry_run(config, torch.device("cpu"), torch.float32, run=False)
    assert report["trained"]["refiner"] == pytest.approx(456.1e6, rel=1e-3)
    assert report["tokens"] == 4 * 8 * 64 * 64
    # with checkpointing two forwards and a backward that also computes attention again
    assert report["tflop"] == pytest.approx(1919, rel=0.01)
