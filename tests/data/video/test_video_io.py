import os
import resource
import signal
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import encode, flat_frames, moving_frames, set_display_matrix

from diffusion.data.transforms import to_float
from diffusion.data.video.clip import read_frames, read_video
from diffusion.data.video.video_file import VideoFile
from diffusion.data.video.video_reader import VideoReader
from diffusion.data.video.video_writer import VideoWriter
from diffusion.utils.errors import UserError, VideoError

LONG_GOP = {"g": "24", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
SATURATED = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (200, 30, 90),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """48 frames at 25 frames per second, 64x48."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return encode(path, moving_frames(48), options=LONG_GOP)


def refusal(path, **options) -> str:
    """The one line that a bad file gets, whichever way it is read."""
    with pytest.raises(VideoError) as caught:
        read_frames(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


# Which frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", LONG_GOP),
        ("x.mkv", "libx264", LONG_GOP),
        ("x.ts", "libx264", LONG_GOP),
        ("x.mp4", "libx264", {"g": "1"}),
        ("x.mov", "libx265", {"x265-params": "keyint=24:open-gop=1:bframes=3:log-level=none"}),
        ("x.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
        ("x.avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("x.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        ("x.webm", "libvpx", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("x.webm", "libvpx-vp9", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ],
)
def test_any_start_equals_sequential_decoding(tmp_path, name, codec, options):
    path = encode(tmp_path / name, moving_frames(80), codec=codec, options=options)
    with VideoReader(path) as reader:
        everything = np.stack(list(reader))
        assert len(everything) == reader.count_frames() == 80
        for start in (1, 11, 22, 23, 24, 25, 26, 47, 48, 49, 60, 71, 72, 73, 79):
            frame = next(reader.frames(start))
            assert np.array_equal(frame, everything[start]), start
        assert np.array_equal(
            np.stack(list(reader.frames(21, 6, frame_stride=5))), everything[21:50:5]
        )


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_strides_equal_sequential_decoding(clip, stride):
    with VideoReader(clip) as reader:
        everything = np.stack(list(reader))
        for start in (0, 5, 22, 24, 30, 47):
            rest = everything[start::stride]
            assert np.array_equal(np.stack(list(reader.frames(start, None, stride))), rest)
            for count in {1, 2, len(rest)} & {*range(len(rest) + 1)}:
                got = np.stack(list(reader.frames(start, count, stride)))
                assert np.array_equal(got, rest[:count]), (start, count)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_start_at_a_variable_rate(tmp_path, suffix):
    times = np.cumsum(np.random.default_rng(0).integers(20, 90, 60)).tolist()
    path = encode(tmp_path / f"x{suffix}", moving_frames(60), times_ms=times, options=LONG_GOP)
    with VideoReader(path) as reader:
        everything = np.stack(list(reader))
        for start in (1, 20, 23, 24, 25, 40, 50, 59):
            assert np.array_equal(next(reader.frames(start)), everything[start]), start


def test_any_start_of_a_piece_cut_within_an_open_group(tmp_path):
    """Its first packets in the file need frames that were cut off, so they are never shown."""
    whole = encode(tmp_path / "whole.mkv", moving_frames(80), options=LONG_GOP)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        for packet in packets[keys[1] :]:
            packet.stream = stream
            target.mux(packet)
    with VideoReader(tmp_path / "cut.mp4") as reader:
        everything = np.stack(list(reader))
        for start in (1, 22, 25, 26, 27, 28, 29, 40, len(everything) - 1):
            assert np.array_equal(next(reader.frames(start)), everything[start]), start


@pytest.mark.parametrize("start", [23, 24, 40])
def test_a_late_start_decodes_from_a_keyframe(clip, monkeypatch, start):
    decoded = []
    monkeypatch.setattr(VideoFile, "_check_size", lambda self, frame: decoded.append(frame.pts))
    with VideoReader(clip) as reader:
        decoded.clear()
        next(reader.frames(start))
    skipped = start % 24
    assert 0 < len(decoded) <= max(1, 0.75 * skipped)  # the rest: B-frames that none refers to


def test_a_file_is_opened_once_for_a_clip(clip, monkeypatch):
    opened = []
    av_open = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or av_open(*a, **k))
    with VideoReader(clip) as reader:
        list(reader.frames(start=30, num_frames=4))
    assert len(opened) == 1


def test_chunks_cover_the_video(clip):
    with VideoReader(clip) as reader:
        chunks = list(reader.chunks(20))
    assert [len(chunk) for chunk in chunks] == [20, 20, 8]
    assert np.array_equal(np.concatenate(chunks), read_frames(clip))


def test_read_video_is_a_float_clip_with_its_own_rate(clip):
    part = read_video(clip, start=3, num_frames=4, frame_stride=5)
    assert part.fps == 5
    assert part.video.shape == (3, 4, 48, 64)
    assert torch.equal(part.video, to_float(read_frames(clip)[3:19:5]))


def test_info(clip):
    with VideoReader(clip) as reader:
        info = reader.info
    assert (info.width, info.height, info.fps, info.num_frames) == (64, 48, 25, 48)
    assert info.duration == pytest.approx(48 / 25)
    assert info.rotation == 0


def test_single_frame(tmp_path):
    path = encode(tmp_path / "one.mp4", moving_frames(1))
    assert read_frames(path).shape == (1, 48, 64, 3)
    assert read_video(path).fps == 25


def test_variable_rate_as_stored_or_resampled(tmp_path):
    frames = np.concatenate([flat_frames(1, (level,) * 3) for level in (0, 60, 120, 180, 240)])
    times = [0, 100, 500, 600, 1000]
    path = encode(tmp_path / "vfr.mkv", frames, times_ms=times, options={"bf": "0"})
    levels = read_frames(path)[:, 24, 32, 0]
    assert np.abs(levels - np.array([0.0, 60, 120, 180, 240])).max() <= 3
    resampled = read_frames(path, fps=10)[:, 24, 32, 0]
    shown = np.array([0, 60, 60, 60, 60, 120, 180, 180, 180, 180, 240], dtype=float)
    assert np.abs(resampled[:11] - shown).max() <= 3
    assert read_video(path, fps=10, num_frames=8, frame_stride=1).fps == 10


@pytest.mark.parametrize("rate", [5, 12.5, 25, 50])
def test_constant_rate_resampling(clip, rate):
    frames = read_frames(clip)
    expected = frames[np.floor(np.arange(round(48 * rate / 25)) * 25 / rate).astype(int)]
    assert np.array_equal(read_frames(clip, fps=rate), expected)


# Turned and coloured


@pytest.mark.parametrize(
    ("matrix", "turned", "rotation"),
    [
        ((1, 0, 0, 1), lambda x: x, 0),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2)), 90),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2)), 180),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2)), 270),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1], None),
        ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2), None),
    ],
)
def test_display_matrix_is_applied(tmp_path, matrix, turned, rotation):
    path = encode(tmp_path / "turned.mp4", moving_frames(3))
    stored = read_frames(path)
    set_display_matrix(path, *matrix)
    expected = turned(stored)
    assert np.array_equal(read_frames(path), expected)
    info = VideoReader(path).info
    assert (info.height, info.width) == expected.shape[1:3]
    if rotation is not None:
        assert info.rotation == rotation


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("ffv1", "yuv422p10le"),
        ("ffv1", "yuv420p"),
        ("ffv1", "gray"),
        ("ffv1", "yuva420p"),
        ("ffv1", "bgr0"),
        ("rawvideo", "rgb24"),
        ("mjpeg", "yuvj444p"),
        ("mjpeg", "yuvj420p"),
    ],
)
def test_pixel_formats(tmp_path, codec, pix_fmt):
    color = (110, 110, 110) if pix_fmt == "gray" else (200, 30, 90)
    frames = flat_frames(2, color, height=47, width=33)
    path = encode(tmp_path / "x.nut", frames, codec=codec, pix_fmt=pix_fmt)
    got = read_frames(path)
    assert got.shape == (2, 47, 33, 3)
    assert np.abs(got.astype(int) - frames).max() <= 2


def test_palette(tmp_path):
    images = [Image.new("P", (33, 47)), Image.new("P", (33, 47), 1)]
    for image in images:
        image.putpalette([10, 200, 40, 250, 100, 0])
    images[0].save(tmp_path / "x.gif", save_all=True, append_images=images[1:], duration=100)
    got = read_frames(tmp_path / "x.gif")
    assert got[:, 20, 20].tolist() == [[10, 200, 40], [250, 100, 0]]


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("matrix", "tag", "height"),
    [(1, 1, 48), (5, 6, 48), (5, 5, 720), (5, None, 48), (1, None, 720)],
)
def test_colour_matrix_and_range(tmp_path, matrix, tag, height, full_range):
    if tag is None and full_range:
        pytest.skip("the tests write the range together with the matrix")
    frames = flat_frames(1, (20, 220, 60), height=height)
    path = encode(
        tmp_path / "x.mp4",
        frames,
        matrix=matrix,
        tag=tag,
        full_range=full_range,
        options={"crf": "1"},
    )
    error = np.abs(read_frames(path).astype(int) - frames).mean(axis=(0, 1, 2))
    assert error.max() <= 2


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("zero.mp4", b"", "empty"),
        ("text.mp4", b"Dear reader, this is not a video.\n" * 50, "not a video"),
        ("noise.mkv", np.random.default_rng(0).bytes(4000), "not a video"),
        ("huge.y4m", b"YUV4MPEG2 W100000 H100000 F25:1 Ip C420mpeg2\nFRAME\n" + bytes(99), ""),
        ("header.mp4", b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "not a video"),
    ],
)
def test_not_a_video(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refusal(path)


def test_absurd_dimensions_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.y4m"
    path.write_bytes(b"YUV4MPEG2 W12000 H12000 F25:1 Ip C420mpeg2\nFRAME\n" + bytes(1000))
    assert "12000x12000" in refusal(path)


def test_caps(clip):
    with pytest.raises(VideoError, match="64x48 exceed the limit of 1000 pixels"):
        VideoReader(clip, max_pixels=1000)
    with pytest.raises(VideoError, match="48 frames exceed the limit of 10"):
        next(VideoReader(clip, max_frames=10).frames())
    assert len(list(VideoReader(clip, max_frames=10).frames(num_frames=10))) == 10
    with pytest.raises(VideoError, match="more frames than max_frames 10"):
        list(VideoReader(clip, max_frames=10).frames(fps=25))


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat", "list.sdp", "list.mpd"])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_playlists_are_not_followed(tmp_path, clip, name, kind):
    (tmp_path / "target.ts").write_bytes(encode(tmp_path / "t.ts", moving_frames(2)).read_bytes())
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ntarget.ts\n#EXT-X-ENDLIST\n"
    playlist = tmp_path / name
    playlist.write_text(hls if kind == "hls" else "ffconcat version 1.0\nfile target.ts\n")
    assert "not a video" in refusal(playlist)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.mp4", "concat:a.mp4|b.mp4", "pipe:0"])
def test_urls_are_not_opened(url):
    with pytest.raises(VideoError, match="no such file"):
        VideoReader(url)


@pytest.mark.parametrize(
    "name",
    ["wörld 视频.mp4", "-i.mp4", 'it\'s "q".mp4', "concat:x.mp4", "100%20.mp4", "a b|c.mp4", "x"],
)
def test_odd_names_are_plain_names(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(clip.read_bytes())
    frames = read_frames(name, num_frames=2)
    with VideoWriter("out " + name, fps=25) as writer:
        writer.write(frames)
    assert read_frames("out " + name).shape == frames.shape


def test_a_name_with_a_line_break_gives_one_line(tmp_path):
    with pytest.raises(VideoError) as caught:
        VideoReader(tmp_path / "two\nlines.mp4")
    assert "\n" not in str(caught.value)


def test_audio_only(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    assert "no video stream" in refusal(tmp_path / "sound.wav")


def test_folder_and_missing_and_pipe(tmp_path):
    assert "folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "absent.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "ordinary file" in refusal(tmp_path / "pipe.mp4")


@pytest.fixture
def as_nobody():
    """The superuser may read everything, so give that up for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def unreadable(clip, tmp_path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(clip.read_bytes())
    path.chmod(0)
    return path


def test_unreadable(unreadable, as_nobody):
    assert "Permission denied" in refusal(unreadable)


def test_truncated(tmp_path):
    path = encode(tmp_path / "whole.mp4", moving_frames(48))
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:-2000])
    refusal(tmp_path / "cut.mp4")  # its index stood at the end


