"""How clips and frames are cut for the networks, as a user says it."""

from dataclasses import dataclass

from diffusion.models.dit import VideoDiT
from diffusion.pipelines.blending import (
    Spans,
    Tiles,
    blended_spans,
    chunk_spans,
    published_tiles,
    published_windows,
)
from diffusion.utils.errors import ConfigError


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class Windows:
    """Frames that the refiner takes at a time.

    Longer clips go through overlapping windows that are blended at every sampler step.

    window, window_overlap: in frames.
    published: half a window apart, and blended unevenly, as the published implementation did.
    """

    window: int = 8
    window_overlap: int = 4
    published: bool = False

    def __post_init__(self):
        require(self.window >= 1, f"window={self.window} must be at least 1")
        require(
            0 <= self.window_overlap < self.window,
            f"window_overlap={self.window_overlap} must be 0 to {self.window - 1}, less than "
            f"window={self.window}",
        )
        require(self.window >= 2 or not self.published, "published windows need window=2 or more")

    def check(self, refiner: VideoDiT) -> None:
        """Refuse windows that the refiner's grids cannot take."""
        multiple = refiner.size_multiple[0]
        require(
            self.window % multiple == 0,
            f"cascade.window={self.window} does not fit this model; use a multiple of {multiple}",
        )

    def spans(self, num_frames: int) -> Spans:
        if self.published:
            return published_windows(num_frames, self.window)
        return chunk_spans(num_frames, self.window, self.window_overlap)

    def frames_in_flight(self, steps: int) -> int:
        """Frames that are held while a clip is restored in so many steps."""
        return self.window + steps * (self.window - self.window_overlap)


@dataclass(frozen=True)
class TileSizes:
    """Rows and columns that a network takes at a time, in VAE latents (8 pixels).

    tile, tile_overlap: of the refiner, blended at every sampler step. Without a tile it takes whole
        frames if they fit into memory, else the largest tiles that do; without an overlap it is a
        quarter of the tile.
    vae_tile: of the other networks, whose tiles are blended in their results.
    memory_gb: what may be used of the free memory; sizes that are not given follow from it.
    published: the refiner's tiles overwrite each other, as in the published implementation.
    """

    tile: int | None = None
    tile_overlap: int | None = None
    vae_tile: int | None = None
    memory_gb: float | None = None
    published: bool = False

    def __post_init__(self):
        for name in ("tile", "vae_tile"):
            size = getattr(self, name)
            require(size is None or size >= 1, f"{name}={size} must be at least 1, or None")
        overlap = self.tile_overlap
        if overlap is not None:
            require(overlap >= 0, f"tile_overlap={overlap} must be at least 0, or None")
            require(
                self.tile is None or overlap < self.tile,
                f"tile_overlap={overlap} must be less than tile={self.tile}",
            )
        require(
            self.memory_gb is None or self.memory_gb > 0,
            f"memory_gb={self.memory_gb} must be above 0, or None",
        )

    def check(self, refiner: VideoDiT) -> None:
        """Refuse tiles that the refiner's grids and patches cannot take."""
        if self.tile is None:
            return
        multiple, patch = refiner.size_multiple[1], refiner.patch_size
        require(
            self.tile % multiple == 0,
            f"cascade.tile={self.tile} does not fit this model; use a multiple of {multiple}",
        )
        require(
            self.overlap(self.tile) <= self.tile - patch,
            f"cascade.tile_overlap={self.tile_overlap} does not fit this model; use at most "
            f"{self.tile - patch}",
        )

    def overlap(self, tile: int) -> int:
        return tile // 4 if self.tile_overlap is None else self.tile_overlap

    def refiner_tiles(self, rows: int, columns: int, tile: int, patch: int) -> Tiles:
        """Of the given side, for a refiner with patches of patch x patch."""
        if self.published:
            return Tiles(published_tiles(rows, tile), published_tiles(columns, tile))
        overlap = self.overlap(tile)
        return Tiles(
            blended_spans(rows, tile, overlap, patch), blended_spans(columns, tile, overlap, patch)
        )
