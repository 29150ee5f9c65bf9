import numpy as np
import pytest

from diffusion.app.reconstruction.result_files import comparison_files, result_files, video_file
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.data.video.clip import read_frames
from diffusion.utils.errors import UserError
from diffusion.utils.overlap import Overlap

NAMES = ("a.mp4", "b.mp4", "b.png")
FRAMES = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), np.uint8)


def write(folder, *, then=lambda: None):
    stages = Stages()
    with result_files(folder, NAMES) as places:
        with Overlap(stages.wait) as overlap:
            video = overlap.behind(video_file(places["a.mp4"], 25, stages), depth=1)
            compared = (places["b.mp4"], places["b.png"], ["x", "y"], 25, 2, stages)
            rows = overlap.behind(comparison_files(*compared), depth=1)
            for frame in np.split(FRAMES, len(FRAMES)):
                video(frame)
                rows([frame, frame])
        assert visible(folder) in ([], sorted(NAMES))  # nothing new has its name so far
        then()


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_all_get_their_names_together_at_the_end(tmp_path):
    write(tmp_path, then=lambda: visible(tmp_path) == [] or pytest.fail("too early"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    assert read_frames(tmp_path / "a.mp4").shape == FRAMES.shape
    assert read_frames(tmp_path / "b.mp4").shape[2] == 2 * 48


def test_after_an_error_older_ones_are_as_they_were(tmp_path):
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        write(tmp_path, then=fail)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_in_a_writing_thread_names_the_file_that_was_asked_for(tmp_path):
    def run():
        stages = Stages()
        with result_files(tmp_path, NAMES) as places, Overlap(stages.wait) as overlap:
            overlap.behind(video_file(places["a.mp4"], 25, stages))  # and nothing to write

    with pytest.raises(UserError, match="no frame was given to write") as error:
        run()
    assert str(error.value).startswith(str(tmp_path / "a.mp4"))
    assert list(tmp_path.iterdir()) == []