def test_truncated_with_the_index_in_front(tmp_path):
    front = {"movflags": "+faststart"}
    path = encode(tmp_path / "whole.mp4", moving_frames(48), container_options=front)
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    message = refusal(tmp_path / "cut.mp4")
    assert "cut off" in message or "damaged" in message
    assert len(read_frames(tmp_path / "cut.mp4", num_frames=4)) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_frames": 49}, "num_frames 48 or fewer"),
        ({"num_frames": 5, "frame_stride": 12}, "num_frames 4 or fewer"),
        ({"start": 40, "num_frames": 9}, "num_frames 8 or fewer"),
        ({"start": 48}, "start 48 is past the last"),
        ({"start": 48, "num_frames": 1}, "start 48 is past the last"),
        ({"num_frames": 49, "fps": 25}, "num_frames 48 or fewer"),
        ({"start": 99, "fps": 25}, "ends before start 99"),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_more_frames_than_there_are(clip, tmp_path, container, arguments, expected):
    path = clip if container == "mp4" else encode(tmp_path / "x.mkv", moving_frames(48))
    assert expected in refusal(path, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"start": -1}, {"num_frames": 0}, {"frame_stride": 0}, {"fps": 0}, {"fps": float("nan")}],
)
def test_impossible_arguments(clip, arguments):
    with pytest.raises(UserError):
        read_frames(clip, **arguments)


