"""diffusers' own tests of models, run on ours: see scripts/diffusers_mixins.sh.

Not part of this project's suite: it needs a clone of diffusers, whose `tests` it imports.
"""

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from tests.models.autoencoders.testing_utils import AutoencoderTesterMixin
from tests.models.testing_utils import (
    BaseModelTesterConfig,
    MemoryTesterMixin,
    ModelTesterMixin,
    TrainingTesterMixin,
)
from tests.testing_utils import enable_full_determinism, torch_device

from diffusion.hub.autoencoder_cascadev import AutoencoderCascadeV
from diffusion.models.compact import CompactVAE
from diffusion.models.dit import VideoDiT
from diffusion.models.video_vae import VideoVAE

enable_full_determinism()

STAGES = {"channels": [8, 8, 8], "depths": [1, 1, 1]}
VAE = {
    "encoder_channels": [8, 8],
    "encoder_depths": [1, 1],
    "decoder_channels": [8, 8],
    "decoder_depths": [1, 1],
}
DIT = {"hidden_size": 48, "depth": 2, "num_heads": 2, "grids": [[1, 4], None]}

no_pickle = pytest.mark.skip("expects the loader to look for a .bin at last: none is ever read")


class OfModels(ModelTesterMixin):
    @no_pickle
    def test_from_save_pretrained_variant(self):
        """tests/models/test_network.py has variants, and the message in place of that one."""


class OfMemory(MemoryTesterMixin):
    @no_pickle
    def test_disk_offload_without_safetensors(self):
        """With safetensors: test_disk_offload_with_safetensors."""


class OfVideos(BaseModelTesterConfig):
    main_input_name = "sample"
    frames = 3

    @property
    def output_shape(self) -> tuple[int, ...]:
        return 3, self.frames, 64, 96

    def get_dummy_inputs(self) -> dict:
        generator = torch.Generator().manual_seed(0)
        sample = 2 * torch.rand(2, *self.output_shape, generator=generator) - 1
        return {"sample": sample.to(torch_device)}


class CascadeV(OfVideos):
    model_class = AutoencoderCascadeV

    def get_init_dict(self) -> dict:
        return {
            "cascade": {
                "model_id": "tiny",
                "compressor": {"type": "CompactCompressor", **STAGES},
                "previewer": {"type": "CompactPreviewer", **STAGES},
                "vae": {"type": "CompactVAE", **VAE},
                "refiner": {"type": "VideoDiT", "condition_channels": 20, **DIT},
                "conditioning": {"residual_std": [0.4, 0.4, 0.4, 0.4]},
                "cascade": {"window": 4, "window_overlap": 2},
                "reconstruct": {"steps": 2},
            }
        }

    def get_dummy_inputs(self) -> dict:
        return {**super().get_dummy_inputs(), "generator": torch.manual_seed(0)}


class Compact(OfVideos):
    model_class = CompactVAE

    def get_init_dict(self) -> dict:
        return VAE


class SVD(OfVideos):
    model_class = VideoVAE

    def get_init_dict(self) -> dict:
        return {"block_out_channels": [32, 32], "layers_per_block": 1}


class AsTheirs(VideoDiT):
    """diffusers' transformers return a dataclass or a tuple; ours returns the tensor alone."""

    def initialize(self) -> None:
        for parameter in self.parameters():  # or the output is zero
            torch.nn.init.normal_(parameter, std=0.1)

    def forward(self, *args, return_dict: bool = True, **kwargs):
        output = Transformer2DModelOutput(super().forward(*args, **kwargs))
        return output if return_dict else output.to_tuple()


class Transformer(BaseModelTesterConfig):
    model_class = AsTheirs
    main_input_name = "x_t"
    output_shape = (8, 2, 8, 8)

    def get_init_dict(self) -> dict:
        return DIT

    def get_dummy_inputs(self) -> dict:
        generator = torch.Generator().manual_seed(0)
        x_t, condition = (torch.randn(2, c, 2, 8, 8, generator=generator) for c in (4, 16))
        inputs = {"x_t": x_t, "timestep": torch.tensor([5.0, 500.0]), "condition": condition}
        return {name: value.to(torch_device) for name, value in inputs.items()}


class TestCascadeV(CascadeV, OfModels):
    pass


class TestCascadeVTraining(CascadeV, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"VideoDiT"})


class TestCascadeVMemory(CascadeV, OfMemory):
    pass


class TestCascadeVSlicingTiling(CascadeV, AutoencoderTesterMixin):
    pass


class TestCompact(Compact, OfModels):
    pass


class TestCompactTraining(Compact, TrainingTesterMixin):
    pass


class TestCompactMemory(Compact, OfMemory):
    pass


class TestCompactSlicingTiling(Compact, AutoencoderTesterMixin):
    pass


class TestSVD(SVD, OfModels):
    pass


class TestSVDTraining(SVD, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        expected = {"Encoder", "TemporalDecoder", "UNetMidBlock2D"}
        super().test_gradient_checkpointing_is_applied(expected_set=expected)


class TestSVDMemory(SVD, OfMemory):
    pass


class TestSVDSlicingTiling(SVD, AutoencoderTesterMixin):
    pass


class TestTransformer(Transformer, OfModels):
    pass


class TestTransformerTraining(Transformer, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"AsTheirs"})


class TestTransformerMemory(Transformer, OfMemory):
    pass
