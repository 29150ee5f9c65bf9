import logging
from pathlib import Path

import pytest
import torch

from diffusion.config import load_config
from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.video_vae import VideoVAE
from diffusion.models.weights import load_weights, save_weights
from diffusion.pipelines.cascade_builder import build_cascade, build_noise, build_part
from diffusion.training.draws import Draws
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.refiner_stage import JointStage, RefinerStage, sample_posterior
from diffusion.training.trainer_builder import conditioning_of
from diffusion.utils.errors import ConfigError, WeightsError

# What the published recipe trains: noise and variance, on the latents themselves.
PUBLISHED = (
    "conditioning.residual_std=None",
    "refiner.condition_channels=16",
    "refiner.learned_variance=True",
    "noise.learned_variance=True",
    "noise.prediction_type=epsilon",
    "refiner.gradient_checkpointing=True",
)


def config_of(path, *overrides):
    return load_config(path, overrides)


def refiner_of(config, seed: int = 0):
    """With weights that are the same each time, none of them zero."""
    torch.manual_seed(seed)
    refiner = build_part(config, "refiner")
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return refiner


def teacher_file(config, folder: Path) -> str:
    """Weights that no stage starts from by itself."""
    save_weights(refiner_of(config, seed=1), folder / "teacher.safetensors", {"part": "refiner"})
    return str(folder / "teacher.safetensors")


def stage_of(config, kind=RefinerStage, **options):
    return kind(
        refiner=refiner_of(config),
        noise=build_noise(config),
        conditioning=conditioning_of(config),
        networks=FrozenNetworks(config),
        **options,
    )


def video_batch(count: int = 2, frames: int = 2, side: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, frames, 4, 4, generator=generator) * 2 - 1
    video = torch.nn.functional.interpolate(coarse, (frames, side, side), mode="trilinear")
    return Batch(video, [f"{i}.mp4" for i in range(count)])


def latent_batch(count: int = 2, frames: int = 8, side: int = 4, base: bool = True) -> LatentBatch:
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (count, 4, frames, 4 * side, 4 * side), (count, 16, frames, side, side)
    target, other = torch.randn(2, *fine, generator=generator).unbind()
    semantic = torch.randn(coarse, generator=generator)
    return LatentBatch(target, semantic, other if base else None, ["a"] * count)


def draws(step: int = 0, first: int = 0, count: int = 2) -> Draws:
    return Draws(seed=0, step=step, first=first, count=count)


