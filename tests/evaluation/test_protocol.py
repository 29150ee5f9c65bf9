import json
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import encode, moving_frames

from diffusion.data.video.clip import read_frames
from diffusion.evaluation.metrics.all_metrics import METRICS
from diffusion.evaluation.protocol import INTER4K_200, PROTOCOLS, WHOLE_16, get_protocol
from diffusion.evaluation.report.published import PUBLISHED
from diffusion.utils.errors import UserError, VideoError

SMALL = replace(INTER4K_200, short_edge=32)


@pytest.fixture(scope="module")
def inter4k(tmp_path_factory) -> Path:
    """As the data set is downloaded, with other sizes and few videos."""
    root = tmp_path_factory.mktemp("data") / "Inter4K"
    for kind in ("60fps/UHD", "24fps/UHD"):
        (root / kind).mkdir(parents=True)
        for number in (1, 2, 9, 10, 100):
            rate = int(kind[:2])
            frames = moving_frames(7, 64, 96, seed=number)
            encode(root / kind / f"{number}.mp4", frames, rate=rate, options={"crf": "10"})
    return root


def numbers(paths: list[Path]) -> list[int]:
    return [int(path.stem) for path in paths]


def test_inter4k_is_taken_in_numeric_order_from_its_uhd_folder(inter4k):
    expected = [inter4k / "60fps/UHD" / f"{n}.mp4" for n in (1, 2, 9, 10, 100)]
    for entry in (inter4k, str(inter4k), [inter4k / "60fps" / "UHD"], list(reversed(expected))):
        assert SMALL.select(entry) == expected
    assert numbers(replace(SMALL, num_videos=4).select(inter4k)) == [1, 2, 9, 10]


def test_videos_that_are_not_there_are_said(inter4k, caplog):
    SMALL.select(inter4k)
    assert "inter4k-200: measures 1.mp4 to 200.mp4, and 3.mp4, 4.mp4, 5.mp4 and 192" in caplog.text
    caplog.clear()
    # As many as wanted, but 9 is not 3.
    assert numbers(replace(SMALL, num_videos=3).select(inter4k)) == [1, 2, 9]
    assert "and 3.mp4 are not there" in caplog.text
    caplog.clear()
    replace(SMALL, num_videos=2).select(inter4k)
    assert not caplog.text


def test_a_video_without_a_number_is_refused(inter4k, tmp_path):
    stray = encode(tmp_path / "holiday.mp4", moving_frames(2), rate=60)
    with pytest.raises(
        UserError, match=r"holiday\.mp4: inter4k-200 takes videos .* named by number"
    ):
        SMALL.select([str(inter4k), str(stray)])


def test_60_frames_per_second_are_halved_and_the_square_is_central(inter4k):
    path = inter4k / "60fps/UHD/2.mp4"
    clip = SMALL.read(path)
    assert clip.fps == 30
    assert clip.video.shape == (3, 4, 32, 32)
    every_second = read_frames(path)[::2]
    for i, frame in enumerate(every_second):
        picture = Image.fromarray(frame).resize((48, 32), Image.Resampling.BICUBIC)
        expected = np.asarray(picture)[:, 8:40].transpose(2, 0, 1)
        got = (clip.video[:, i] + 1) * 127.5
        assert np.abs(got.numpy() - expected).max() < 2  # Pillow rounds twice


def test_start_and_num_frames_count_at_the_protocols_rate(inter4k):
    path = inter4k / "60fps/UHD/1.mp4"
    whole = SMALL.read(path).video
    part = replace(SMALL, start=1, num_frames=2).read(path).video
    assert torch.equal(part, whole[:, 1:3])
    with pytest.raises(VideoError, match=r"1\.mp4"):
        replace(SMALL, start=4).read(path)


