import json

import autoencoders
import diffusers
import pytest
import tiny
import torch
import transformers
from video_files import moving_frames

from diffusion.config import load_config
from diffusion.data.transforms import to_float
from diffusion.evaluation.codecs.codec import weights_digest
from diffusion.evaluation.codecs.codecs_by_name import CodecOptions, build_codec
from diffusion.evaluation.metrics.fidelity import psnr
from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.pipelines.upscaling import Upscaler
from diffusion.utils.errors import UserError

# Class -> spatial compression, temporal compression, and the lengths it takes: first + n * step.
RULES = {
    "AutoencoderKLWan": (8, 4, 1, 4),
    "AutoencoderKLLTXVideo": (32, 8, 1, 8),
    # 4 frames per latent, but pairs of latents are decoded together.
    "AutoencoderKLCogVideoX": (8, 4, 1, 8),
    "AutoencoderKLMagvit": (8, 4, 1, 4),
    "AutoencoderKLTemporalDecoder": (8, 1, 1, 1),
    "AutoencoderDC": (2, 1, 1, 1),
    "AutoencoderTiny": (8, 1, 1, 1),
}


def video(frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    return to_float(moving_frames(frames, height, width))[None]


def quality(codec, clip: torch.Tensor) -> float:
    return psnr(codec.decode(codec.encode(clip))[0], clip[0]).mean().item()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Class -> folder that save_pretrained wrote."""
    folder = tmp_path_factory.mktemp("autoencoders")
    for name in RULES:
        autoencoders.small_autoencoder(name).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module", params=RULES)
def codec(request, folders):
    return build_codec(f"diffusers:{folders / request.param}")


def test_a_class_says_nothing_of_its_rules_but_they_are_found(codec):
    name = type(codec.model).__name__
    facts = codec.facts()
    spatial, temporal = facts["spatial_compression"], facts["temporal_compression"]
    assert (spatial, temporal, codec.shape.first, codec.shape.step) == RULES[name]
    channels = codec.encode(video(9)).data.shape[1]
    assert facts["channels"] == channels
    assert facts["values_per_pixel"] == channels / (spatial**2 * temporal)
    assert facts["bits_per_pixel"] == 16 * facts["values_per_pixel"]
    assert facts["parameters"] == sum(p.numel() for p in codec.model.parameters())


@pytest.mark.parametrize("size", [(1, 64, 96), (2, 70, 90), (6, 65, 64)])
def test_any_size_comes_back(codec, size):
    clip = video(*size)
    encoded = codec.encode(clip)
    assert encoded.bits == 16 * encoded.data.numel()
    decoded = codec.decode(encoded)
    assert decoded.shape == clip.shape
    assert decoded.abs().max() <= 1
    assert decoded.std() > 0


@torch.no_grad()
def test_a_clip_that_fits_is_what_the_class_itself_makes_of_it(codec):
    clip, model = video(9), codec.model
    latents = codec.encode(clip).data.float()
    decoded = codec.decode(codec.encode(clip))
    if RULES[type(model).__name__][1] > 1:
        own = model.encode(clip).latent_dist.mode()
        own_decoded = model.decode(latents).sample
        torch.testing.assert_close(latents, own, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(decoded, own_decoded.clamp(-1, 1))
    else:
        alone = codec.encode(clip[:, :, 3:4]).data.float()
        torch.testing.assert_close(latents[:, :, 3:4], alone, rtol=1e-3, atol=1e-3)


def test_the_same_result_after_a_video_that_was_refused(folders):
    codec = build_codec(f"diffusers:{folders / 'AutoencoderKLMagvit'}")
    before = codec.encode(video(5)).data
    with pytest.raises((RuntimeError, ValueError)):
        codec._encode(video(4))  # not one of its lengths
    assert torch.equal(codec.encode(video(5)).data, before)


def test_a_vae_inside_a_pipeline_folder(folders, tmp_path):
    autoencoders.small_autoencoder("AutoencoderTiny").save_pretrained(tmp_path / "vae")
    inside, alone = (
        build_codec(f"diffusers:{path}") for path in (tmp_path, folders / "AutoencoderTiny")
    )
    assert inside.made_with() == alone.made_with()


def test_folders_without_an_autoencoder_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="cannot be loaded"):
        build_codec(f"diffusers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match=r"UNet2DModel.* is not an autoencoder"):
        build_codec(f"diffusers:{tmp_path}")
    config = folders / "AutoencoderTiny" / "config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        build_codec(f"diffusers:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("compct", "compact, s1024"),
        ("diffusers", "FOLDER"),
        ("h264:", "colon"),
        ("h264:fast", "positive number"),
        ("bicubic:4", "3 values"),
        ("frames:dropped", "blended, repeated"),
        ("linear:configs/s1024.effn-f32.py", "effnet_encoder|linear part"),
        ("nowhere.py", "no such config"),
    ],
)
def test_what_cannot_be_built_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        build_codec(spec)


def test_the_linear_codec_projects():
    """Restored once, a video is in the span of the components: coding it again loses nothing."""
    codec = build_codec("linear")
    once = codec.linear.decode(codec.linear.encode(0.5 * video(2)[0].transpose(0, 1)))
    once = once.transpose(0, 1)[None]
    assert once.abs().max() < 1  # nothing is clamped
    torch.testing.assert_close(codec.decode(codec.encode(once)), once, rtol=0, atol=5e-3)
    assert codec.facts()["values_per_pixel"] == 16 / 1024


def test_fewer_values_than_the_components_for_bicubic():
    clip = video(2, 96, 160)
    bicubic, linear = (build_codec(name).encode(clip) for name in ("bicubic", "linear"))
    assert 0.6 * linear.bits < bicubic.bits <= linear.bits
    fine = build_codec("bicubic:3")
    assert fine.decode(fine.encode(clip)).sub(clip).abs().max() < 1e-3
    assert quality(build_codec("bicubic:0.5"), clip) > quality(build_codec("bicubic"), clip)


@pytest.mark.parametrize("size", [(8, 64, 96), (3, 65, 91)])
def test_h264_keeps_to_the_bit_rate(size):
    clip = video(*size)
    pixels = clip[0, 0].numel()
    rates = (0.25, 1.0)
    codecs = [build_codec(f"h264:{rate}") for rate in rates]
    for codec, rate in zip(codecs, rates, strict=True):
        encoded = codec.encode(clip)
        assert 0.5 * rate * pixels < encoded.bits <= rate * pixels
        assert encoded.bits == 8 * len(encoded.data)
        assert codec.decode(encoded).shape == clip.shape
    assert quality(codecs[1], clip) > quality(codecs[0], clip) + 0.5


def test_colours_survive_h264():
    clip = torch.tensor([0.8, -0.5, 0.1]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 64, 64)
    codec = build_codec("h264:1")
    assert codec.decode(codec.encode(clip)).sub(clip).abs().max() < 0.03


def test_the_parts_of_a_cascade(tiny_config):
    clip = video(3, 70, 96)
    cascade = build_codec(str(tiny_config), CodecOptions(steps=2))
    preview, vae = (build_codec(f"{name}:{tiny_config}") for name in ("previewer", "vae"))
    pipeline = build_cascade(load_config(tiny_config))
    stored = pipeline.encode(clip).half().float()
    for codec, expected in (
        (cascade, pipeline.decode(stored, steps=2)),
        (preview, pipeline.preview(stored)),
    ):
        torch.testing.assert_close(codec.decode(codec.encode(clip)), expected[..., :70, :96])
    assert vae.decode(vae.encode(clip)).shape == clip.shape
    # 70 rows become 96 for blocks of 32, and 72 for those of 8.
    assert preview.encode(clip).bits == 16 * 16 * 3 * (3 * 3)
    assert vae.encode(clip).bits == 16 * 4 * 3 * (9 * 12)
    assert cascade.facts() | {"parameters": 0} == preview.facts() | {"parameters": 0}
    assert vae.facts()["values_per_pixel"] == 4 / 64


STUDENT = 'reconstruct = dict(sampler="ddim", steps=3)\n'


@pytest.mark.parametrize(
    ("predicts", "suited", "unsuited"),
    [("sample", "ddim", "euler_a"), ("flow_prediction", "euler", "euler_a")],
)
def test_a_model_is_sampled_as_its_config_says(tiny_config, tmp_path, predicts, suited, unsuited):
    config = str(
        tiny.write_config(
            tmp_path / "other.py",
            f"noise = dict(prediction_type={predicts!r})\nreconstruct = dict(steps=2)\n",
            tiny_config.parent,
        )
    )
    codec, clip = build_codec(config), video(1, 64, 64)
    drawn_with = {"sampler": suited, "steps": 2, "seed": 0}
    assert codec.made_with().items() >= drawn_with.items()
    pipeline = build_cascade(load_config(config))
    expected = pipeline.decode(codec.encode(clip).data.float(), **drawn_with)
    torch.testing.assert_close(codec.decode(codec.encode(clip)), expected)
    given = build_codec(config, CodecOptions(sampler="dpmpp", steps=3)).made_with()
    assert (given["sampler"], given["steps"]) == ("dpmpp", 3)
    with pytest.raises(UserError, match=unsuited):
        build_codec(config, CodecOptions(sampler=unsuited))
    for part in ("vae", "previewer"):  # they draw nothing
        build_codec(f"{part}:{config}", CodecOptions(sampler=unsuited))


@pytest.mark.parametrize(
    ("name", "condition"), [("upscale", "enlarged"), ("upscale_compressor", "compressor")]
)
def test_a_quarter_of_the_size_is_restored(tiny_config, name, condition):
    codec, clip = build_codec(f"{name}:{tiny_config}", CodecOptions(steps=1)), video(3, 70, 96)
    encoded = codec.encode(clip)
    assert encoded.data.shape == (1, 3, 3, 18, 24)  # 70 rows become 72
    assert codec.facts()["bits_per_pixel"] == build_codec("bicubic:3/16").facts()["bits_per_pixel"]
    upscaler = Upscaler(build_cascade(load_config(tiny_config)), 4, condition)
    pieces = upscaler.pieces([encoded.data.float()])
    latents = torch.cat(list(upscaler.pipeline.restore_stream(pieces, 3, steps=1)), dim=2)
    expected = upscaler.pipeline.decode_vae(latents)[..., :70, :96]
    torch.testing.assert_close(codec.decode(encoded), expected)


@pytest.mark.parametrize("frames", [1, 9, 11])
def test_a_quarter_of_the_frames_is_restored(tiny_config, frames):
    clip, known = video(frames, 64, 64), range(0, frames, 4)
    cascade = build_codec(f"interpolate:{tiny_config}", CodecOptions(steps=1))
    blended, repeated = (build_codec(f"frames:{kind}") for kind in ("blended", "repeated"))
    for codec in (cascade, blended, repeated):
        encoded = codec.encode(clip)
        assert encoded.data.shape[2] == len(known)
        decoded = codec.decode(encoded)
        assert decoded.shape == clip.shape
        held = decoded[:, :, known[-1] :]
        assert torch.equal(held, held[:, :, :1].expand_as(held))
        if codec is not cascade:
            torch.testing.assert_close(decoded[:, :, known], clip[:, :, known], rtol=0, atol=1e-3)
    if frames > 1:
        shown = repeated.decode(repeated.encode(clip))
        assert torch.equal(shown[:, :, 0:1], shown[:, :, 3:4])
        mixed = blended.decode(blended.encode(clip))
        middle = (mixed[:, :, 0] + mixed[:, :, 4]) / 2
        torch.testing.assert_close(mixed[:, :, 2], middle)


class TestStableCascade:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("stable-cascade")
        autoencoders.save_stable_cascade(folder)
        return folder

    def test_its_latents_become_pictures_of_the_size_that_was_encoded(self, folder):
        codec = build_codec(f"stablecascade:{folder}")
        clip = video(2, 70, 96)
        encoded = codec.encode(clip)
        assert encoded.data.shape == (1, 16, 2, 3, 3)  # 70 rows become 96
        decoded = codec.decode(encoded)
        assert decoded.shape == clip.shape
        assert decoded.abs().max() <= 1
        assert decoded.std() > 0
        assert torch.equal(codec.decode(encoded), decoded)
        facts = codec.facts()
        assert facts["values_per_pixel"] == 16 / 1024
        assert facts["parameters"] > 20e6  # EfficientNetV2-S has its own size

    def test_it_is_the_pipeline_on_the_encoders_latents(self, folder):
        codec = build_codec(f"stablecascade:{folder}")
        encoded = codec.encode(video(1, 64, 96))
        parts = {
            name: kind.from_pretrained(folder, subfolder=name)
            for name, kind in (
                ("decoder", diffusers.StableCascadeUNet),
                ("scheduler", diffusers.DDPMWuerstchenScheduler),
                ("tokenizer", transformers.CLIPTokenizer),
                ("text_encoder", transformers.CLIPTextModelWithProjection),
            )
        }
        # 3 x 2 latents are 24 x 16 of the VQGAN's, which are 96 x 64 pixels.
        own = diffusers.StableCascadeDecoderPipeline(
            **parts, vqgan=codec.pipeline.vqgan, latent_dim_scale=8.0
        )(
            encoded.data[:, :, 0].float(),
            prompt="",
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        torch.testing.assert_close(codec.decode(encoded)[:, :, 0], 2 * own - 1)

    def test_what_is_not_there_is_named(self, folder, tmp_path):
        with pytest.raises(UserError, match=r"effnet_encoder\.safetensors.*download\.sh"):
            build_codec(f"stablecascade:{tmp_path}")
        (tmp_path / "effnet_encoder.safetensors").symlink_to(folder / "effnet_encoder.safetensors")
        with pytest.raises(UserError, match="cannot be loaded"):
            build_codec(f"stablecascade:{tmp_path}")


def test_a_cascade_is_sampled_as_its_config_says(tiny_config, tmp_path):
    student = tiny.write_config(tmp_path / "student.py", STUDENT, weights=tiny_config.parent)
    codec, clip = build_codec(str(student)), video(2, 64, 64)
    assert (codec.made_with()["sampler"], codec.made_with()["steps"]) == ("ddim", 3)
    wanted = build_codec(str(tiny_config), CodecOptions(sampler="ddim", steps=3))
    assert torch.equal(codec.decode(codec.encode(clip)), wanted.decode(wanted.encode(clip)))
    for name in (f"upscale:{student}", f"interpolate:{student}"):
        assert build_codec(name).made_with()["sampler"] == "ddim"
        assert build_codec(name, CodecOptions(sampler="euler")).made_with()["sampler"] == "euler"


def test_what_a_result_depends_on(tiny_config):
    cascade, other = (
        build_codec(str(tiny_config), CodecOptions(seed=seed)).made_with() for seed in (0, 1)
    )
    assert {key for key in cascade if cascade[key] != other[key]} == {"seed"}
    linear = torch.nn.Linear(2, 2)
    before = weights_digest(linear)
    assert weights_digest(linear) == before
    with torch.no_grad():
        linear.bias[0] += 1e-6
    assert weights_digest(linear) != before
