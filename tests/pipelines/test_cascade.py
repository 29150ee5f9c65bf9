from dataclasses import fields, replace

import golden_data
import pytest
import recipe
import torch
from golden_data import to_frames, to_video
from golden_dit import build_dit

from diffusion.data.transforms import to_float
from diffusion.models import (
    CompactCompressor,
    CompactPreviewer,
    CompactVAE,
    Previewer,
    SemanticCompressor,
    VideoDiT,
    VideoVAE,
)
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.samplers import build_sampler
from diffusion.noise.sampling import Sampling
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.cut_options import TileSizes, Windows
from diffusion.pipelines.networks import Networks
from diffusion.utils.errors import ConfigError, UserError
from diffusion.utils.progress import displayed

EULER_NOISE = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"


# The published chain, stage by stage: each gets the golden input, as its README asks.


@pytest.fixture(scope="module")
def published() -> tuple[dict, dict[str, torch.Tensor], Cascade]:
    meta, t = golden_data.load("e2e_eulera")
    entries = meta["weights"]
    parts = {
        "compressor": (SemanticCompressor(), entries["evae"]["enc"]),
        "previewer": (Previewer(), entries["evae"]["dec"]),
        "vae": (VideoVAE(decode_chunk=4, decode_overlap=0), entries["tvae"]),
    }
    for module, entry in parts.values():
        module.load_state_dict(golden_data.case_weights(entry))
    refiner = build_dit(meta | {"weights": entries["dit"]})
    pipeline = Cascade(
        Networks(refiner=refiner, **{name: module for name, (module, _) in parts.items()}),
        noise=GaussianDiffusion(learned_variance=True),
        conditioning=Conditioning(upsampling=4, scale=meta["scale_factor"]),
        windows=Windows(published=True),
        tiles=TileSizes(tile=16, published=True),
        sampling=Sampling(published=True),
    )
    return meta, t, pipeline


def check(published, name: str, got: torch.Tensor) -> None:
    meta, t, _ = published
    assert golden_data.relative_error(got, t[name]) <= recipe.tolerance(meta, name)


def test_published_encoding(published):
    _, t, pipeline = published
    check(published, "evae_latents", pipeline.encode(to_float(t["video_u8_fhwc"])[None]))


def test_published_preview(published):
    _, t, pipeline = published
    check(published, "preview", pipeline.preview(t["evae_latents"])[..., ::2, ::2])


def test_published_condition(published):
    _, t, pipeline = published
    joined = pipeline.conditioning.join(t["evae_latents"], None)
    check(published, "z_ref", to_frames(joined)[:, ::3])


def test_published_restoration(published, golden_frequencies, monkeypatch):
    meta, t, pipeline = published
    recorded = iter(t["step_noise"])
    monkeypatch.setattr(EULER_NOISE, lambda *_, **__: next(recorded))
    restored = pipeline.restore(
        t["evae_latents"], steps=meta["steps"], noise=to_video(t["z"], num_frames=8)
    )
    # ours are model-ready; the published ones were divided by the scale already
    check(published, "refined_latents", restored / meta["scale_factor"])


def test_published_decoding(published):
    meta, t, pipeline = published
    decoded = pipeline.vae.decode(t["decoder_input"] * meta["scale_factor"])
    check(published, "reconstruction", decoded[..., ::4, ::4])


# Any clip, on a tiny compact cascade with random weights.


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Weights without the zeros of an untrained network, so that every layer matters."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module


def tiny_networks() -> Networks:
    one = {"depths": (1, 1, 1), "channels": (8, 8, 8)}
    refiner = VideoDiT(
        condition_channels=20,
        hidden_size=24,
        depth=3,
        num_heads=2,
        learned_variance=False,
        grids=[[1, 2], [2, 1], None],
    )
    vae = CompactVAE(
        encoder_channels=(8, 8),
        encoder_depths=(1, 1),
        decoder_channels=(8, 8),
        decoder_depths=(1, 1),
    )
    parts = (CompactCompressor(**one), CompactPreviewer(**one), vae, refiner)
    return Networks(*map(randomise, parts))