def test_slow_videos_are_refused_and_ntsc_is_not(inter4k, tmp_path):
    with pytest.raises(VideoError, match="has 24 frames per second, fewer than the 30 of inter4k"):
        SMALL.read(inter4k / "24fps/UHD/1.mp4")
    frames = moving_frames(6, 64, 96)
    for rate, stride in ((Fraction(60000, 1001), 2), (Fraction(30000, 1001), 1)):
        path = encode(tmp_path / f"{rate.numerator}.mp4", frames, rate=rate)
        clip = SMALL.read(path)
        assert clip.fps == pytest.approx(30 / 1.001)
        stored = replace(SMALL, fps=None).read(path).video
        assert torch.equal(clip.video, stored[:, ::stride])
    path = encode(tmp_path / "50.mp4", frames, rate=50)
    stored = replace(SMALL, fps=None).read(path).video
    clip = SMALL.read(path)
    assert clip.fps == 30
    assert torch.equal(clip.video, stored[:, [0, 1, 3, 5]])  # on screen at k / 30 seconds


def test_whole_16_keeps_small_frames_and_shrinks_large_ones(tmp_path):
    frames = moving_frames(20, 64, 96)
    path = encode(tmp_path / "clip.mp4", frames, rate=25)
    clip = WHOLE_16.read(path)
    assert clip.fps == 25
    assert clip.video.shape == (3, 16, 64, 96)
    levels = ((clip.video + 1) * 127.5).permute(1, 2, 3, 0).round()
    assert np.array_equal(levels.numpy(), read_frames(path, num_frames=16))
    assert replace(WHOLE_16, short_edge=32).read(path).video.shape == (3, 16, 32, 48)
    short = encode(tmp_path / "short.mp4", frames[:3], rate=25)
    assert WHOLE_16.read(short).video.shape[1] == 3
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    assert WHOLE_16.read(tmp_path / "still.png").video.shape == (3, 1, 64, 96)


def test_broken_videos_name_themselves(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"no video")
    for protocol in PROTOCOLS.values():
        with pytest.raises(VideoError, match=r"1\.mp4"):
            protocol.read(tmp_path / "1.mp4")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_protocol_says_everything_in_json(protocol):
    facts = protocol.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert {field.name for field in fields(protocol)} <= facts.keys()
    assert get_protocol(protocol.name) is protocol


def test_the_published_preset():
    facts = INTER4K_200.describe()
    assert facts["size"] == "short edge 1024, central square"
    assert facts["frames"] == "all frames from frame 0, 30 frames per second, by timestamps"
    assert facts["num_videos"] == 200


def test_unknown_or_impossible_protocols_are_refused():
    with pytest.raises(UserError, match="use inter4k-200, whole-16, small-17"):
        get_protocol("inter4k")
    with pytest.raises(UserError, match="num_frames is 0"):
        replace(WHOLE_16, num_frames=0)


def test_published_rows_are_those_of_the_publication():
    rows = {row["name"]: list(row["values"].values()) for row in PUBLISHED}
    assert rows == {
        "Open-Sora-Plan v1.1": [25.7282, 0.8, 0.103, 0.9519, 0.9618, 0.9573, 0.9789, 0.6791, 0.545],
        "EasyAnimate v3": [28.8666, 0.8505, 0.0818, 0.9578, 0.9695, 0.9615, 0.9845, 0.6735, 0.5535],
        "StableCascade": [24.3336, 0.6896, 0.1395, 0.949, 0.9517, 0.943, 0.9639, 0.6811, 0.5675],
        "CascadeV": [23.732, 0.6742, 0.1786, 0.9601, 0.9679, 0.9626, 0.9837, 0.6747, 0.5579],
    }
    assert all("not measured here" in row["note"] for row in PUBLISHED)
    assert json.loads(json.dumps(PUBLISHED)) == PUBLISHED
    ours = {"psnr", "ssim"}  # the only ones that are surely defined alike
    assert ours == METRICS.keys() & PUBLISHED[0]["values"].keys()
