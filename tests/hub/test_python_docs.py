"""What docs/python.md shows does what it says, on the embedded model and a small video."""

import re

import pytest

from diffusion.config import ROOT

TEXT = (ROOT / "docs" / "python.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(code, clip, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    (tmp_path / "my_video.mp4").symlink_to(clip)
    exec(code, {})