def tiny_cascade(networks: Networks | None = None, **options) -> Cascade:
    """options: arguments of Cascade, or the windows' and tiles' own."""
    cuts: dict[str, dict] = {"windows": {"window": 4, "window_overlap": 2}, "tiles": {}}
    for name, kind in (("windows", Windows), ("tiles", TileSizes)):
        cuts[name] |= {f.name: options[f.name] for f in fields(kind) if f.name in options}
    published = options.pop("published", False)
    options = {k: v for k, v in options.items() if not any(k in cut for cut in cuts.values())}
    return Cascade(
        networks or tiny_networks(),
        windows=Windows(**cuts["windows"]),
        tiles=TileSizes(**cuts["tiles"]),
        **{
            "sampling": Sampling(published=published),
            "noise": GaussianDiffusion(prediction_type="v_prediction"),
            "conditioning": Conditioning(upsampling=4, residual_std=(1.0, 0.5, 2.0, 1.0)),
        }
        | options,
    )


def random_video(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64, 96), (4, 33, 47), (5, 100, 64), (9, 64, 64)])
def test_reconstruction_has_the_size_of_the_video(size):
    video = random_video(*size)
    out = tiny_cascade().reconstruct(video, steps=1)
    assert out.shape == video.shape
    assert out.abs().max() <= 1
    assert out.isfinite().all()


def test_same_seed_same_result_and_other_seed_another():
    pipeline, latents = tiny_cascade(), torch.randn(1, 16, 2, 2, 2)
    first = pipeline.decode(latents, steps=2, seed=3)
    assert torch.equal(first, pipeline.decode(latents, steps=2, seed=3))
    assert not torch.equal(first, pipeline.decode(latents, steps=2, seed=4))


def test_a_preview_at_hand_changes_nothing():
    pipeline, latents = tiny_cascade(), torch.randn(1, 16, 2, 2, 2)
    preview = pipeline.preview(latents)
    given = pipeline.restore(latents, steps=1, preview=preview)
    assert torch.equal(given, pipeline.restore(latents, steps=1))


def test_one_tile_over_the_clip_equals_no_tiles():
    latents = torch.randn(1, 16, 2, 3, 2)
    tiled = tiny_cascade(tile=12).restore(latents, steps=2)
    assert torch.equal(tiled, tiny_cascade().restore(latents, steps=2))


def test_tiles_cover_every_position():
    """With a refiner that returns its condition's base, tiles must blend to exactly that."""
    pipeline = tiny_cascade(tile=8, tile_overlap=4)
    seen = []

    def predict_condition(x_t, t, condition, image_mode):
        seen.append(tuple(x_t.shape[-2:]))
        return condition[:, :4]

    pipeline.refiner.forward = predict_condition
    condition = torch.randn(1, 20, 4, 20, 12)
    units = [(torch.randn(1, 4, 4, 20, 12), condition)]
    (out,) = pipeline.tiled.predict(units, torch.tensor(500), 4, image_mode=False)
    torch.testing.assert_close(out, condition[:, :4])
    assert set(seen) == {(8, 8)}
    assert len(seen) > 4


def published_prediction(net, x_t: torch.Tensor, tile: int) -> torch.Tensor:
    """The published rule: from the corner on in steps of 3/4 of a tile, the last tile moved back to
    end with the frame; each overwrites what was there."""
    out, step = torch.zeros_like(x_t), round(0.75 * tile)
    height, width = x_t.shape[-2:]
    for top in [*range(0, height - tile, step), height - tile]:
        for left in [*range(0, width - tile, step), width - tile]:
            region = (..., slice(top, top + tile), slice(left, left + tile))
            out[region] = net(region)
    return out


