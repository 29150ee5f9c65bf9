"""Every network as a folder of diffusers' format: JSON of its arguments, and safetensors."""

import copy
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch

from diffusion.models import MODELS
from diffusion.models.low_rank import LowRank, layers_of
from diffusion.models.network import FolderError, Network
from diffusion.models.weights import FOLDER_INDEXES, load_weights
from diffusion.registry import build
from diffusion.utils.errors import ConfigError, UserError, WeightsError

STAGES = {"channels": [8, 8, 8], "depths": [1, 1, 1]}
VAE_STAGES = {
    "encoder_channels": [8, 8],
    "encoder_depths": [1, 1],
    "decoder_channels": [8, 8],
    "decoder_depths": [1, 1],
}
DIT = {"hidden_size": 48, "depth": 2, "num_heads": 2, "grids": [[1, 4], None]}
# Small, and no value that is the constructor's default.
OPTIONS = {
    "CompactCompressor": {**STAGES, "latent_channels": 4},
    "CompactPreviewer": {**STAGES, "latent_channels": 4},
    "CompactVAE": {**VAE_STAGES, "posterior_std": 0.5},
    "Previewer": {"frames_per_chunk": 2},
    "SemanticCompressor": {"frames_per_chunk": 2},
    "VideoDiT": DIT,
    "VideoVAE": {"block_out_channels": [32, 32], "layers_per_block": 1, "decode_overlap": 2},
}
FILE = "diffusion_pytorch_model.safetensors"


def network(name: str, **options) -> Network:
    torch.manual_seed(0)
    net = build(MODELS, {"type": name, **OPTIONS[name], **options}, name).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # many start at zero
            parameter += 0.02 * torch.randn_like(parameter)
    return net


def dit(**options) -> Network:
    return network("VideoDiT", **options)


