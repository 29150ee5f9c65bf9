"""The published weights: where each file comes from, under which licence, and fetching it."""

import errno
import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from diffusion.utils.errors import UserError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5  # seconds
SHA256_DIGITS = 64


@dataclass(frozen=True)
class PublishedWeights:
    """Files of one repository, kept under `folder` by the names they have there."""

    part: str
    repo: str
    files: tuple[str, ...]
    licence: str
    folder: str = "."


STABLE_CASCADE = "Stability AI's Stable Cascade licence: non-commercial research only"

PUBLISHED = (
    PublishedWeights(
        "compressor", "stabilityai/stable-cascade", ("effnet_encoder.safetensors",), STABLE_CASCADE
    ),
    PublishedWeights(
        "previewer", "stabilityai/stable-cascade", ("previewer.safetensors",), STABLE_CASCADE
    ),
    PublishedWeights(
        "refiner", "ByteDance/CascadeV", ("s1024.effn-f32.pth",), "CreativeML OpenRAIL++-M"
    ),
    # Last: it needs a token, and without one the others are fetched all the same.
    PublishedWeights(
        "vae",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        ("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"),
        "Stability AI Community License, to be accepted on the repository's page",
        folder="svd",
    ),
)


def fetch_published(
    root: Path,
    parts: Sequence[str] | None = None,
    *,
    table: Sequence[PublishedWeights] = PUBLISHED,
    endpoint: str | None = None,
) -> list[Path]:
    """Fetch into `root` what is missing there; the paths of all files asked for.

    parts: of `table`; None is all. endpoint: of the hub; None is HF_ENDPOINT or the public one.
    """
    paths = []
    for weights in table:
        if parts is not None and weights.part not in parts:
            continue
        for name in weights.files:
            path = root / weights.folder / name
            paths.append(path)
            if path.exists():
                logger.info("%s: already there", path)
                continue
            logger.info("%s: from %s; licence: %s", path, weights.repo, weights.licence)
            _fetch(weights.repo, name, path, root / ".downloads", endpoint)
    return paths


def _fetch(repo: str, name: str, path: Path, staging: Path, endpoint: str | None) -> None:
    """One file, through a partial one in `staging` that a later run continues.

    (hf_hub_download starts anew after an interruption and leaves the hash to the reader.)
    """
    try:
        # Asked first, because this does not retry: without a network it fails at once.
        remote = get_hf_file_metadata(
            hf_hub_url(repo, name, endpoint=endpoint), timeout=CONNECT_TIMEOUT, endpoint=endpoint
        )
        staging.mkdir(parents=True, exist_ok=True)
        # Named by its content, so that parts of two versions never meet.
        partial = staging / f"{remote.etag}.partial"
        url = hf_hub_url(repo, name, revision=remote.commit_hash, endpoint=endpoint)
        with partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=remote.size,
                displayed_filename=name,
            )
    except (HTTPError, OSError) as error:
        explanation = _explain(error, repo, name)
        if explanation is None:
            raise
        raise UserError(explanation) from error
    digest = content_hash(partial, remote.etag)
    if digest != remote.etag:
        partial.unlink()
        raise UserError(
            f"{repo}/{name}: what arrived has the hash {digest}, the hub says {remote.etag}; "
            "it was thrown away, so run the command again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)
    with suppress(OSError):  # not empty while other interrupted downloads wait
        staging.rmdir()


def content_hash(path: Path, like: str) -> str:
    """The file's hash of the kind that `like` is: SHA-256, or git's of small files."""
    if len(like) == SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _explain(error: Exception, repo: str, name: str) -> str | None:
    """What a user can do; None for errors of this machine, such as a full disk."""
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} gives its files to those who accepted its licence: accept it on "
            f"https://huggingface.co/{repo}, make a read token in your account's settings there, "
            "and run this again with HF_TOKEN=<the token>"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}/{name}: HF_HUB_OFFLINE is set; unset it to fetch weights"
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return f"{repo} no longer holds {name}; look for its new place on the repository's page"
    if isinstance(error, HfHubHTTPError):
        return f"{repo}/{name}: the hub refused it ({str(error).splitlines()[0]}); try again later"
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return None
    return (
        f"{repo}/{name}: the hub cannot be reached ({error}); check the internet connection, or "
        "fetch the files elsewhere and copy them to pretrained/ (pretrained/README.md lists them)"
    )
