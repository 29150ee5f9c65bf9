"""What a pipeline does to the networks that it is given: nothing."""

import pytest
import torch
from test_cascade import random_video, tiny_cascade, tiny_networks
from torch import nn

from diffusion.pipelines.networks import Networks, for_inference
from diffusion.utils.compute import Compute
from diffusion.utils.errors import UserError

NAMES = ("compressor", "previewer", "vae", "refiner")


def facts(network: nn.Module) -> list[tuple]:
    """All that a conversion, a mode or a compilation would change."""
    tensors = [
        (name, x.dtype, x.device, x.stride(), x.data_ptr(), x.requires_grad)
        for name, x in (*network.named_parameters(), *network.named_buffers())
    ]
    modules = [
        (name, module.training, module._compiled_call_impl is None)
        for name, module in network.named_modules()
    ]
    return [*tensors, *modules]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_in_training_stay_as_they_are(dtype):
    networks = tiny_networks()
    networks.vae.eval()
    networks.refiner.blocks[0].eval()  # modes can be mixed
    networks.compressor.requires_grad_(False)
    before = {name: facts(getattr(networks, name)) for name in NAMES}
    compute = Compute(compile=True, channels_last=True)
    pipeline = tiny_cascade(networks, dtype=dtype, compute=compute)
    assert {name: facts(getattr(networks, name)) for name in NAMES} == before
    assert all(block._compiled_call_impl is not None for block in pipeline.refiner.blocks)

    out = tiny_cascade(networks, dtype=dtype).reconstruct(random_video(2, 64, 64), steps=1)
    assert not out.requires_grad
    assert {name: facts(getattr(networks, name)) for name in NAMES} == before


def test_weights_are_copied_only_where_they_are_converted():
    networks = tiny_networks()
    same, low = tiny_cascade(networks), tiny_cascade(networks, dtype=torch.bfloat16)
    for name in NAMES:
        given = next(getattr(networks, name).parameters())
        assert next(getattr(same, name).parameters()).data_ptr() == given.data_ptr()
        shared = next(getattr(low, name).parameters()).data_ptr() == given.data_ptr()
        assert shared == (name != "refiner")
    video = random_video(2, 64, 64)
    before = same.reconstruct(video, steps=1)
    with torch.no_grad():  # what still trains is seen as it is now
        networks.refiner.final_layer.linear.weight += 0.1
    assert not torch.equal(same.reconstruct(video, steps=1), before)


def test_two_pipelines_in_two_precisions_do_not_know_of_each_other():
    networks, latents = tiny_networks(), torch.randn(1, 16, 2, 2, 2)
    low = tiny_cascade(networks, dtype=torch.bfloat16)
    before = low.restore(latents, steps=2)
    exact = tiny_cascade(networks).restore(latents, steps=2)
    assert torch.equal(low.restore(latents, steps=2), before)
    assert torch.equal(exact, tiny_cascade().restore(latents, steps=2))
    assert not torch.equal(exact, before)


def test_the_precision_of_who_calls_is_not_the_pipelines():
    pipeline, latents = tiny_cascade(), torch.randn(1, 16, 2, 2, 2)
    wanted = pipeline.decode(latents, steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pipeline.decode(latents, steps=1), wanted)


def test_tied_weights_stay_tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    own = for_inference(network, torch.device("cpu"), torch.bfloat16)
    assert own[1].weight is own[0].weight
    assert not own.training
    assert network.training
    assert for_inference(None, torch.device("cpu")) is None


def test_layouts_and_compilation_change_no_result():
    video, networks = random_video(2, 64, 64), tiny_networks()
    wanted = tiny_cascade(networks).reconstruct(video, steps=1)
    compute = Compute(channels_last=True, tf32=True, cudnn_benchmark=True)
    pipeline = tiny_cascade(networks, compute=compute)
    kernels = [m.weight for m in pipeline.vae.modules() if isinstance(m, nn.Conv2d)]
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    torch.testing.assert_close(pipeline.reconstruct(video, steps=1), wanted, atol=1e-5, rtol=1e-4)


def test_what_is_missing_is_named():
    networks = tiny_networks()
    alone = tiny_cascade(Networks(compressor=networks.compressor), conditioning=None)
    latents = alone.encode(random_video(1, 32, 32))
    with pytest.raises(UserError, match="built without its previewer"):
        alone.preview(latents)
    with pytest.raises(UserError, match="without its compressor or VAE"):
        alone.decode(latents)
    with pytest.raises(UserError, match="built without its vae"):
        alone.encode_vae(random_video(1, 32, 32))
    with_vae = Networks(networks.compressor, networks.previewer, networks.vae)
    with pytest.raises(UserError, match="built without its refiner"):
        tiny_cascade(with_vae).decode(latents)
