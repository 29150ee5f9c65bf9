import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import moving_frames

from diffusion.data.video.clip import read_frames
from diffusion.data.video.open_video import open_video
from diffusion.data.video_list import is_frame_folder, list_videos
from diffusion.utils.errors import UserError, VideoError


@pytest.fixture
def folder(tmp_path):
    """Files that are only named: listing opens no video."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.mp4", "b.MKV", "c.png", "notes.md", "below/e.webm"):
        (folder / name).touch()
    (folder / "frames").mkdir()
    for number in range(8, 13):
        (folder / "frames" / f"f{number}.jpg").touch()
    return folder


def names(paths):
    return [path.name for path in paths]


def test_folders_and_files(folder):
    assert names(list_videos([str(folder)])) == ["a.mp4", "b.MKV", "c.png", "e.webm", "frames"]
    assert names(list_videos([str(folder / "c.png"), str(folder / "frames")])) == [
        "c.png",
        "frames",
    ]
    assert names(list_videos(str(folder / "a.mp4"))) == ["a.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# comment\r\na.mp4\r\n\r\n  videos/b.MKV \nframes\n"),
        ("list.json", '["a.mp4", {"path": "videos/b.MKV", "caption": "x"}, "frames"]'),
        ("list.jsonl", '{"path": "a.mp4"}\n\n"videos/b.MKV"\n{"path": "frames", "fps": 25}\n'),
        ("list.csv", 'id,path\n1,a.mp4\n2,"videos/b.MKV"\n3,frames\n'),
        ("list.TSV", "path\tfps\na.mp4\t25\nvideos/b.MKV\t25\nframes\t25\n"),
    ],
)
def test_lists(folder, tmp_path, monkeypatch, name, text):
    """Paths resolve against the list's folder, then the working directory."""
    (folder / name).write_text("\ufeff" * name.endswith("csv") + text)
    monkeypatch.chdir(tmp_path)
    listed = list_videos([str(folder / name)])
    assert listed == [folder / "a.mp4", Path("videos/b.MKV"), folder / "frames"]


def test_what_a_list_names_need_not_be_there(folder):
    (folder / "list.txt").write_text(f"absent.mp4\n{folder}/also absent.mp4\n")
    listed = list_videos([str(folder / "list.txt")])
    assert names(listed) == ["absent.mp4", "also absent.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '["a.mp4",\n "b.mp4"\n', "x.json, line 3: is not JSON"),
        ("x.json", '{"path": "a.mp4"}', "must hold a list"),
        ("x.json", '["a.mp4", {"file": "b.mp4"}]', 'item 2: is no path and has no "path", only fi'),
        ("x.jsonl", '"a.mp4"\n{"path": }\n', "x.jsonl, line 2: is not JSON"),
        ("x.jsonl", '"a.mp4"\n7\n', "line 2: is no path"),
        ("x.csv", "file,caption\na.mp4,x\n", "no column 'path', only file, caption"),
        ("x.csv", "", "no column 'path', only none"),
        ("x.txt", "# nothing\n", "x.txt: names no videos"),
        ("x.json", "[]", "x.json: names no videos"),
        ("x.txt", b"\xff\xfea\x00", "is not a text file in UTF-8"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        list_videos([str(path)])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_lists_without_videos(tmp_path):
    with pytest.raises(UserError, match=r"video_list: .*absent\.txt does not exist"):
        list_videos([str(tmp_path / "absent.txt")])
    with pytest.raises(UserError, match="video_list is empty"):
        list_videos([])
    with pytest.raises(UserError, match="video_list is empty"):
        list_videos([str(tmp_path)])
    with pytest.raises(UserError, match="is not a path"):
        list_videos([{"path": "a.mp4"}])


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (["0001.png", "0002.png"], True),
        (["f-8.jpg", "f-16.JPG", "f-12.jpg"], True),
        (["IMG_1.jpg", "IMG_2.jpg", "IMG_7.jpg"], False),  # photographs, some deleted
        (["a1.jpg", "b2.jpg"], False),
        (["1.jpg", "2.png"], False),
        (["1.mp4", "2.mp4"], False),
        (["1.jpg"], False),
        (["cat.jpg", "dog.jpg"], False),
        ([], False),
    ],
)
def test_which_folders_are_clips(listed, expected):
    assert is_frame_folder(listed) == expected


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    frames = moving_frames(12, 40, 56)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"f{number}.png")
    assert list_videos([str(tmp_path)]) == [tmp_path]
    with open_video(tmp_path) as reader:
        assert (reader.info.height, reader.info.width) == (40, 56)
        assert reader.count_frames() == 12
        assert np.array_equal(np.stack(list(reader.frames(1, 5, 2))), frames[1:10:2])
        with pytest.raises(VideoError, match="12 pictures, too few for 7 from start 1"):
            list(reader.frames(1, 7, 2))
    Image.fromarray(frames[0][:8]).save(tmp_path / "f7.png")
    with pytest.raises(VideoError, match=r"f7\.png: is 56x8, the first picture .* 56x40"):
        list(open_video(tmp_path).frames())


def test_pictures_stand_upright(tmp_path):
    picture = Image.fromarray(moving_frames(1, 40, 56)[0])
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by a quarter clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    with open_video(tmp_path / "x.png") as reader:
        assert (reader.info.height, reader.info.width) == (56, 40)
        assert np.array_equal(next(reader.frames()), np.rot90(np.asarray(picture), -1))


def test_a_picture_that_would_fill_the_memory(tmp_path):
    png = Image.new("1", (20000, 20000))
    png.save(tmp_path / "x.png")
    with pytest.raises(VideoError, match=r"20000x20000 exceed|is not a picture"):
        open_video(tmp_path / "x.png")


def test_open_video_reads_videos(clip):
    with open_video(clip) as reader:
        assert np.array_equal(np.stack(list(reader.frames())), read_frames(clip))


def test_json_with_any_path(tmp_path):
    odd = 'a "b" \u2028 ü.mp4'
    (tmp_path / odd).touch()
    (tmp_path / "x.jsonl").write_text(json.dumps({"path": odd}, ensure_ascii=False) + "\n")
    assert list_videos([str(tmp_path / "x.jsonl")]) == [tmp_path / odd]