def gradients(module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


# What it trains on.


@pytest.mark.parametrize("published", [False, True])
def test_videos_train_like_the_latents_that_the_pipeline_makes_of_them(tiny_config, published):
    config = config_of(tiny_config, *(PUBLISHED if published else ()))
    stage = stage_of(config)
    videos = video_batch()
    pipeline = build_cascade(config, only=("compressor", "previewer", "vae"))
    semantic = pipeline.encode(videos.video)
    latents = LatentBatch(
        pipeline.encode_vae(videos.video), semantic, pipeline.base(semantic), videos.sources
    )
    from_videos, from_latents = (
        stage.loss(batch, draws())["loss_diffusion"] for batch in (videos, latents)
    )
    torch.testing.assert_close(from_videos, from_latents)


def test_frozen_networks_are_read_only_for_videos(tiny_config, tmp_path):
    config = config_of(tiny_config, f"weights.vae={tmp_path / 'no.safetensors'}")
    stage = stage_of(config)
    stage.loss(latent_batch(), draws())
    with pytest.raises(WeightsError, match=r"no\.safetensors: no such weights file"):
        stage.loss(video_batch(), draws())


def test_loading_a_frozen_network_leaves_the_random_numbers_alone(tiny_config):
    """A resumed run loads it at another step than the run that was not stopped."""
    before = torch.get_rng_state()
    FrozenNetworks(config_of(tiny_config)).get("vae", torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_refiner_is_a_part_of_the_stage(tiny_config):
    stage = stage_of(config_of(tiny_config))
    stage.loss(video_batch(), draws())["loss_diffusion"].backward()
    assert list(stage.parts) == ["refiner"]
    assert all(key.startswith("parts.refiner.") for key in stage.state_dict())
    stage.train()
    for name in ("compressor", "previewer", "vae"):
        network = stage.networks.get(name, torch.device("cpu"))
        assert not network.training
        assert all(p.grad is None for p in network.parameters())


def svd_vae() -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(block_out_channels=(32, 32), layers_per_block=1, shift_factor=0.1).eval()


def test_posterior_samples_are_those_of_the_clips_whichever_process_draws_them(tiny_config):
    compact = stage_of(config_of(tiny_config)).networks.get("vae", torch.device("cpu"))
    video = video_batch(side=32).video
    for vae in (compact, svd_vae()):
        with torch.no_grad():
            mean = vae.encode(video)
            whole = sample_posterior(vae, video, draws())
            halves = [
                sample_posterior(vae, video[i : i + 1], draws(first=i, count=1)) for i in range(2)
            ]
        torch.testing.assert_close(whole, torch.cat(halves), atol=1e-4, rtol=1e-4)
        noise = draws().normal(mean)
        correlation = torch.corrcoef(torch.stack([(whole - mean).flatten(), noise.flatten()]))
        assert correlation[0, 1] > 0.9


def test_the_spread_of_posterior_samples_is_the_vaes(tiny_config):
    vae = svd_vae()
    video = video_batch(side=32).video
    with torch.no_grad():
        sampled = torch.stack([sample_posterior(vae, video, draws(step)) for step in range(60)])
        spread = vae.posterior(video)[1] * vae.scaling_factor
        middle = vae.encode(video)
    assert (sampled.std(0) / spread).mean().item() == pytest.approx(1, abs=0.02)
    assert ((sampled.mean(0) - middle) / spread).mean().item() == pytest.approx(0, abs=0.02)


def test_posterior_sampling_is_an_option(tiny_config):
    config, videos = config_of(tiny_config), video_batch()
    encoded = [
        stage_of(config, sample_posterior=sampled).encode(videos, draws())
        for sampled in (False, True)
    ]
    assert not torch.equal(encoded[0].target, encoded[1].target)
    assert torch.equal(encoded[0].semantic, encoded[1].semantic)


# What it learns.


def test_the_published_loss_is_noise_and_variance(tiny_config):
    """The hybrid loss by hand, with gradient checkpointing giving the same gradients."""
    found = []
    for checkpointing in (True, False):
        config = config_of(tiny_config, *PUBLISHED)
        config.refiner.gradient_checkpointing = checkpointing
        stage = stage_of(config, image_share=0.0).train()
        batch = latent_batch(base=False)
        loss = stage.loss(batch, draws())["loss_diffusion"]
        loss.backward()
        found.append(gradients(stage.parts))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

    source = draws()
    t, noise = stage.noise.times(source.uniform()), source.normal(batch.target)
    x_t = stage.noise.add_noise(batch.target, noise, t)
    condition = stage.conditioning.join(batch.semantic, None)
    prediction = stage.parts["refiner"](x_t, t, condition)
    assert prediction.shape[1] == 8
    terms = stage.noise.training_loss(prediction, batch.target, noise, t)
    torch.testing.assert_close(loss, (terms.mse + terms.vb).mean())
    assert (terms.vb > 0).all()


@pytest.mark.parametrize(
    "objective",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction", "min_snr_gamma": 5.0},
        {"prediction_type": "flow_prediction", "time_distribution": "logit_normal"},
    ],
)
def test_every_objective_is_learned(tiny_config, objective):
    config = config_of(tiny_config)
    config.noise.update(objective)
    stage = stage_of(config)
    optimizer = torch.optim.AdamW(stage.parts.parameters(), lr=3e-3)
    batch, losses = latent_batch(frames=2), []
    for step in range(30):
        loss = stage.loss(batch, draws(step % 5))["loss_diffusion"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize(
    "options", [{}, {"latent_crop": 8}, {"latent_crop": 8, "multi_scale": True}]
)
def test_two_processes_learn_what_one_does(tiny_config, options):
    stage = stage_of(config_of(tiny_config), position_range=(2, 4, 4), **options)
    whole = latent_batch(count=4)
    for step in range(4):
        wanted = stage.loss(whole, draws(step, count=4))["loss_diffusion"]
        halves = [
            stage.loss(
                LatentBatch(whole.target[half], whole.semantic[half], whole.base[half], ["a", "a"]),
                draws(step, first=half.start),
            )["loss_diffusion"]
            for half in (slice(0, 2), slice(2, 4))
        ]
        torch.testing.assert_close(sum(halves) / 2, wanted)


def test_both_scales_reach_the_refiner(tiny_config):
    config = config_of(tiny_config, "refiner.position_interpolation=1.5")
    stage = stage_of(config, latent_crop=8, multi_scale=True, image_share=0.0)
    seen = set()

    def look(module, inputs, options):
        x_t, t, condition = inputs
        assert len(t.unique()) == len(x_t) == 8  # one time for each piece
        assert condition.shape[2:] == x_t.shape[2:]
        seen.add((*x_t.shape[2:], options["position_interpolation"]))

    stage.parts["refiner"].register_forward_pre_hook(look, with_kwargs=True)
    for step in range(8):
        assert stage.loss(latent_batch(), draws(step))["loss_diffusion"].isfinite()
    assert seen == {(8, 8, 8, 1.5), (2, 16, 16, 3.0)}


def test_settings_that_cannot_work_are_refused(tiny_config):
    config = config_of(tiny_config)
    with pytest.raises(ConfigError, match="multi_scale needs latent_crop"):
        stage_of(config, multi_scale=True)
    config.noise.learned_variance = True
    with pytest.raises(ConfigError, match=r"learned_variance=True but refiner\.learned_variance"):
        stage_of(config)


# What it starts from.


def test_starting_from_weights_that_know_fewer_channels(tiny_config, tmp_path, caplog):
    config = config_of(
        tiny_config, "refiner.condition_channels=16", "conditioning.residual_std=None"
    )
    narrow = stage_of(config).parts["refiner"]
    torch.save({"state_dict": narrow.state_dict(), "epoch": 1}, tmp_path / "published.pth")
    stage = stage_of(config_of(tiny_config), init_from=str(tmp_path / "published.pth"))
    wide = stage.parts["refiner"]
    before = wide.x_embedder.proj.weight.clone()
    with caplog.at_level(logging.INFO):
        stage.prepare(None)
    assert "4 of the 24 input channels are new and start at zero" in caplog.text
    assert not torch.equal(wide.x_embedder.proj.weight, before)
    x_t, condition, t = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 20, 2, 8, 8), torch.tensor([7])
    torch.testing.assert_close(wide(x_t, t, condition), narrow(x_t, t, condition[:, :16]))


def test_starting_from_equal_weights_says_nothing_of_new_channels(tiny_config, tmp_path, caplog):
    config = config_of(tiny_config)
    path = tmp_path / "refiner.safetensors"
    save_weights(stage_of(config).parts["refiner"], path, {})
    stage = stage_of(config, init_from=str(path))
    torch.nn.init.zeros_(stage.parts["refiner"].x_embedder.proj.weight)
    with caplog.at_level(logging.INFO):
        stage.prepare(None)
    assert stage.parts["refiner"].x_embedder.proj.weight.any()
    assert f"starting from {path}" in caplog.text
    assert "new" not in caplog.text


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("refiner.depth=3", "missing"),
        ("refiner.hidden_size=96", r"is \(48,\) but this VideoDiT needs \(96,\)"),
        ("refiner.condition_channels=12", r"x_embedder.proj.weight is \(48, 24, 2, 2\)"),
    ],
)
def test_weights_of_another_model_are_refused(tiny_config, override, problem):
    config = config_of(tiny_config, override)
    if "channels" in override:
        config.conditioning.residual_std = None
    source = str(tiny_config.parent / "refiner.safetensors")
    with pytest.raises(WeightsError, match=problem) as caught:
        stage_of(config, init_from=source).prepare(None)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)