def outputs(net: Network) -> torch.Tensor:
    """What the network makes of the same input."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int, size: int) -> torch.Tensor:
        return torch.randn(1, channels, 2, size, size, generator=generator).to(net.dtype)

    with torch.no_grad():
        if type(net).__name__ == "VideoDiT":
            return net(draw(4, 8), torch.tensor([500.0]), draw(16, 8))
        if hasattr(net, "encode"):
            encoded = net.encode(draw(3, 32))
            return net.decode(encoded) if hasattr(net, "decode") else encoded
        return net.decode(draw(net.latent_channels, 1))


def equal(one: Network, other: Network) -> bool:
    state, wanted = one.state_dict(), other.state_dict()
    same_names = state.keys() == wanted.keys()
    return same_names and all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.fixture
def folder(tmp_path) -> Path:
    dit().save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


@pytest.mark.parametrize("name", MODELS.classes)
def test_a_folder_is_the_network(name, tmp_path, recwarn, caplog):
    """Its weights bit for bit, every option of its constructor, and no word of warning."""
    caplog.set_level(logging.WARNING)
    net = network(name)
    net.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in OPTIONS[name]} == OPTIONS[name]
    assert loaded.config.keys() - {"_name_or_path"} == written.keys()
    assert equal(net, loaded)
    torch.testing.assert_close(outputs(loaded), outputs(net), atol=1e-5, rtol=1e-5)
    assert not loaded.training
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", FILE]
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning | UserWarning)]
    assert not caplog.records


@pytest.mark.parametrize("name", MODELS.classes)
def test_copies_and_processes_get_the_network_whole(name):
    net = network(name)
    if net._supports_gradient_checkpointing:
        net.enable_gradient_checkpointing()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(outputs(net), outputs(other))
        assert other.config == net.config
        assert other.is_gradient_checkpointing == net.is_gradient_checkpointing


@pytest.mark.parametrize("name", MODELS.classes)
def test_no_option_of_a_constructor_is_read_from_the_config(name, recwarn):
    """Which diffusers deprecates: an attribute of that name is the network's own, or there is none.

    (All that networks are asked for, they are asked for in other tests, where this warns as well.)
    """
    net = network(name)
    modules = dict(net.named_children()) | dict(net.named_parameters(recurse=False))
    assert not net.config.keys() & modules.keys()
    outputs(net)
    assert not [w for w in recwarn if w.category is FutureWarning]


def test_a_change_of_low_rank_is_a_folder_too(tmp_path):
    net = dit()
    change = LowRank.beside(net, 3, layers_of(net, torch.nn.Linear))
    torch.nn.init.normal_(change.get_parameter("blocks/0/attn/qkv.up"))
    change.save_pretrained(tmp_path)
    loaded = LowRank.from_pretrained(tmp_path)
    assert equal(change, loaded)
    for name, value in loaded.changed(net).items():
        assert torch.equal(value, change.changed(net)[name])


def test_a_change_of_dtype_is_no_news(caplog):
    caplog.set_level(logging.WARNING)
    assert dit().to(torch.bfloat16).dtype == torch.bfloat16
    assert not caplog.records


# What from_pretrained can do.


def test_variants_lie_beside_each_other(tmp_path):
    net = dit()
    net.save_pretrained(tmp_path)
    copy.deepcopy(net).half().save_pretrained(tmp_path, variant="fp16")
    half = type(net).from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    assert equal(half, copy.deepcopy(net).half())
    assert equal(type(net).from_pretrained(tmp_path), net)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_large_networks_are_in_several_files(tmp_path, variant):
    net = dit()
    net.save_pretrained(tmp_path / "dit", max_shard_size="50KB", variant=variant)
    shards = list((tmp_path / "dit").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    assert equal(type(net).from_pretrained(tmp_path, subfolder="dit", variant=variant), net)
    filled = network("VideoDiT")
    load_weights(filled, tmp_path / "dit")  # by the commands
    assert equal(filled, net)
    shards[0].unlink()
    with pytest.raises(WeightsError, match=shards[0].name):
        load_weights(filled, tmp_path / "dit")
    (tmp_path / "dit" / FOLDER_INDEXES[variant is not None]).write_text("[]")
    with pytest.raises(WeightsError, match="not a readable index of weights"):
        load_weights(filled, tmp_path / "dit")


def test_an_older_save_leaves_nothing_that_would_be_loaded(tmp_path):
    dit(depth=4).save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / "notes.txt").write_text("of the user")
    net = dit()
    net.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", FILE, "notes.txt"]
    assert equal(type(net).from_pretrained(tmp_path), net)


def test_a_save_that_fails_leaves_what_was_there(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"dit: cannot be written \(No space left on device\)"):
        dit(depth=4).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_arguments_take_the_place_of_the_folders(folder):
    loaded = MODELS.classes["VideoDiT"].from_pretrained(folder, gradient_checkpointing=True)
    assert loaded.is_gradient_checkpointing
    assert loaded.config["gradient_checkpointing"] is True


def test_what_does_not_fit_into_memory_waits_on_the_disk(folder, tmp_path):
    """diffusers' device_map splits the network between its blocks."""
    memory = {"cpu": dit().get_memory_footprint() * 3 // 4}
    loaded = MODELS.classes["VideoDiT"].from_pretrained(
        folder, device_map="auto", max_memory=memory, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    torch.testing.assert_close(outputs(loaded), outputs(dit()))


# What is refused, in one line.


def refused(folder: Path, match: str, **options) -> None:
    with pytest.raises(FolderError, match=match) as caught:
        MODELS.classes["VideoDiT"].from_pretrained(folder, **options)
    assert isinstance(caught.value, OSError)  # which users of diffusers expect
    assert len(str(caught.value).splitlines()) == 1


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return self.trace.touch, ()


def test_a_pickle_is_never_read(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / FILE).unlink()
    torch.save({"x": Payload(trace)}, folder / "diffusion_pytorch_model.bin")
    refused(folder, r"dit: holds diffusion_pytorch_model.bin, a pickle, which is never read")
    refused(folder, "a pickle", use_safetensors=None)
    with pytest.raises(UserError, match="use_safetensors=False asks for a pickle"):
        MODELS.classes["VideoDiT"].from_pretrained(folder, use_safetensors=False)
    with pytest.raises(UserError, match="safe_serialization=False would write a pickle"):
        dit().save_pretrained(tmp_path / "other", safe_serialization=False)
    assert not trace.exists()


def test_folders_without_the_weights(folder, tmp_path):
    refused(tmp_path / "none", "none")
    refused(tmp_path, r"no config|holds no diffusion_pytorch_model.safetensors", subfolder=None)
    refused(folder, f"no diffusion_pytorch_model.fp16.safetensors, but {FILE}", variant="fp16")
    refused(tmp_path, "other: no such folder", subfolder="other")
    (folder / "config.json").unlink()
    refused(folder, "config.json")


def test_damaged_files(folder):
    file = folder / FILE
    file.write_bytes(file.read_bytes()[:1000])
    refused(folder, "dit: ")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json.* not a valid JSON")


def rewritten(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"_class_name": "CompactVAE"}, WeightsError, "describes a CompactVAE, not a VideoDiT"),
        ({"depht": 2}, ConfigError, "unknown key 'depht' in the config of VideoDiT.*'depth'"),
        ({"depth": "two"}, ConfigError, "depth='two' must be"),
        ({"num_heads": 5}, ConfigError, "does not divide into 5 heads"),
        ({"depth": 3}, WeightsError, r"dit: not the weights of this VideoDiT: \d+ missing"),
        ({"depth": 1, "grids": None}, WeightsError, r"\d+ unexpected \(blocks.1"),
        ({"hidden_size": 96}, FolderError, "dit: .*shape"),
    ],
)
def test_a_config_that_does_not_fit(folder, values, error, match, caplog):
    rewritten(folder, **values)
    with pytest.raises(error, match=match) as caught:
        MODELS.classes["VideoDiT"].from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert not caplog.records


def test_options_that_nothing_reads(folder):
    with pytest.raises(ConfigError, match=r"unknown key 'depht'.*'depth'"):
        MODELS.classes["VideoDiT"].from_pretrained(folder, depht=2)
    with pytest.raises(UserError, match="torch_dtype='half' must be one of torch's"):
        MODELS.classes["VideoDiT"].from_pretrained(folder, torch_dtype="half")