# Writing


@pytest.mark.parametrize(("height", "width"), [(48, 64), (720, 128), (47, 33)])
def test_colours_survive_writing(tmp_path, height, width):
    frames = np.concatenate([flat_frames(1, color, height, width) for color in SATURATED])
    with VideoWriter(tmp_path / "x.mp4", fps=25) as writer:
        writer.write(frames)
    got = read_frames(tmp_path / "x.mp4").astype(float).mean(axis=(1, 2))
    assert np.abs(got - np.array(SATURATED)).max() < 2
    with av.open(str(tmp_path / "x.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1 if height == 720 else 6, 1)


def test_float_chunks_and_frames_write_the_same(tmp_path):
    frames = moving_frames(10, height=96, width=128)
    with VideoWriter(tmp_path / "a.mp4", fps=25) as writer:
        writer.write(frames)
    with VideoWriter(tmp_path / "b.mp4", fps=25) as writer:
        for part in (frames[:3], frames[3:10]):
            writer.write(to_float(part))
    written = read_frames(tmp_path / "a.mp4")
    assert np.array_equal(written, read_frames(tmp_path / "b.mp4"))
    assert np.abs(written.astype(int) - frames).mean() < 4


@pytest.mark.parametrize(
    ("height", "width", "pix_fmt"),
    [(48, 64, "yuv420p"), (47, 33, "yuv444p"), (47, 34, "yuv444p"), (48, 33, "yuv444p")],
)
def test_frames_keep_their_size(tmp_path, height, width, pix_fmt):
    frames = moving_frames(3, height, width)
    with VideoWriter(tmp_path / "x.mp4", fps=25, crf=1) as writer:
        writer.write(frames)
    written = read_frames(tmp_path / "x.mp4")
    assert written.shape == frames.shape
    assert np.abs(written.astype(int) - frames).mean() < 4
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == pix_fmt


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (24, Fraction(24)),
        (29.97002997, Fraction(30000, 1001)),
        (23.976023976, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_frame_rate_survives(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "x.mp4", fps=fps) as writer:
        writer.write(moving_frames(6))
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_failure_leaves_the_older_file(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"older")

    def interrupted():
        with VideoWriter(path, fps=25) as writer:
            writer.write(moving_frames(30))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["x.mp4"]


@pytest.mark.parametrize("limit", [0, 2000, 60_000])
def test_disk_full(tmp_path, limit):
    """A limit on file sizes stands for the full disk."""
    frames = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3), dtype=np.uint8)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with (
            pytest.raises(VideoError) as caught,
            VideoWriter(tmp_path / "x.mp4", fps=25) as writer,
        ):
            writer.write(frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "absent" / "x.mp4"):
        with pytest.raises(VideoError, match="cannot be written"):
            VideoWriter(path, fps=25)


@pytest.fixture
def locked_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    return folder


def test_unwritable_folder(locked_folder, as_nobody):
    with pytest.raises(VideoError, match="Permission denied"):
        VideoWriter(locked_folder / "x.mp4", fps=25)


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no frame"), VideoWriter(tmp_path / "x.mp4", fps=25):
        pass
    assert os.listdir(tmp_path) == []


def test_wrong_frames_are_refused(tmp_path):
    path = tmp_path / "x.mp4"
    with pytest.raises(ValueError, match="expected"), VideoWriter(path, fps=25) as writer:
        writer.write(np.zeros((2, 48, 64, 3), dtype=np.float32))
    with VideoWriter(path, fps=25) as writer:
        writer.write(moving_frames(1))
        with pytest.raises(ValueError, match="after frames"):
            writer.write(moving_frames(1, height=32))
    with pytest.raises(UserError, match="fps"):
        VideoWriter(path, fps=0)
    assert os.listdir(tmp_path) == ["x.mp4"]
