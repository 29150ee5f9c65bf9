import golden_data
import pytest

from diffusion.models import embeddings


@pytest.fixture
def golden_frequencies(monkeypatch):
    """Timestep features as on the machine of the golden files, so that 1e-5 can be asked for."""
    frequencies = golden_data.published_frequencies()
    monkeypatch.setattr(embeddings, "timestep_frequencies", lambda dim, device: frequencies)
