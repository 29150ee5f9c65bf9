import json

import pytest
import tiny
import torch
from commands import Commands

from diffusion.app.benchmarking.speed import Workload, count_flop, refiner_size
from diffusion.app.benchmarking.speed_variants import PLAIN, as_variant, variants_of
from diffusion.config import load_config
from diffusion.models.dit import VideoDiT
from diffusion.pipelines.cascade_builder import build_part
from diffusion.utils.measuring import Timer

SMALL = ("--height", 70, "--width", 96, "--frames", 3, "--steps", 2, "--repeat", 2)
CPU = ("--device", "cpu", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def small_matmul(monkeypatch):
    monkeypatch.setattr("diffusion.app.benchmarking.speed.MATMUL_SIZE", {"cpu": 64})


@pytest.fixture
def config(tmp_path):
    return tiny.write_config(tmp_path / "tiny.py")


@pytest.fixture
def measure(config, capsys, tmp_path):
    def run(*options):
        output = tmp_path / "out" / "x.json"
        commands = Commands(config, capsys)
        result = commands.ok("benchmark", config, *SMALL, *CPU, *options, "--output", output)
        return json.loads(output.read_text()), result.out

    return run


def test_every_stage_is_measured(measure, config):
    result, printed = measure()
    assert list(result["stages"]) == ["encode", "preview", "denoise", "decode"]
    for stage in result["stages"].values():
        assert len(stage["runs"]) == 2  # without the warm-up
        assert min(stage["runs"]) <= stage["seconds"] <= max(stage["runs"])
        assert stage["peak_memory_mb"] > 0
    assert result["seconds"] == sum(stage["seconds"] for stage in result["stages"].values())
    assert (result["height"], result["width"], result["frames"], result["steps"]) == (70, 96, 3, 2)
    assert (result["machine"]["device"], result["dtype"]) == ("cpu", "fp32")
    parts = {name: build_part(load_config(config), name) for name in result["parameters"]}
    for name, part in parts.items():
        assert result["parameters"][name] == sum(p.numel() for p in part.parameters())
    for name in result["stages"]:
        assert name in printed


def test_the_speed_of_a_forward_follows_from_its_count_and_time(measure):
    refiner = measure("--stage", "refiner")[0]["refiner"]
    forward = refiner
    assert forward["tflop_per_s"] == pytest.approx(refiner["tflop"] / forward["seconds"])
    share = forward["tflop_per_s"] / forward["matmul_tflop_per_s"]
    assert forward["share_of_matmul"] == pytest.approx(share)
    frames, height, width = refiner["size"]
    assert refiner["tokens"] == frames * height * width / 4


def test_the_refiner_alone_loads_nothing_else(measure):
    result, _ = measure("--stage", "refiner")
    assert set(result["weights"]) == set(result["parameters"]) == {"refiner"}
    assert "stages" not in result


def test_ways_to_compute_are_compared_in_one_run(measure):
    result, printed = measure("--stage", "refiner", "--compare", "dtypes", "attention")
    variants = result["refiner"]["variants"]
    assert {PLAIN.name, "fp32, auto", "bf16, auto", "fp32, sdpa", "fp32, matmul"} <= variants.keys()
    plain = variants[PLAIN.name]["seconds"]
    for name, run in variants.items():
        assert len(run["runs"]) == 2
        assert run["gain"] == pytest.approx(plain / run["seconds"])
        assert name in printed


def test_step_counts_are_compared(measure):
    result, printed = measure("--compare-steps", 1, 3)
    assert list(result["steps_compared"]) == ["1", "3"]
    assert "all, 3 steps" in printed


def test_sizes_are_compared(measure):
    result, printed = measure("--compare-sizes", "1x64x64", "9x32x64", "--compare-steps", 1)
    assert list(result["sizes_compared"]) == ["1x64x64", "9x32x64"]
    for measured in result["sizes_compared"].values():
        assert list(measured["stages"]) == list(result["stages"])
        others = measured["seconds"] - measured["stages"]["denoise"]["seconds"]
        assert measured["steps_compared"]["1"] > others > 0
    for size in ("1x64x64", "9x32x64", "3x70x96"):
        assert size in printed


def test_the_peak_of_memory_is_of_what_was_measured():
    timer = Timer(torch.device("cpu"), warmup=0, repeat=1)
    large = timer(lambda: torch.zeros(50_000_000).sum())["peak_memory_mb"]
    small = timer(lambda: torch.zeros(5).sum())["peak_memory_mb"]
    assert large - small > 150


def test_options_of_the_networks_are_taken(measure):
    plain, _ = measure("--attention", "sdpa")
    assert plain["seconds"] > 0
    assert not plain["compute"]["channels_last"]
    assert measure("--channels-last")[0]["compute"]["channels_last"]


def test_variants_leave_the_refiner_as_it_was():
    refiner = VideoDiT(condition_channels=4, hidden_size=48, depth=1, num_heads=2).eval()
    x, t = torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0])
    torch.nn.init.normal_(refiner.final_layer.linear.weight)
    with torch.no_grad():
        before = refiner(x, t, x)
        for variant in variants_of(torch.bfloat16, ["dtypes"]):
            with as_variant(refiner, variant):
                assert refiner.dtype == variant.dtype
                assert (refiner(x, t, x) - before).abs().max() < 0.1 * before.abs().max()
    assert refiner.dtype == torch.float32
    assert not refiner.blocks[0].attn.fp32_attention


