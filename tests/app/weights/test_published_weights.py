import hashlib
from pathlib import Path

import pytest
from fake_hub import FakeHub

from diffusion.app.weights.published_weights import PUBLISHED, PublishedWeights, fetch_published
from diffusion.config import ROOT, load_config
from diffusion.utils.errors import UserError

TABLE = (
    PublishedWeights("one", "ours/open", ("one.bin",), "CC0"),
    PublishedWeights("two", "ours/gated", ("vae/config.json", "vae/two.bin"), "ask", "sub"),
)
CONTENT = {
    "ours/open/one.bin": bytes(range(256)) * 4000,
    "ours/gated/vae/config.json": b"{}",
    "ours/gated/vae/two.bin": b"two" * 1000,
}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with FakeHub(dict(CONTENT)) as hub:
        yield hub


def fetch(hub, root, parts=None):
    return fetch_published(root, parts, table=TABLE, endpoint=hub.endpoint)


def contents(root):
    """Every file below `root`, by its path there."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_files_of_the_config_are_fetched_to_where_it_looks():
    weights = load_config("configs/s1024.effn-f32.py")["weights"]
    for published in PUBLISHED:
        folder = ROOT / "pretrained" / published.folder
        wanted = ROOT / weights[published.part]
        assert any(wanted in ((folder / name), (folder / name).parent) for name in published.files)
    assert {published.part for published in PUBLISHED} == set(weights)


def test_every_published_file_is_in_the_readme():
    readme = (ROOT / "pretrained" / "README.md").read_text()
    for published in PUBLISHED:
        assert published.repo in readme
        for name in published.files:
            assert f"`{(Path(published.folder) / name).as_posix()}`" in readme


def test_fetches_what_is_missing_and_says_where_from(hub, tmp_path, caplog):
    caplog.set_level("INFO")
    paths = fetch(hub, tmp_path)
    expected = {
        "one.bin": CONTENT["ours/open/one.bin"],
        "sub/vae/config.json": CONTENT["ours/gated/vae/config.json"],
        "sub/vae/two.bin": CONTENT["ours/gated/vae/two.bin"],
    }
    assert contents(tmp_path) == expected
    assert [str(path.relative_to(tmp_path)) for path in paths] == list(expected)
    assert "from ours/open; licence: CC0" in caplog.text
    hub.served.clear()
    fetch(hub, tmp_path)
    assert hub.served == []


def test_only_the_parts_asked_for(hub, tmp_path):
    fetch(hub, tmp_path, ["two"])
    assert set(contents(tmp_path)) == {"sub/vae/config.json", "sub/vae/two.bin"}


def test_git_hashes_of_small_files_are_understood(hub, tmp_path):
    data = CONTENT["ours/gated/vae/config.json"]
    blob = b"blob %d\0" % len(data) + data
    hub.hashes["ours/gated/vae/config.json"] = hashlib.sha1(blob).hexdigest()
    fetch(hub, tmp_path, ["two"])
    assert (tmp_path / "sub/vae/config.json").read_bytes() == data


def test_an_interrupted_download_continues(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB
    hub.cut_after = 300_000
    with pytest.raises(UserError, match=r"ours/open/one\.bin"):
        fetch(hub, tmp_path, ["one"])
    assert not (tmp_path / "one.bin").exists()
    hub.cut_after = None
    fetch(hub, tmp_path, ["one"])
    assert contents(tmp_path) == {"one.bin": CONTENT["ours/open/one.bin"]}
    assert hub.served == [("ours/open/one.bin", 0), ("ours/open/one.bin", 300_000)]


def test_a_wrong_hash_is_refused_and_thrown_away(hub, tmp_path):
    hub.hashes["ours/open/one.bin"] = "0" * 64
    with pytest.raises(UserError, match="the hub says 000"):
        fetch(hub, tmp_path, ["one"])
    assert contents(tmp_path) == {}


def test_a_gated_repository_says_what_to_do_after_the_others_are_there(hub, tmp_path):
    hub.gated = ("ours/gated",)
    with pytest.raises(UserError, match=r"ours/gated.*accept it.*HF_TOKEN=") as caught:
        fetch(hub, tmp_path)
    assert "\n" not in str(caught.value)
    assert set(contents(tmp_path)) == {"one.bin"}


def test_the_token_is_used(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated = ("ours/gated",)
    fetch(hub, tmp_path, ["two"])
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_a_file_that_is_gone(hub, tmp_path):
    del hub.files["ours/open/one.bin"]
    with pytest.raises(UserError, match=r"ours/open no longer holds one\.bin"):
        fetch(hub, tmp_path)


def test_a_full_disk_is_not_taken_for_a_lost_network(hub, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusion.app.weights.published_weights.http_get", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(hub, tmp_path)
