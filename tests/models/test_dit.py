import golden_data
import pytest
import torch
from golden_dit import build_dit, run_case

from diffusion.models.dit import VideoDiT
from diffusion.models.grid_attention import split_grid
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.utils.errors import ConfigError, UserError

# A LayerNorm epsilon of 1e-5 in place of 1e-6 costs 1.5e-5: a looser bound would let it pass.
PARITY = 1e-5


def forward_cases(*, slow: bool) -> list[str]:
    names = golden_data.cases("dit_forward")
    return [name for name in names if golden_data.INDEX["cases"][name]["slow"] == slow]


def tiny(**options) -> VideoDiT:
    """A small model with weights that do something everywhere."""
    options = {"hidden_size": 48, "depth": 3, "num_heads": 3, "condition_channels": 2} | options
    model = VideoDiT(**options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def tiny_inputs(batch: int = 2, size: tuple[int, int, int] = (4, 8, 8)):
    x_t, condition = torch.randn(batch, 4, *size), torch.randn(batch, 2, *size)
    return x_t, torch.linspace(10, 900, batch), condition


@pytest.mark.parametrize("name", forward_cases(slow=False))
def test_forward_matches_the_published_model(name, golden_frequencies):
    meta, t = golden_data.load(name)
    out = run_case(meta, t, build_dit(meta))
    assert golden_data.relative_error(out, t["out"]) <= PARITY


@pytest.mark.slow
@pytest.mark.parametrize("name", forward_cases(slow=True))
def test_the_production_model_matches(name, golden_frequencies):
    meta, t = golden_data.load(name)
    out = run_case(meta, t, build_dit(meta))
    assert golden_data.relative_error(out, t["out"]) <= PARITY


def test_intermediate_values_match(golden_frequencies):
    meta, taps = golden_data.load("dit_strided_l8_taps")
    meta, t = golden_data.load(meta["of"])
    model = build_dit(meta)
    seen = {}

    def see(name, module, slices, view):
        def hook(_, inputs, out):
            seen[name + "_in"], seen[name + "_out"] = view(inputs[0])[slices], view(out)[slices]

        module.register_forward_hook(hook)

    tokens = (slice(None, None, 3), slice(None, None, 11), slice(None, None, 37))
    groups = (slice(None, None, 2), slice(None, None, 9), slice(None, None, 37))
    see("x_embedder", model.x_embedder, tokens, lambda x: x.flatten(2, 3).flatten(0, 1))
    see("t_embedder", model.t_embedder, ..., lambda x: x.flatten(0, 1))
    see("t_block", model.t_block, ..., lambda x: x.flatten(0, 1))
    for i, (block, grid) in enumerate(zip(model.blocks, model.grids, strict=True)):
        see(f"block{i}", block, groups, lambda x, grid=grid: split_grid(x, grid))
    run_case(meta, t, model)

    names = {"x_embedder_out": "x_embedder", "t_embedder_out": "t_embedder_frames"}
    names["t_block_out"] = "t_block_video"
    names |= {f"block{i}_{end}": f"block{i}_{end}" for i in range(4) for end in ("in", "out")}
    for mine, golden in names.items():
        assert golden_data.relative_error(seen[mine], taps[golden]) <= PARITY, golden


@pytest.mark.parametrize("name", golden_data.cases("dit_train_step"))
def test_training_step_matches(name, golden_frequencies):
    meta, t = golden_data.load(name)
    model = build_dit(meta, gradient_checkpointing=True).train()
    process = GaussianDiffusion(learned_variance=True)
    scale = 0.13025 * 5
    x0, condition, noise = (golden_data.to_video(t[k], 8) for k in ("z", "x_ref", "noise"))
    times = t["t"].view(1, 8)
    x_t = process.add_noise(x0 * scale, noise, times)
    prediction = model(x_t, times, condition * scale, image_mode=meta["train_as_img"])

    def of_frames(x):
        return golden_data.to_video(golden_data.to_frames(x), 1)

    # one value per frame in the golden file: every frame as a video of its own
    terms = process.training_loss(
        of_frames(prediction), of_frames(x0 * scale), of_frames(noise), t["t"]
    )
    for key in ("loss", "mse", "vb"):
        assert golden_data.relative_error(getattr(terms, key), t[key]) <= 2e-5, key
    terms.loss.mean().backward()
    gradients = [p.grad.flatten() for _, p in sorted(model.named_parameters())]
    samples = [g[torch.linspace(0, len(g) - 1, 8).long()] for g in gradients]
    norms = torch.stack([g.double().norm() for g in gradients])  # float32 sums lose 1e-3
    assert golden_data.relative_error(norms, t["grad_norms"]) <= 2e-5
    assert golden_data.relative_error(torch.stack(samples), t["grad_samples"]) <= 8e-5


def test_published_keys_and_parameter_count():
    with torch.device("meta"):
        model = VideoDiT()
    table = golden_data.TABLES["pixart_xl_2_in20"]
    published = golden_data.recipe.load_keys(golden_data.FOLDER, "pixart_xl_2_in20")
    state = model.state_dict()
    assert {e["key"]: tuple(e["shape"]) for e in published} == {
        key: tuple(value.shape) for key, value in state.items()
    }
    assert sum(p.numel() for p in model.parameters()) == table["parameters"]


def test_size_multiple_is_what_grids_and_patches_demand():
    grids = [[1, 4], [4, 1], [6, 1], "spatial", "temporal", None]
    assert tiny(depth=6, grids=grids).size_multiple == (12, 8, 8)
    assert tiny(grids=None).size_multiple == (1, 2, 2)


@pytest.mark.parametrize("size", [(4, 8, 16), (8, 16, 8), (4, 24, 8)])
@pytest.mark.parametrize("grids", [None, [[1, 2], [2, 1], None], ["spatial", "temporal"]])
def test_any_multiple_works_square_or_not(size, grids):
    model = tiny(grids=grids)
    x_t, t, condition = tiny_inputs(size=size)
    assert model(x_t, t, condition).shape == (2, 8, *size)


def test_what_does_not_fit_names_the_multiple():
    model = tiny(grids=[[1, 4], [4, 1], None])
    with pytest.raises(UserError, match=r"4x12x8 .* 4x8x8"):
        model(*tiny_inputs(size=(4, 12, 8)))
    with pytest.raises(UserError, match=r"2x8x8 .* 4x8x8"):
        model(*tiny_inputs(size=(2, 8, 8)))


def test_wrong_channels_or_a_missing_condition_are_refused():
    model = tiny()
    x_t, t, condition = tiny_inputs()
    with pytest.raises(UserError, match=r"4 and 0 channels.*4 and 2"):
        model(x_t, t)
    with pytest.raises(UserError, match="resize the condition"):
        model(x_t, t, condition[..., :4])


@pytest.mark.parametrize("grids", [[[1, 2], [4, 1], None], ["spatial", "temporal", None]])
def test_image_mode_equals_single_frames(grids):
    model = tiny(grids=grids)
    x_t, _, condition = tiny_inputs()
    times = torch.rand(2, 4) * 999
    together = model(x_t, times, condition, image_mode=True)
    for f in range(4):
        # a single frame is a clip whose first token is at frame f
        alone = tiny(grids=None if grids[0] != "spatial" else grids)
        alone.grids = tuple(grid._replace(time=1) for grid in model.grids)
        frame = alone(
            x_t[:, :, f : f + 1], times[:, f], condition[:, :, f : f + 1], origin=(f, 0, 0)
        )
        torch.testing.assert_close(frame, together[:, :, f : f + 1], atol=2e-5, rtol=1e-4)


def test_videos_of_a_batch_do_not_meet():
    model = tiny(grids=[[1, 2], [2, 1], None])
    x_t, t, condition = tiny_inputs()
    alone = model(x_t[1:], t[1:], condition[1:])
    torch.testing.assert_close(model(x_t, t, condition)[1:], alone, atol=2e-5, rtol=1e-4)


def test_blocks_take_the_first_timestep_and_the_end_takes_every_one():
    model = tiny()
    x_t, _, condition = tiny_inputs(batch=1)
    times = torch.tensor([[100.0, 100.0, 100.0, 700.0]])
    out, same = model(x_t, times, condition), model(x_t, times[:, 0], condition)
    torch.testing.assert_close(out[:, :, :3], same[:, :, :3])
    assert (out[:, :, 3] - same[:, :, 3]).abs().max() > 0.1


def test_timesteps_are_rounded_only_on_request():
    fine, rounded = tiny(), tiny(timestep_dtype="float16")
    x_t, _, condition = tiny_inputs(batch=1)
    times = torch.tensor([856.2857])
    exact, coarse = fine(x_t, times, condition), rounded(x_t, times, condition)
    assert not torch.equal(exact, coarse)
    assert torch.equal(fine(x_t, torch.tensor([856.5]), condition), coarse)


def test_positions_shift_with_the_origin():
    model = tiny()
    x_t, t, condition = tiny_inputs()
    moved = model(x_t, t, condition, origin=(0, 5, 0))
    assert not torch.allclose(moved, model(x_t, t, condition))


def test_the_untrained_model_predicts_zero_and_its_blocks_are_the_identity():
    model = VideoDiT(hidden_size=48, depth=2, num_heads=3, condition_channels=2)
    x_t, t, condition = tiny_inputs()
    assert torch.equal(model(x_t, t, condition), torch.zeros(2, 8, 4, 8, 8))
    tokens = torch.randn(2, 4, 4, 4, 48)
    embedding = model.t_block(model.t_embedder(t[:, None])).unflatten(-1, (6, 48))
    assert torch.equal(model.blocks[0](tokens, embedding, model.grids[0]), tokens)


def test_the_untrained_model_learns():
    torch.manual_seed(0)
    model = VideoDiT(hidden_size=48, depth=2, num_heads=3, condition_channels=2)
    x_t, t, condition = tiny_inputs()
    target = condition.repeat(1, 4, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            loss = ((model(x_t, t, condition) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_checkpointing_changes_no_gradient():
    x_t, t, condition = tiny_inputs()
    gradients = []
    for gradient_checkpointing in (False, True):
        model = tiny(gradient_checkpointing=gradient_checkpointing).train()
        model(x_t, t, condition).square().mean().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["weights", "autocast"])
def test_half_precision_stays_close_and_returns_the_callers_precision(mode):
    x_t, t, condition = tiny_inputs()
    exact = tiny()(x_t, t, condition)
    model = tiny().bfloat16() if mode == "weights" else tiny()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        out = model(x_t, t, condition)
    assert out.dtype == torch.float32
    assert (out - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def test_a_model_trains_after_inference_with_the_same_cached_positions():
    model = tiny()
    x_t, t, condition = tiny_inputs(size=(2, 6, 10))
    with torch.inference_mode():
        model(x_t, t, condition)
    model(x_t, t, condition).mean().backward()


def test_misspelt_options_are_refused():
    with pytest.raises(TypeError, match="pred_sigma"):
        VideoDiT(hidden_size=48, depth=1, num_heads=3, pred_sigma=True)
    with pytest.raises(ConfigError, match="timestep_dtype"):
        tiny(timestep_dtype="fp16")
    with pytest.raises(ConfigError, match="4 grids for 3 blocks"):
        tiny(grids=[None] * 4)


def test_local_mixing_crosses_the_borders_of_cells_but_not_of_frames():
    model = tiny(local_mixing=True, grids=[[-1, -2]])
    x_t, t, condition = tiny_inputs()
    changed = x_t.clone()
    changed[:, :, 1, 2, 3] += 1  # token (1, 1, 1), at the corner of a cell
    with torch.no_grad():
        difference = (model(changed, t, condition) - model(x_t, t, condition)).abs().amax((0, 1))
    assert difference[1, 4:6, 4:6].min() > 0  # token (1, 2, 2), of the cell beyond
    assert difference[[0, 2, 3]].max() == 0


def test_untrained_local_mixing_changes_nothing():
    options = {"hidden_size": 48, "depth": 2, "num_heads": 3, "condition_channels": 2}
    plain, mixing = VideoDiT(**options), VideoDiT(**options, local_mixing=True)
    torch.nn.init.normal_(plain.final_layer.linear.weight)
    missing = mixing.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(".local.conv." in name for name in missing)
    inputs = tiny_inputs()
    assert torch.equal(mixing(*inputs), plain(*inputs))
