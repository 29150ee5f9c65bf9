"""Measuring one codec: what it computes on, what is copied, what may be refused."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pretend_cuda import CudaTensor, PretendCuda, pretend_cuda
from video_files import encode, moving_frames

from diffusion.app.evaluating.evaluation_request import Evaluation, name_videos
from diffusion.app.evaluating.evaluation_run import measure_part
from diffusion.app.evaluating.measure_codec import CodecMeasurer, count_unmeasured, keep_originals
from diffusion.app.training.encode_set import Part
from diffusion.data.transforms import to_float
from diffusion.data.video.clip import Clip
from diffusion.evaluation.codecs.classic_codecs import BicubicCodec
from diffusion.evaluation.codecs.codecs_by_name import CodecOptions, build_codec
from diffusion.evaluation.metrics.all_metrics import METRICS
from diffusion.evaluation.protocol import PROTOCOLS, Protocol
from diffusion.evaluation.report.results import Measurements
from diffusion.utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


def clip(frames: int = 3, height: int = 64, width: int = 96) -> Clip:
    return Clip(to_float(moving_frames(frames, height, width)), 25.0)


def measurer(spec: str, device: torch.device, *metrics: str) -> CodecMeasurer:
    codec = build_codec(spec, CodecOptions(device=device, steps=1))
    return CodecMeasurer(codec, {name: METRICS[name] for name in metrics}, device)


@pytest.mark.parametrize("spec", ["linear", "h264:1", "frames:blended"])
def test_what_is_measured_on_a_gpu_is_what_is_measured_on_the_cpu(device, spec):
    names = ("psnr", "flicker")
    on_cpu, on_gpu = (measurer(spec, place, *names)("x", clip()) for place in (CPU, CUDA))
    for name in names:
        expected = on_cpu.record["metrics"][name]["per_frame"]
        assert on_gpu.record["metrics"][name]["per_frame"] == pytest.approx(expected, abs=1e-4)
    assert np.abs(on_gpu.frames.astype(int) - on_cpu.frames).max() <= 1
    assert on_gpu.record["bits"] == on_cpu.record["bits"]


def test_pixels_are_copied_to_the_gpu_once_and_back_in_8_bits(device):
    measure = measurer("linear", CUDA, "psnr", "flicker", "gradient")
    measure("first", clip())
    device.stalls.clear()
    measure("second", clip())
    copies = [stall for stall in device.stalls if "device" in stall.kind or "host" in stall.kind]
    pixels = [stall for stall in copies if "64, 96" in stall.what]
    assert [stall.what.split("[")[0] for stall in pixels] == ["uint8"], device.by_line()


def test_a_codec_may_refuse_the_video_that_it_is_warmed_up_with(device):
    measure = measurer("linear", CUDA, "psnr")
    assert "too small" in measure("tiny", clip(2, 12, 12)).record["failed"]
    assert "psnr" in measure("large", clip()).record["metrics"]


def test_every_size_is_warmed_up_for(device, monkeypatch):
    measure = measurer("bicubic", CUDA, "psnr")
    lengths = []
    encode = measure.codec.encode

    def recording(video):
        assert isinstance(video, CudaTensor)
        lengths.append(video.shape[2])
        return encode(video)

    monkeypatch.setattr(measure.codec, "encode", recording)
    for height in (64, 64, 32):
        measure("x", clip(6, height))
    assert lengths == [4, 6, 6, 4, 6]


@pytest.fixture
def evaluation(tmp_path) -> Evaluation:
    """Three videos, not measured yet."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(3):
        encode(folder / f"{i}.mp4", moving_frames(2, 32, 32, seed=i))
    videos = name_videos(sorted(folder.iterdir()))
    metrics = {"psnr": METRICS["psnr"]}
    return Evaluation(["bicubic"], videos, PROTOCOLS["whole-16"], metrics, tmp_path / "out")


def test_the_next_video_is_read_while_a_gpu_computes(device, evaluation, monkeypatch):
    """What is encoded waits for the next video to be read: on its own turn it never would be."""
    begun = {path.stem: threading.Event() for path in evaluation.videos.values()}
    order, read, encode = iter([*begun][1:]), Protocol.read, BicubicCodec.encode

    def reading(self, path):
        begun[path.stem].set()
        return read(self, path)

    def encoding(self, video):
        following = next(order, None)
        assert following is None or begun[following].wait(60)
        return encode(self, video)

    keep_originals(Measurements(evaluation.folder), evaluation.videos, evaluation.protocol)
    for event in begun.values():
        event.clear()
    monkeypatch.setattr(Protocol, "read", reading)
    monkeypatch.setattr(BicubicCodec, "encode", encoding)
    monkeypatch.setattr(CodecMeasurer, "_warm_up", lambda self, video: None)
    measure_part(evaluation, CodecOptions(device=CUDA), Part())
    assert count_unmeasured(Measurements(evaluation.folder), evaluation) == 0
    for name in evaluation.videos:
        record = Measurements(evaluation.folder).read("bicubic", name)
        assert (evaluation.folder / record["reconstruction"]).is_file()


def test_a_reconstruction_that_cannot_be_written_ends_the_run(device, evaluation):
    blocked = evaluation.folder / "videos" / "bicubic" / "1.mp4"
    blocked.mkdir(parents=True)
    with pytest.raises(UserError, match=r"1\.mp4.*folder"):
        measure_part(evaluation, CodecOptions(device=CUDA), Part())
    measured = {n for n in evaluation.videos if Measurements(evaluation.folder).read("bicubic", n)}
    assert "0" in measured
    assert "1" not in measured
