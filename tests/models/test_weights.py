import os
import pickle
import re
from pathlib import Path

import golden_data
import pytest
import safetensors.torch
import torch
from torch import nn

from diffusion.models.weights import (
    FOLDER_FILES,
    adapt_dit_state_dict,
    load_weights,
    read_metadata,
    read_state_dict,
    save_weights,
)
from diffusion.utils.errors import UserError, WeightsError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.fixture
def other():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def assert_same(module: nn.Module, state: dict) -> None:
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)


# What can be read.


def test_saved_weights_load_into_another_module(network, other, tmp_path):
    save_weights(network, tmp_path / "deeper" / "a.safetensors", {})
    load_weights(other, tmp_path / "deeper" / "a.safetensors")
    assert_same(other, network.state_dict())


@pytest.mark.parametrize(("stored", "own"), [("half", "float"), ("float", "bfloat16")])
def test_values_are_cast_to_the_module(network, other, tmp_path, stored, own):
    save_weights(getattr(network, stored)(), tmp_path / "a.safetensors", {})
    getattr(other, own)()
    load_weights(other, tmp_path / "a.safetensors")
    assert_same(other, network.state_dict())
    assert other[0].weight.dtype == getattr(torch, own)
    assert other[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("name", FOLDER_FILES)
def test_model_folder(network, other, tmp_path, name):
    save_weights(network, tmp_path / name, {})
    (tmp_path / "config.json").write_text("{}")
    load_weights(other, tmp_path)
    assert_same(other, network.state_dict())


def test_full_precision_comes_before_half_in_a_folder(network, other, tmp_path):
    save_weights(network, tmp_path / "diffusion_pytorch_model.safetensors", {})
    save_weights(other, tmp_path / "diffusion_pytorch_model.fp16.safetensors", {})
    assert torch.equal(read_state_dict(tmp_path)["0.weight"], network[0].weight)


@pytest.mark.parametrize("wrap", [lambda state: {"state_dict": state, "epoch": 3}, dict])
def test_checkpoint_with_a_state_dict_or_bare(network, other, tmp_path, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "a.pth")
    load_weights(other, tmp_path / "a.pth")
    assert_same(other, network.state_dict())


def test_averaged_weights_only_on_request(network, other, tmp_path):
    checkpoint = {"state_dict": network.state_dict(), "state_dict_ema": other.state_dict()}
    torch.save(checkpoint, tmp_path / "a.pth")
    assert torch.equal(read_state_dict(tmp_path / "a.pth")["0.weight"], network[0].weight)
    averaged = read_state_dict(tmp_path / "a.pth", use_ema=True)
    assert torch.equal(averaged["0.weight"], other[0].weight)


def test_batch_norm_counters_may_be_absent(network, other, tmp_path):
    state = network.state_dict()
    del state["1.num_batches_tracked"]
    save_weights(state, tmp_path / "a.safetensors", {})
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other[0].weight, network[0].weight)


def test_adapting_a_published_dit_drops_position_tables_only():
    weight, table = torch.ones(2), torch.zeros(3)
    published = {"blocks.0.attn.pos_embed": weight, "x_embedder.proj.weight": weight}
    tables = dict.fromkeys(["pos_embed", "base_model.pos_embed", "model.pos_embed"], table)
    assert adapt_dit_state_dict(published | tables) == published


def test_published_dit_checkpoint_loads(tmp_path):
    from diffusion.models.dit import VideoDiT

    state = golden_data.weights("dit_in20_d1", seed=0, family="dit")
    checkpoint = {"state_dict": state | {"pos_embed": torch.zeros(1, 4, 1152)}, "epoch": 1}
    torch.save(checkpoint, tmp_path / "s1024.pth")
    dit = VideoDiT(depth=1)
    load_weights(dit, tmp_path / "s1024.pth")
    assert_same(dit, state)


# What is written.


