"""What `import cascadev` gives, and what it costs."""

import subprocess
import sys

import pytest

import cascadev
from diffusion.config import ROOT

PUBLIC = {
    *("CascadePipeline", "CascadeOutput", "AutoencoderCascadeV"),
    *("CompactCompressor", "CompactPreviewer", "CompactVAE", "LowRank"),
    *("Previewer", "SemanticCompressor", "VideoDiT", "VideoVAE"),
    *("Clip", "LatentsInfo", "LatentsReader", "LatentsWriter", "VideoWriter", "read_video"),
    *("ConfigError", "UserError", "VideoError", "WeightsError"),
}


def run(code: str, *path: str) -> subprocess.CompletedProcess:
    setup = f"import sys; sys.path[:0] = {[*path, str(ROOT)]!r}\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True)


def test_the_public_names():
    """A name that is added here, or taken away, is a promise made or broken."""
    assert set(cascadev.__all__) == PUBLIC
    assert set(dir(cascadev)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_is_documented(name):
    assert (getattr(cascadev, name).__doc__ or "").strip()


def test_no_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'Cascade'"):
        cascadev.Cascade  # noqa: B018


def test_importing_takes_no_time():
    result = run("import cascadev\nassert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


def test_another_package_of_the_name_is_refused_in_one_line(tmp_path):
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "__init__.py").touch()
    result = run("import cascadev", str(tmp_path))
    assert result.returncode
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: cascadev needs its own package `diffusion`, but Python")
    assert str(tmp_path) in last