@pytest.mark.parametrize("size", [(5, 9), (7, 4), (6, 5)])  # of semantic latents
def test_published_tiles_cut_sides_that_the_grids_do_not_divide(size):
    """Latents of odd multiples of 4, in tiles of 16 of a network that takes multiples of 8."""
    refiner = randomise(VideoDiT(hidden_size=24, depth=2, num_heads=2, grids=[[1, 4], None])).eval()
    networks = replace(tiny_networks(), refiner=refiner)
    assert refiner.size_multiple[1:] == (8, 8)
    pipeline = tiny_cascade(
        networks,
        noise=GaussianDiffusion(learned_variance=True),
        conditioning=Conditioning(upsampling=4, scale=0.13),
        tile=16,
        published=True,
    )
    latents = torch.randn(1, 16, 4, *size)
    noise = torch.randn(1, 4, 4, *(4 * side for side in size))
    restored = pipeline.restore(latents, steps=2, sampler="ddim", noise=noise)

    sampler = build_sampler("ddim", num_inference_steps=2, published=True)
    condition, x_t = pipeline.conditioning.join(latents, None), noise
    with torch.no_grad():
        for t in sampler.timesteps:

            def net(region, x_t=x_t, t=t):
                return refiner(x_t[region], t.view(1), condition[region])[:, :4]

            x_t = sampler.step(published_prediction(net, x_t, 16), t, x_t).prev_sample
    torch.testing.assert_close(restored, x_t, rtol=0, atol=1e-5)


def test_a_single_frame_is_restored_as_an_image():
    pipeline = tiny_cascade()
    modes = []
    forward = pipeline.refiner.forward

    def recorded(*args, image_mode, **options):
        modes.append(image_mode)
        return forward(*args, image_mode=image_mode, **options)

    pipeline.refiner.forward = recorded
    for frames in (1, 2):
        pipeline.restore(torch.randn(1, 16, frames, 2, 2), steps=1)
    assert modes == [True, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 3}, "cascade.window=3 does not fit this model; use a multiple of 2"),
        ({"window_overlap": 4}, "window_overlap=4 must be 0 to 3"),
        ({"window_overlap": -1}, "window_overlap=-1 must be 0 to 3"),
        ({"window": 1, "window_overlap": 0, "published": True}, "published windows need window=2"),
        ({"tile": 6}, "cascade.tile=6 does not fit this model; use a multiple of 4"),
        ({"tile": 0}, "tile=0 must be at least 1, or None"),
        ({"tile_overlap": -1, "tile": 8}, "tile_overlap=-1 must be at least 0"),
        ({"tile_overlap": 8, "tile": 8}, "tile_overlap=8 must be less than tile=8"),
        ({"tile_overlap": 7, "tile": 8}, "cascade.tile_overlap=7 does not fit .* use at most 6"),
        ({"vae_tile": 0}, "vae_tile=0 must be at least 1, or None"),
        ({"memory_gb": 0}, "memory_gb=0 must be above 0, or None"),
    ],
)
def test_windows_and_tiles_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        tiny_cascade(**options)


def test_frames_too_small_to_pad_are_refused():
    with pytest.raises(UserError, match="too small"):
        tiny_cascade().encode(random_video(1, 16, 64))


def test_low_precision_stays_close():
    latents = torch.randn(1, 16, 2, 2, 2)
    exact = tiny_cascade().decode(latents, steps=1)
    low = tiny_cascade(dtype=torch.bfloat16).decode(latents, steps=1)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).abs().mean() < 0.05


def test_conditioning_inverts():
    conditioning = Conditioning(upsampling=4, residual_std=(1.0, 0.5, 2.0, 1.0))
    latents, base = torch.randn(2, 1, 4, 3, 8, 8)
    x0 = conditioning.to_x0(latents, base)
    torch.testing.assert_close(conditioning.from_x0(x0, base), latents)
    torch.testing.assert_close(x0[:, 1], (latents - base)[:, 1] / 0.5)


@pytest.mark.parametrize("length", [1, 3, 4, 11, 20])
@pytest.mark.parametrize("chunk", [1, 5])
def test_streams_give_what_whole_clips_give(length, chunk):
    pipeline, latents = tiny_cascade(), torch.randn(1, 16, length, 2, 3)
    whole = pipeline.restore(latents, steps=3, seed=5)
    pieces = ((part, None) for part in latents.split(chunk, dim=2))
    stream = pipeline.restore_stream(pieces, length, steps=3, seed=5)
    # the previewer rounds differently for another number of frames
    torch.testing.assert_close(torch.cat(list(stream), dim=2), whole)
    decoded = pipeline.decode_vae_stream(whole.split(chunk, dim=2), length)
    assert torch.equal(torch.cat(list(decoded), dim=2), pipeline.decode_vae(whole))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("finished", [0, 1, 5, 8, 9])