def test_metadata_survives(network, tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(network, path, {"model": "previewer", "steps": "900"})
    assert read_metadata(path) == {"model": "previewer", "steps": "900"}
    safetensors.torch.save_file(network.state_dict(), path)
    assert read_metadata(path) == {}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(network, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights(network, path, {"version": "old"})

    def write_half(state, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", write_half)
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be written .*No space left"):
        save_weights(network, path, {"version": "new"})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert read_metadata(path) == {"version": "old"}


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_files_have_the_permissions_of_any_new_file(network, tmp_path):
    save_weights(network, tmp_path / "a.safetensors", {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_transposed_views_can_be_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).T
    save_weights({"weight": weight}, tmp_path / "a.safetensors", {})
    assert torch.equal(read_state_dict(tmp_path / "a.safetensors")["weight"], weight)


# What is refused. Every message is one line that names the file.


def refusal(action, *args, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        action(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_says(message: str, *patterns: str) -> None:
    for pattern in patterns:
        assert re.search(pattern, message), message


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "folder"])
def test_missing_file(network, tmp_path, name):
    message = refusal(load_weights, network, tmp_path / name)
    assert_says(message, re.escape(str(tmp_path / name)), "no such weights file")
    assert "download.sh" not in message


@pytest.mark.parametrize("name", ["previewer.safetensors", "s1024.effn-f32.pth", "vae"])
def test_missing_published_file_names_the_download(network, tmp_path, name):
    message = refusal(load_weights, network, tmp_path / "pretrained" / name)
    assert_says(message, re.escape(name), "`bash pretrained/download.sh`")


def test_missing_embedded_file_is_not_for_the_download(network, tmp_path):
    path = tmp_path / "pretrained" / "compact" / "dit.safetensors"
    assert "download.sh" not in refusal(load_weights, network, path)


def test_folder_without_weights(network, tmp_path):
    folder = tmp_path / "pretrained" / "vae"
    folder.mkdir(parents=True)
    message = refusal(load_weights, network, folder)
    assert_says(message, "holds no", *map(re.escape, FOLDER_FILES), "download.sh")


@pytest.mark.parametrize("kept", [0, 4, 40, 0.5, 0.95])
def test_truncated_safetensors(network, tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save_weights(network, path, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    for action in (lambda: load_weights(network, path), lambda: read_metadata(path)):
        assert_says(refusal(action), "a.safetensors: not a readable safetensors file", "again")


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.95])
def test_truncated_checkpoint(network, tmp_path, kept):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    message = refusal(load_weights, network, path)
    assert_says(message, "a.pth: not a readable PyTorch checkpoint", "again")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_web_page_instead_of_weights(network, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("<!doctype html><html>Access denied</html>" * 20)
    assert_says(refusal(load_weights, network, path), f"a{suffix}: not a readable")


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(network, tmp_path, zipped):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    checkpoint = {"state_dict": network.state_dict(), "config": Payload(trace)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    message = refusal(load_weights, network, path)
    assert_says(message, "a.pth: holds a Python object", "could run code", "safetensors")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # it would have run


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1], "holds a list, not a state dict"),
        ({"state_dict": 3}, "holds a int, not a state dict"),
        ({"epoch": 3, "weight": torch.ones(1)}, "not tensors: epoch"),
    ],
)
def test_checkpoint_without_a_state_dict(network, tmp_path, content, problem):
    torch.save(content, tmp_path / "a.pth")
    assert_says(refusal(load_weights, network, tmp_path / "a.pth"), "a.pth: ", problem)


def test_averaged_weights_that_are_not_there(network, tmp_path):
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pth")
    message = refusal(load_weights, network, tmp_path / "a.pth", use_ema=True)
    assert_says(message, r"a\.pth: holds no averaged weights \(state_dict_ema\)")
    save_weights(network, tmp_path / "a.safetensors", {})
    message = refusal(load_weights, network, tmp_path / "a.safetensors", use_ema=True)
    assert_says(message, r"a\.safetensors: only a \.pth")


def test_missing_and_unexpected_names(network, tmp_path):
    state = network.state_dict()
    state["extra"] = torch.ones(1)
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        del state[key]
    save_weights(state, tmp_path / "a.safetensors", {})
    message = refusal(load_weights, network, tmp_path / "a.safetensors")
    assert_says(
        message,
        r"a\.safetensors: not the weights of this Sequential",
        r"4 missing \(0\.weight, 0\.bias, 1\.weight, \.\.\.\)",
        r"1 unexpected \(extra\)",
    )


def test_wrong_shape_names_the_weight_and_both_shapes(network, other, tmp_path):
    state = network.state_dict() | {"0.weight": torch.ones(4, 5, 1, 1)}
    save_weights(state, tmp_path / "a.safetensors", {})
    before = {key: value.clone() for key, value in other.state_dict().items()}
    message = refusal(load_weights, other, tmp_path / "a.safetensors")
    assert_says(message, r"0\.weight is \(4, 5, 1, 1\) but .* needs \(4, 3, 1, 1\)")
    assert_same(other, before)  # not half loaded