# What it shows.


def test_reconstruction_is_that_of_the_pipeline_with_the_given_refiner(tiny_config):
    config = config_of(tiny_config)
    stage = stage_of(config)
    refiner = build_part(config, "refiner")
    load_weights(refiner, tiny_config.parent / "refiner.safetensors")
    refiner.requires_grad_(False)
    video = video_batch(count=1, side=70).video
    shown = stage.reconstruct({"refiner": refiner}, video)
    assert torch.equal(shown, build_cascade(config).reconstruct(video))
    assert shown.shape == video.shape
    assert not torch.equal(shown, stage.reconstruct(stage.parts, video))


def test_reconstruction_leaves_networks_in_training_alone(tiny_config):
    stage = stage_of(config_of(tiny_config)).train()
    shown = stage.reconstruct(stage.parts, video_batch(count=1).video)
    assert not shown.requires_grad
    assert all(p.requires_grad for p in stage.parts.parameters())
    assert all(module.training for module in stage.parts.modules())


def test_a_flow_is_reconstructed_by_a_sampler_that_can_follow_it(tiny_config):
    stage = stage_of(config_of(tiny_config, "noise.prediction_type=flow_prediction"))
    video = video_batch(count=1).video
    assert stage.reconstruct(stage.parts, video).isfinite().all()