def test_weights_are_used_where_they_are_and_drawn_where_not(measure, tmp_path):
    tiny.write_cascade(tmp_path)
    (tmp_path / "refiner.safetensors").unlink()
    result, printed = measure()
    assert result["weights"]["refiner"] == "random"
    assert result["weights"]["vae"] == str(tmp_path / "vae.safetensors")
    assert "random" in printed


@pytest.mark.parametrize(
    ("workload", "options"),
    [
        (Workload(70, 96, 3), {}),
        (Workload(64, 64, 1), {}),
        (Workload(64, 64, 11), {}),
        (Workload(160, 128, 2), {"tile": 8, "tile_overlap": 0}),
    ],
)
def test_the_measured_forward_is_the_one_that_the_pipeline_runs(config, workload, options):
    config = load_config(config)
    config["cascade"].update(options)
    pipeline = tiny.random_cascade(config)
    sizes = set()
    pipeline.refiner.register_forward_pre_hook(
        lambda module, inputs: sizes.add(tuple(inputs[0].shape[2:]))
    )
    video = torch.zeros(1, 3, workload.frames, workload.height, workload.width)
    pipeline.restore(pipeline.encode(video), steps=1)
    assert sizes == {refiner_size(config, pipeline, workload)}


def test_flop_of_a_small_transformer_counted_by_hand():
    dim, depth, tokens, cell = 48, 2, 4 * 4 * 6, 4 * 2 * 3
    dit = VideoDiT(
        condition_channels=4, hidden_size=dim, depth=depth, num_heads=2, grids=[[1, 2], None]
    )
    linear = depth * tokens * (3 + 1 + 8) * dim**2
    attention = 2 * tokens * (cell + tokens) * dim
    patches = tokens * dim * 4 * (8 + 8)
    timestep = (256 + dim) * dim + dim * 6 * dim
    assert count_flop(dit, (4, 8, 12)) == 2 * (linear + attention + patches + timestep)


def test_flop_of_the_published_model():
    with torch.device("meta"):
        refiner = build_part(load_config("configs/s1024.effn-f32.py"), "refiner")
    assert count_flop(refiner, (8, 128, 128)) == pytest.approx(101e12, rel=0.01)


def test_warm_up_runs_are_not_counted():
    calls = []
    result = Timer(torch.device("cpu"), warmup=3, repeat=2)(lambda: calls.append(None))
    assert (len(calls), len(result["runs"])) == (5, 2)


def test_the_sampler_is_the_configs_unless_given(measure, config):
    config.write_text(config.read_text() + 'reconstruct = dict(sampler="ddim", steps=3)\n')
    result, _ = measure()
    assert (result["sampler"], result["steps"]) == ("ddim", 2)  # the steps are given
    assert measure("--sampler", "euler")[0]["sampler"] == "euler"


def test_an_unknown_sampler_is_refused(config, capsys):
    error = Commands(config, capsys).refused("benchmark", config, "--sampler", "eular_a")
    assert "euler_a" in error
