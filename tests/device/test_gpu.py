"""What only a GPU can show: pytest -m gpu. CASCADEV_TEST_DEVICE names another device.

Each test records the number that it found and its bound, see scripts/gpu_check.sh.
"""

import os

import golden_data
import pytest
import tiny
import torch
from golden_dit import build_dit, run_case
from safetensors.torch import load_file
from trainings import compressor_config, scalars, trainer_of
from video_files import encode, moving_frames

from diffusion.config import load_config
from diffusion.models import Previewer, SemanticCompressor, VideoVAE
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.utils.compute import Compute
from diffusion.utils.devices import DTYPE_NAMES

pytestmark = pytest.mark.gpu

# Largest error over the root mean square of what the published implementation gave.
BOUNDS = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}
CASES = ("dit_strided_l8", "dit_full3d_l8", "dit_img_l8")
SAMPLERS = ("euler_a", "ddim", "dpmpp", "euler")


@pytest.fixture(scope="module")
def device() -> torch.device:
    device = torch.device(os.environ.get("CASCADEV_TEST_DEVICE", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return device


@pytest.fixture
def within(record_property):
    """(value, bound): asserts it, and records both."""

    def check(value: float, bound: float) -> None:
        record_property("value", value)
        record_property("bound", bound)
        assert value <= bound

    return check


@pytest.fixture(autouse=True)
def exact_products(device):
    """Without TF32."""
    with Compute(tf32=False).on(device, torch.float32).applied():
        yield


@pytest.mark.parametrize("dtype", BOUNDS, ids=DTYPE_NAMES.get)
@pytest.mark.parametrize("name", CASES)
def test_parity_of_the_transformer(device, within, golden_frequencies, name, dtype):
    meta, tensors = golden_data.load(name)
    model = build_dit(meta).to(device, dtype)
    tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
    out = run_case(meta, tensors, model).float()
    within(golden_data.relative_error(out, tensors["out"]), BOUNDS[dtype])


@pytest.mark.parametrize("name", golden_data.cases("dit_train_step"))
def test_parity_of_a_training_step(device, within, golden_frequencies, name):
    meta, t = golden_data.load(name)
    model = build_dit(meta, gradient_checkpointing=True).to(device).train()
    process, scale = GaussianDiffusion(learned_variance=True), 0.13025 * 5
    videos = (golden_data.to_video(t[key], 8).to(device) for key in ("z", "x_ref", "noise"))
    (x0, condition, noise), times = videos, t["t"].view(1, 8).to(device)
    x_t = process.add_noise(x0 * scale, noise, times)
    prediction = model(x_t, times, condition * scale, image_mode=meta["train_as_img"])
    x0, noise, prediction = (
        golden_data.to_video(golden_data.to_frames(x), 1) for x in (x0 * scale, noise, prediction)
    )  # every frame as a video of its own
    loss = process.training_loss(prediction, x0, noise, t["t"].to(device)).loss
    assert golden_data.relative_error(loss.cpu(), t["loss"]) <= 2e-5
    loss.mean().backward()
    gradients = [p.grad.flatten() for _, p in sorted(model.named_parameters())]
    norms = torch.stack([g.double().norm() for g in gradients]).cpu()
    within(golden_data.relative_error(norms, t["grad_norms"]), 1e-4)


def test_parity_of_the_autoencoders(device, within):
    meta, t = golden_data.load("e2e_eulera")
    entries, video = meta["weights"], t["video_u8_fhwc"].permute(3, 0, 1, 2)[None] / 127.5 - 1

    def loaded(network: torch.nn.Module, entry: dict) -> torch.nn.Module:
        network.load_state_dict(golden_data.case_weights(entry))
        return network.to(device).eval()

    with torch.no_grad():
        compressor = loaded(SemanticCompressor(), entries["evae"]["enc"])
        latents = compressor.encode(video.to(device)).cpu()
        previewer = loaded(Previewer(), entries["evae"]["dec"])
        preview = previewer.decode(t["evae_latents"].to(device))[..., ::2, ::2].cpu()
        vae = loaded(VideoVAE(decode_chunk=4, decode_overlap=0), entries["tvae"])
        scaled = t["decoder_input"].to(device) * meta["scale_factor"]
        decoded = vae.decode(scaled)[..., ::4, ::4].cpu()
    errors = [
        golden_data.relative_error(latents, t["evae_latents"]),
        golden_data.relative_error(preview.clamp(-1, 1), t["preview"]),
        golden_data.relative_error(decoded, t["reconstruction"]),
    ]
    within(max(errors), 1e-4)


def tiny_cascade(path, place, *overrides, dtype=torch.float32):
    config = load_config(path, overrides)
    return tiny.assemble(config, tiny.random_parts(config), device=place, dtype=dtype)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tiny_cascade_with_every_sampler(device, within, tiny_config, sampler):
    latents = torch.randn(1, 16, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    here, there = (
        tiny_cascade(tiny_config, place).decode(latents, steps=4, sampler=sampler).cpu()
        for place in ("cpu", device)
    )
    within((here - there).abs().max().item(), 1e-3)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp"])
def test_tiny_cascade_of_a_flow(device, within, tiny_config, sampler):
    latents = torch.randn(1, 16, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    flow = "noise.prediction_type=flow_prediction"
    here, there = (
        tiny_cascade(tiny_config, place, flow).decode(latents, steps=4, sampler=sampler).cpu()
        for place in ("cpu", device)
    )
    within((here - there).abs().max().item(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=DTYPE_NAMES.get)
def test_tiny_cascade_in_low_precision(device, within, tiny_config, dtype):
    latents = torch.randn(1, 16, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    wanted = tiny_cascade(tiny_config, "cpu").decode(latents, steps=4)
    got = tiny_cascade(tiny_config, device, dtype=dtype).decode(latents, steps=4).cpu()
    within((got - wanted).square().mean().sqrt().item(), 0.05)


@pytest.fixture
def train_config(tmp_path, tiny_config):
    video = encode(tmp_path / "a.mp4", moving_frames(6, 64, 96))
    return compressor_config(tmp_path, video, tiny_config.parent)


def test_tiny_training_is_that_of_a_cpu(device, within, train_config, tmp_path):
    options = ("train.loop.max_steps=8", "train.loop.log_interval=1")
    for name, place in (("here", torch.device("cpu")), ("there", device)):
        trainer_of(train_config, tmp_path / name, *options, device=place).run()
    here, there = (scalars(tmp_path / name) for name in ("here", "there"))
    within(max(abs(a["loss"] - b["loss"]) for a, b in zip(here, there, strict=True)), 1e-3)


def test_tiny_training_resumes(device, within, train_config, tmp_path):
    schedule = "train.learning_rate.schedule=constant"
    for name, stops in (("whole", (8,)), ("parts", (4, 8))):
        for steps in stops:
            options = (schedule, f"train.loop.max_steps={steps}")
            trainer_of(train_config, tmp_path / name, *options, device=device).run()
    whole, parts = (load_file(tmp_path / n / "compressor.safetensors") for n in ("whole", "parts"))
    apart = max((whole[key] - parts[key]).abs().max().item() for key in whole)
    within(apart, 1e-4)
