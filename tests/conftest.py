import os

# Networks of the tests are so small that threads spend their time waiting for one another. Before
# torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import golden_data
import pytest
import tiny
from commands import Commands
from video_files import encode, moving_frames

from diffusion.models import embeddings


@pytest.fixture
def golden_frequencies(monkeypatch):
    """Timestep features as on the machine of the golden files, so that 1e-5 can be asked for."""
    frequencies = golden_data.published_frequencies()
    monkeypatch.setattr(
        embeddings, "timestep_frequencies", lambda dim, device: frequencies.to(device)
    )


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Path of a config whose weights are there."""
    return tiny.write_cascade(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def commands(tiny_config, capsys):
    return Commands(tiny_config, capsys)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """5 frames of 46x34 pixels at 25 frames per second: sides that are padded."""
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_frames(5, 34, 46))