def test_a_stream_continues_after_what_is_finished(finished, published):
    pipeline, latents = tiny_cascade(published=published), torch.randn(1, 16, 20, 2, 2)
    options = {"steps": 2, "sampler": "euler_a", "seed": 1}
    whole = list(pipeline.restore_stream([(latents, None)], 20, **options))
    assert len(whole) == 9
    calls = []
    pipeline.refiner.register_forward_hook(lambda *_: calls.append(None))
    kept = [segment.clone() for segment in whole[:finished]]
    again = list(pipeline.restore_stream([(latents, None)], 20, finished=kept, **options))
    assert len(again) == 9
    for i, (a, b) in enumerate(zip(again, whole, strict=True)):
        assert torch.equal(a, b)
        assert (i < min(finished, 8)) == any(a is segment for segment in kept)
    # two steps look two windows back
    assert len(calls) == 2 * (9 - max(0, min(finished, 8) - 2))


def test_a_caller_is_told_of_every_step():
    pipeline, latents, told = tiny_cascade(), torch.randn(1, 16, 7, 2, 2), []
    restored = pipeline.restore(latents, steps=3, on_step=told.append)
    assert len(told) == 3 * len(pipeline.time_spans(7).segments)
    for index in range(3):  # every frame takes every step once, in order
        frames = [frame for step in told if step.index == index for frame in step.frames]
        assert frames == list(range(7))
    for step in told:
        assert step.count == 3
        assert step.x.shape == (1, 4, len(step.frames), 8, 8)
    x0 = torch.cat([step.x for step in told if step.index == 2], dim=2)
    base = pipeline.base(latents)
    torch.testing.assert_close(pipeline.conditioning.from_x0(x0, base), restored)


def test_who_is_told_can_stop_it():
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_cascade().reconstruct(random_video(2, 64, 64), on_step=stop)


def test_progress_is_shown_by_steps():
    shown = []

    def display(items):
        items = list(items)
        for item in items:
            yield item
            if len(items) == 9:  # of the sampler: 3 steps of 3 stretches
                shown.append(item)

    with displayed(display):
        tiny_cascade().restore(torch.randn(1, 16, 7, 2, 2), steps=3)
    assert shown == list(range(9))


def test_a_call_that_says_nothing_samples_as_the_pipeline_was_told():
    latents = torch.randn(1, 16, 2, 2, 2)
    usual = tiny_cascade().decode(latents)
    assert torch.equal(usual, tiny_cascade().decode(latents, steps=8, sampler="euler_a"))
    told = tiny_cascade(sampling=Sampling("ddim", 3))
    wanted = tiny_cascade().decode(latents, steps=3, sampler="ddim")
    assert torch.equal(told.decode(latents), wanted)
    assert torch.equal(told.decode(latents, steps=8, sampler="euler_a"), usual)
    video = random_video(2, 64, 64)
    shown = told.decode(told.encode(video), steps=3, sampler="ddim")
    assert torch.equal(told.reconstruct(video), shown)


@pytest.mark.parametrize(
    ("prediction_type", "suited"),
    [("sample", "ddim"), ("flow_prediction", "euler"), ("v_prediction", "euler_a")],
)
def test_a_sampler_that_suits_the_model_is_chosen(prediction_type, suited):
    pipeline = tiny_cascade(noise=GaussianDiffusion(prediction_type=prediction_type))
    assert pipeline.sampling.sampler == suited
    assert pipeline.restore(torch.randn(1, 16, 2, 2, 2), steps=2).isfinite().all()


def test_a_sampler_that_cannot_follow_the_model_is_refused():
    noise = GaussianDiffusion(prediction_type="sample")
    with pytest.raises(ConfigError, match="cannot follow prediction_type 'sample'; use 'ddim'"):
        tiny_cascade(noise=noise, sampling=Sampling("euler_a"))
    with pytest.raises(ConfigError, match="cannot follow prediction_type 'sample'; use 'ddim'"):
        tiny_cascade(noise=noise).restore_stream([], 1, sampler="euler_a")  # before it is asked on
    with pytest.raises(ConfigError, match="1001 sampling steps asked for; use 1 to 1000"):
        tiny_cascade().restore_stream([], 1, steps=1001)
