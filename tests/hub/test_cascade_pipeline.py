"""The cascade as a pipeline of diffusers."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from cascadev import CascadePipeline, LowRank, UserError, WeightsError
from diffusion.config import load_config
from diffusion.models.low_rank import layers_of
from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.pipelines.cascade_folder import save_cascade


@pytest.fixture(scope="module")
def cascade(tiny_config):
    return build_cascade(load_config(tiny_config))


@pytest.fixture(scope="module")
def folder(cascade, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_cascade(cascade, load_config(tiny_config), folder)
    return folder


@pytest.fixture
def pipe(folder):
    pipe = CascadePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def video():
    return 2 * torch.rand(1, 3, 5, 40, 36, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture
def latents():
    return torch.randn(1, 16, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """But for kernels that depend on how values lie in memory."""
    return torch.allclose(one, other, atol=1e-4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_the_cascade(pipe, cascade, video):
    latents = pipe.encode(video)
    assert same(latents, cascade.encode(video))
    assert same(pipe.preview(latents), cascade.preview(latents))
    short = pipe.decode(latents, num_inference_steps=2).frames
    assert same(short, cascade.decode(latents, steps=2))
    assert same(pipe(video).frames, cascade.reconstruct(video))
    assert same(pipe(video, return_dict=False)[0], cascade.reconstruct(video))


def test_saved_and_loaded(pipe, latents, tmp_path):
    wanted = pipe.decode(latents, num_inference_steps=2).frames
    pipe.save_pretrained(tmp_path / "mine", variant="fp16")
    index = json.loads((tmp_path / "mine" / "model_index.json").read_text())
    assert index["vae"] == ["cascadev", "CompactVAE"]
    assert "_name_or_path" not in index
    loaded = CascadePipeline.from_pretrained(tmp_path / "mine", variant="fp16")
    loaded.set_progress_bar_config(disable=True)
    assert same(loaded.decode(latents, num_inference_steps=2).frames, wanted)


def test_diffusers_finds_the_pipeline_in_a_folder_that_carries_it(
    folder, pipe, latents, monkeypatch
):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is CascadePipeline
    loaded.set_progress_bar_config(disable=True)
    assert same(
        loaded.decode(latents, num_inference_steps=1).frames,
        pipe.decode(latents, num_inference_steps=1).frames,
    )


def test_our_own_class_runs_nothing_of_the_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise SystemExit")
    CascadePipeline.from_pretrained(tmp_path)


def test_a_change_of_low_rank_is_made_once(pipe, folder, latents, tmp_path):
    before = pipe.decode(latents, num_inference_steps=1).frames
    decoder = pipe.vae.get_submodule("decoder")
    change = LowRank.beside(decoder, 2, layers_of(decoder, torch.nn.Conv2d))
    for parameter in change.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    changed = CascadePipeline.from_pretrained(folder, decoder_change=change)
    changed.set_progress_bar_config(disable=True)
    wanted = changed.decode(latents, num_inference_steps=1).frames
    assert not same(wanted, before)
    changed.save_pretrained(tmp_path)
    again = CascadePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert same(again.decode(latents, num_inference_steps=1).frames, wanted)


# Steps.


def test_schedulers_are_exchanged(pipe, cascade, latents):
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    decoded = pipe.decode(latents, num_inference_steps=3).frames
    assert same(decoded, cascade.decode(latents, steps=3, sampler="ddim"))


def test_the_noise_is_the_generators(pipe, latents):
    first, again, other = (
        pipe.decode(latents, num_inference_steps=1, generator=seeded(seed)).frames
        for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert not same(first, other)


def test_a_callback_sees_every_step_and_may_change_it(pipe, latents):
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), tensors["latents"].shape))
        return tensors

    untouched = pipe.decode(latents, num_inference_steps=3, callback_on_step_end=look).frames
    assert same(untouched, pipe.decode(latents, num_inference_steps=3).frames)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert [time for _, time, _ in seen] == sorted((time for _, time, _ in seen), reverse=True)
    assert {shape for _, _, shape in seen} == {(1, 4, 5, 8, 8)}

    def clear(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    cleared = pipe.decode(latents, num_inference_steps=3, callback_on_step_end=clear).frames
    assert not same(cleared, untouched)

    def too_small(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"][:, :, :1]}

    with pytest.raises(UserError, match="cannot take its place"):
        pipe.decode(latents, num_inference_steps=2, callback_on_step_end=too_small)
    with pytest.raises(UserError, match="is given 'latents'"):
        pipe.decode(latents, callback_on_step_end_tensor_inputs=["noise"])


def test_long_videos_come_piece_by_piece(pipe):
    latents = torch.randn(1, 16, 41, 1, 1, generator=seeded(0))
    wanted = pipe.decode(latents, num_inference_steps=2).frames
    asked = []

    def pieces():
        for piece in latents.split(4, dim=2):
            asked.append(piece.shape[2])
            yield piece

    stream = pipe.decode_stream(pieces(), 41, num_inference_steps=2)
    first = next(stream)
    assert sum(asked) < 41  # not all was read for the first frames
    torch.testing.assert_close(torch.cat([first, *stream], dim=2), wanted)


def test_progress_is_diffusers(pipe, latents, capsys):
    pipe.set_progress_bar_config(desc="restoring", file=sys.stdout)
    pipe.decode(latents, num_inference_steps=2)
    assert "restoring: 100%" in capsys.readouterr().out


# Devices and number formats.


def test_the_precision_is_the_refiners(folder, latents):
    pipe = CascadePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.dtype, pipe.refiner.dtype, pipe.vae.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    assert pipe.decode(latents, num_inference_steps=1).frames.dtype == torch.float32
    assert CascadePipeline.from_pretrained(folder, torch_dtype="fp16").dtype == torch.float16
    assert pipe.to(torch.float32).dtype == torch.float32


def test_networks_that_hooks_move_are_called_themselves(pipe, latents, video):
    """As in enable_model_cpu_offload, which this machine may have no accelerator for."""
    from accelerate import cpu_offload_with_hook

    wanted = pipe(video, num_inference_steps=1).frames
    moved = []
    for name in ("compressor", "previewer", "vae", "refiner"):
        network = getattr(pipe, name)
        _, hook = cpu_offload_with_hook(network, "cpu")
        move = hook.hook.pre_forward
        hook.hook.pre_forward = lambda module, *args, name=name, move=move, **kwargs: (
            moved.append(name) or move(module, *args, **kwargs)
        )
    torch.testing.assert_close(pipe(video, num_inference_steps=1).frames, wanted)
    assert set(moved) == {"compressor", "previewer", "vae", "refiner"}


# What goes in and out.


def test_whatever_shows_a_video(pipe, clip):
    from_file = pipe.encode(clip)
    frames = pipe.decode(from_file[:, :, :2], num_inference_steps=1, output_type="np").frames
    assert frames.shape[:2] == (1, 2)
    assert frames.dtype == np.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    (pictures,) = pipe.decode(from_file[:, :, :2], num_inference_steps=1, output_type="pil").frames
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    from_pictures = pipe.encode(pictures)
    levels = np.stack([np.asarray(picture) for picture in pictures])
    assert same(from_pictures, pipe.encode(levels))
    assert same(from_pictures, pipe.encode(torch.from_numpy(levels).permute(3, 0, 1, 2)))
    tensor = torch.from_numpy(levels).permute(3, 0, 1, 2)[None] / 127.5 - 1
    torch.testing.assert_close(from_pictures, pipe.encode(tensor))
    torch.testing.assert_close(from_pictures, pipe.encode(levels / np.float32(255)))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (torch.zeros(1, 4, 2, 32, 32), r"\(B, 3, F, H, W\) or \(3, F, H, W\), not \(1, 4"),
        (torch.full((3, 2, 32, 32), 255.0), r"in \[-1, 1\]; this one has values from 255"),
        (np.full((2, 32, 32, 3), 255.0), r"in \[0, 1\]; this one has values from 255"),
        (np.zeros((3, 2, 32, 32)), r"\(B, F, H, W, 3\) or \(F, H, W, 3\)"),
        (torch.zeros(3, 2, 32, 32, dtype=torch.int64), "uint8 or floating point"),
        (3, "not a int"),
        ([], "not a list"),
        ([Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))], "2 different sizes"),
        ("missing.mp4", "missing.mp4"),
    ],
)
def test_what_is_no_video(pipe, wrong, match):
    with pytest.raises(UserError, match=match):
        pipe.encode(wrong)


def test_one_line_for_what_cannot_be(pipe, folder, latents, tmp_path):
    with pytest.raises(UserError, match="output_type='gif' is not one of pt, np, pil"):
        pipe.decode(latents, output_type="gif")
    with pytest.raises(UserError, match="0 sampling steps"):
        pipe.decode(latents, num_inference_steps=0)
    with pytest.raises(WeightsError, match=r"holds no model_index.json"):
        CascadePipeline.from_pretrained(tmp_path)
    with pytest.raises(WeightsError) as caught:
        CascadePipeline.from_pretrained(folder, variant="fp16")
    assert len(str(caught.value).splitlines()) == 1
