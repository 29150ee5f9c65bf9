"""Metrics that see with networks: real ones, with random weights where others are a download."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import dists as torchmetrics_dists
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet
from torchvision.models.vgg import cfgs, make_layers

from diffusion.evaluation.metrics import consistency, perceptual, rfvd, weight_files
from diffusion.evaluation.metrics.all_metrics import METRICS, build_metrics
from diffusion.models.feature_distance import PerceptualDistance
from diffusion.utils.errors import UserError, WeightsError


def pair(frames: int = 2, height: int = 64, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, frames, height, width, generator=generator) * 2 - 1
    noise = torch.randn(reference.shape, generator=generator)
    return (reference + 0.3 * noise).clamp(-1, 1), reference


def in_batch(video: torch.Tensor) -> torch.Tensor:
    return video.permute(1, 0, 2, 3)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty folder for torch.hub; returns a function that puts random features into it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(net: str, features: torch.nn.Module) -> dict[str, torch.Tensor]:
        state = features.state_dict()
        path = folder / "new.pth"
        torch.save({f"features.{key}": value for key, value in state.items()}, path)
        # As torchvision names its files.
        name = f"{net}-{weight_files.sha256(path)[:8]}.pth"
        path.rename(folder / name)
        known = weight_files.torchvision_weights(name, "AlexNet_Weights")
        monkeypatch.setitem(weight_files.BACKBONES, net, lambda: known)
        return state

    return SimpleNamespace(folder=folder, put=put)


def test_missing_weights_are_said_with_the_command_that_fetches_them(torch_home):
    for name, kind in (("lpips_alex", "AlexNet"), ("lpips_vgg", "VGG16"), ("dists", "VGG16")):
        missing = METRICS[name].missing()
        assert f'python -c "from torchvision.models import {kind}_Weights as W; ' in missing
        assert METRICS[name].describe()["weights"] == {}
        with pytest.raises(UserError, match="is not there; fetch it"):
            METRICS[name](*pair())


def test_the_weights_are_those_that_torchvision_fetches():
    for weights, kind in (
        (weight_files.alexnet_weights(), AlexNet_Weights),
        (weight_files.vgg16_weights(), VGG16_Weights),
    ):
        assert kind.IMAGENET1K_V1.url.endswith(f"/{weights.path.name}")
        assert weights.fetch.split(" as W; W.")[0].endswith(kind.__name__)
        compile(weights.fetch, "fetch", "exec")


def test_damaged_weights_are_missing(torch_home):
    path = torch_home.folder / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"half of it")
    assert "is damaged: delete it" in METRICS["lpips_alex"].missing()
    with pytest.raises(UserError, match="is damaged"):
        METRICS["lpips_alex"](*pair())


def test_lpips_is_that_of_torchmetrics(torch_home):
    """Whose code and linear heads are copies of their own."""
    torch.manual_seed(0)
    state = torch_home.put("alex", alexnet(weights=None).features)
    metric = METRICS["lpips_alex"]
    assert metric.missing() is None
    video, reference = pair()
    got = metric(video, reference)
    independent = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    own = independent.net.state_dict()
    independent.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in own})
    expected = independent(in_batch(video), in_batch(reference)).flatten()
    assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert got.min() > 1e-4
    assert metric(reference, reference).tolist() == [0, 0]
    weights = metric.describe()["weights"]
    assert set(map(len, weights.values())) == {64}
    assert len(weights) == 2  # the backbone and the heads


@pytest.mark.slow
def test_lpips_of_vgg_is_that_of_torchmetrics(torch_home):
    torch.manual_seed(0)
    state = torch_home.put("vgg", make_layers(cfgs["D"]))
    video, reference = pair()
    got = METRICS["lpips_vgg"](video, reference)
    independent = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    own = independent.net.state_dict()
    independent.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in own})
    expected = independent(in_batch(video), in_batch(reference)).flatten()
    assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_dists_is_that_of_torchmetrics(torch_home, monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    torch_home.put("vgg", features)
    metric = METRICS["dists"]
    video, reference = pair()
    got = metric(video, reference)
    network = SimpleNamespace(features=features)
    monkeypatch.setattr(torchmetrics_dists, "vgg16", lambda weights: network)  # a download
    expected = torchmetrics_dists.deep_image_structure_and_texture_similarity(
        *((in_batch(x) + 1) / 2 for x in (video, reference))
    )
    assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert got.min() > 0.001
    assert metric(reference, reference).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_large_videos_are_measured_in_pieces(monkeypatch):
    video, reference = pair(frames=3)
    whole = METRICS["effnet_lite0"](video, reference)
    monkeypatch.setattr(perceptual, "CHUNK_PIXELS", 64 * 96 * 2)
    assert METRICS["effnet_lite0"](video, reference).tolist() == pytest.approx(whole.tolist())
    assert whole.tolist() == pytest.approx(
        PerceptualDistance()(in_batch(video), in_batch(reference)).tolist()
    )


def test_rfvd_names_its_package_or_its_weights(monkeypatch):
    missing = rfvd.i3d_missing()
    assert missing is None or "cd-fvd" in missing or "load_i3d_model" in missing
    found = SimpleNamespace(origin="/nowhere/cdfvd/__init__.py")
    monkeypatch.setattr(rfvd.importlib.util, "find_spec", lambda name: found)
    assert "i3d_pretrained_400.pt is not there; fetch it" in rfvd.i3d_missing()
    assert not METRICS["rfvd"].per_frame


class TestFoldersOfTransformers:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        """A tiny DINO and a tiny CLIP."""
        transformers = pytest.importorskip("transformers")
        size = dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        torch.manual_seed(0)
        root = tmp_path_factory.mktemp("transformers")
        vit = transformers.ViTModel(transformers.ViTConfig(**size), add_pooling_layer=False)
        vit.save_pretrained(root / "dino")
        text = dict(hidden_size=32, num_hidden_layers=1, vocab_size=99, num_attention_heads=2)
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=size, text_config=text, projection_dim=16)
        )
        clip.save_pretrained(root / "clip")
        return SimpleNamespace(dino=root / "dino", clip=root / "clip", networks=(vit, clip))

    def test_without_a_folder_they_are_missing(self, tmp_path):
        for name, option in (("subject_consistency", "dino"), ("background_consistency", "clip")):
            missing = METRICS[name].missing()
            assert f"--{option}" in missing
            assert "hf download" in missing
            elsewhere = build_metrics(**{option: tmp_path})[name]
            assert "no config.json" in elsewhere.missing()

    def test_still_videos_are_consistent_and_others_are_not(self, folders):
        metrics = build_metrics(dino=folders.dino, clip=folders.clip)
        video, _ = pair(frames=4)
        still = video[:, :1].repeat(1, 4, 1, 1)
        for name in ("subject_consistency", "background_consistency"):
            metric = metrics[name]
            assert metric.missing() is None
            assert metric(still, video).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
            changing = metric(video, video)
            assert changing.shape == (3,)
            assert changing.max() < 0.9999
            assert "model.safetensors" in metric.describe()["weights"]
            assert json.dumps(metric.describe())

    def test_they_are_cosines_of_the_networks_own_features(self, folders):
        """A square video of the networks' size needs no resizing."""
        vit, clip = (network.eval() for network in folders.networks)
        video, _ = pair(frames=3, height=32, width=32)
        frames = (in_batch(video) + 1) / 2
        metrics = build_metrics(dino=folders.dino, clip=folders.clip)
        with torch.no_grad():
            seen = {
                "subject_consistency": vit(
                    consistency.normalized(
                        frames, consistency.IMAGENET_MEAN, consistency.IMAGENET_STD
                    )
                ).last_hidden_state[:, 0],
                "background_consistency": clip.visual_projection(
                    clip.vision_model(
                        consistency.normalized(frames, *consistency.CLIP)
                    ).pooler_output
                ),
            }
        for name, features in seen.items():
            units = torch.nn.functional.normalize(features, dim=-1).double().numpy()
            cosines = np.maximum(units @ units.T, 0)
            expected = [cosines[0, 1], (cosines[0, 2] + cosines[1, 2]) / 2]
            assert metrics[name](video, video).tolist() == pytest.approx(expected, abs=1e-5)

    def test_a_folder_of_another_network_is_refused(self, folders, tmp_path):
        video, _ = pair()
        with pytest.raises(WeightsError, match="not a CLIP of transformers"):
            build_metrics(clip=folders.dino)["background_consistency"](video, video)
        (tmp_path / "config.json").write_text((folders.dino / "config.json").read_text())
        with pytest.raises(WeightsError, match="not a DINO of transformers"):
            build_metrics(dino=tmp_path)["subject_consistency"](video, video)