# Training the compressor too.


def test_joint_training_moves_the_compressor_through_the_condition(tiny_config):
    stage = stage_of(config_of(tiny_config), JointStage)
    terms = stage.loss(video_batch(), draws())
    assert terms.keys() == {"loss_diffusion", "preview", "latents"}
    terms["loss_diffusion"].backward()
    assert any(p.grad.any() for p in stage.parts["compressor"].parameters())
    # The base that the refiner builds on is given, or the previewer would learn to fit it.
    assert all(p.grad is None for p in stage.parts["previewer"].parameters())
    stage.loss(video_batch(), draws())["preview"].backward()
    assert any(p.grad.any() for p in stage.parts["previewer"].parameters())


def test_joint_training_starts_from_the_configured_weights_and_improves(tiny_config):
    stage = stage_of(config_of(tiny_config), JointStage)
    before = stage.parts["compressor"].state_dict()
    stored = stage_of(config_of(tiny_config)).networks.fresh("compressor").state_dict()
    assert all(torch.equal(before[key], stored[key]) for key in stored)
    before = {key: value.clone() for key, value in before.items()}
    optimizer = torch.optim.AdamW(stage.parts.parameters(), lr=2e-3)
    totals = []
    for step in range(12):
        loss = sum(stage.loss(video_batch(), draws(step % 3)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-3:]) < sum(totals[:3])
    after = stage.parts["compressor"].state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_joint_training_reconstructs_with_its_own_compressor(tiny_config):
    config = config_of(tiny_config)
    stage = stage_of(config, JointStage)
    video = video_batch(count=1).video
    before = stage.reconstruct(stage.parts, video)
    with torch.no_grad():
        for parameter in stage.parts["compressor"].parameters():
            parameter += 0.1
    assert not torch.equal(stage.reconstruct(stage.parts, video), before)


def test_joint_training_needs_videos(tiny_config):
    with pytest.raises(ConfigError, match="its data must be videos"):
        stage_of(config_of(tiny_config), JointStage).loss(latent_batch(), draws())
