"""Self-attention within the cells of a grid: contiguous blocks of frames, rows and columns.

One mechanism gives full 3D attention (one cell), spatial windows, temporal chunks, and the
factorised 2+1D attention (every frame alone, then every position alone).
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from diffusion.utils.errors import ConfigError, UserError

Size = tuple[int, int, int]
"""(F, H, W) of a clip: frames, rows, columns."""

AttentionName = Literal["auto", "sdpa", "matmul", "xformers", "flash_attn"]
ATTENTION: Final[tuple[AttentionName, ...]] = get_args(AttentionName)

ALL: Final = -1
"""Cells of one token on the axis: as many as there are tokens, whatever the size of the clip."""


class Grid(NamedTuple):
    """Cells along time, and along each of rows and columns; Grid() is full 3D attention.

    n >= 1 is n cells, which grow with the clip; -n is cells of n tokens, as many as the clip needs.
    """

    time: int = 1
    space: int = 1

    @property
    def multiples(self) -> tuple[int, int]:
        """Frames, and rows and columns, must be multiples of these."""
        return abs(self.time), abs(self.space)

    def cells(self, size: Size) -> Size:
        """Cells along (F, H, W) of a clip of this size; refuses what does not divide."""
        frames, height, width = size
        return (
            _cells_on_axis("frames", frames, self.time),
            _cells_on_axis("rows", height, self.space),
            _cells_on_axis("columns", width, self.space),
        )

    def of_single_frames(self) -> "Grid":
        """The same cells in space, every frame alone: a clip taken as unrelated images."""
        return self._replace(time=ALL)


NAMED_GRIDS: Final = {"spatial": Grid(time=ALL), "temporal": Grid(space=ALL)}


def parse_grid(entry: str | Sequence[int] | None) -> Grid:
    """A block's entry in a config -> Grid.

    None is full 3D attention, [t, s] cuts time in t and both rows and columns in s, [-t, -s] makes
    cells of t frames and s x s tokens, "spatial" is every frame alone and "temporal" every position
    alone over all frames.
    """
    if entry is None:
        return Grid()
    if isinstance(entry, str):
        if entry not in NAMED_GRIDS:
            raise ConfigError(f"grid {entry!r} is not one of {sorted(NAMED_GRIDS)}, [t, s] or None")
        return NAMED_GRIDS[entry]
    counts = list(entry)
    if len(counts) != 2 or not all(isinstance(n, int) and n for n in counts):
        raise ConfigError(f"grid {entry!r} must be [t, s], cell counts, or negative: cell lengths")
    return Grid(*counts)


def token_size(x: Tensor) -> Size:
    """Of tokens (B, F, H, W, D)."""
    _, frames, height, width, _ = x.shape
    return frames, height, width


def split_grid(x: Tensor, grid: Grid) -> Tensor:
    """(B, F, H, W, D) -> (B * cells, F*H*W / cells, D).

    The batch runs over video, temporal chunk, row chunk, column chunk; merge_grid is the inverse.
    """
    t, r, c = grid.cells(token_size(x))
    return rearrange(x, "b (t f) (r h) (c w) d -> (b t r c) (f h w) d", t=t, r=r, c=c)


def merge_grid(x: Tensor, grid: Grid, size: Size) -> Tensor:
    """(B * cells, F*H*W / cells, D) -> (B, F, H, W, D), where size is (F, H, W)."""
    t, r, c = grid.cells(size)
    frames, height, width = size
    return rearrange(
        x,
        "(b t r c) (f h w) d -> b (t f) (r h) (c w) d",
        **dict(t=t, r=r, c=c, f=frames // t, h=height // r, w=width // c),
    )


class GridAttention(nn.Module):
    """Multi-head self-attention of every cell by itself.

    `fp32_attention` computes queries times keys in float32 whatever the dtype of the weights and
    under autocast too: slower, and how the published weights were trained.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        backend: AttentionName = "auto",
        fp32_attention: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ConfigError(f"hidden size {hidden_size} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.fp32_attention = fp32_attention
        self.attend = attention_backend(backend)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, F, H, W, D) -> (B, F, H, W, D)."""
        cells = split_grid(x, grid)  # (B * cells, N, D), before qkv: a third of the copying
        q, k, v = rearrange(
            self.qkv(cells), "b n (three i d) -> three b i n d", three=3, i=self.num_heads
        )
        if self.fp32_attention:
            # autocast would turn float32 operands of SDPA back into half precision
            with torch.autocast(x.device.type, enabled=False):
                out = self.attend(q.float(), k.float(), v.float()).to(v.dtype)
        else:
            out = self.attend(q, k, v)
        out = self.proj(rearrange(out, "b i n d -> b n (i d)"))
        return merge_grid(out, grid, token_size(x))


def _cells_on_axis(axis: str, length: int, cells: int) -> int:
    if length % cells:
        of = f"{cells} cells" if cells > 0 else f"cells of {-cells}"
        raise UserError(
            f"{length} {axis} of tokens do not divide into {of} of attention; "
            f"pad to a multiple of {abs(cells)}"
        )
    return cells if cells > 0 else length // -cells


# Of "matmul", at a time: 16 MB in 16 bits, which the next step finds in or near the cache.
SCORES: Final = 2**23


def attention_backend(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """-> a function of q, k, v, each (B, heads, N, d), that returns (B, heads, N, d)."""
    if name == "auto":
        return _auto_attention
    if name == "sdpa":
        return functional.scaled_dot_product_attention
    if name == "matmul":
        return _matmul_attention
    if name == "xformers":
        return _xformers_backend()
    if name == "flash_attn":
        return _flash_attn_backend()
    raise ConfigError(f"attention {name!r} is not one of {', '.join(ATTENTION)}")


def _auto_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA, but where its kernel for CPUs makes nothing of bfloat16 (docs/large_videos.md)."""
    # a backward pass would keep the scores
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not q.requires_grad:
        return _matmul_attention(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v as it is written, for some cells and some queries at a time."""
    _, heads, n, d = q.shape
    cells, queries = max(1, SCORES // (heads * n * n)), max(1, SCORES // (heads * n))
    q, k = q * d**-0.5, k.transpose(-1, -2)
    out = []
    for some_q, some_k, some_v in zip(q.split(cells), k.split(cells), v.split(cells), strict=True):
        rows = [(x @ some_k).softmax(-1) @ some_v for x in some_q.split(queries, dim=2)]
        out.append(torch.cat(rows, dim=2))
    return torch.cat(out)


def _xformers_backend() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "attention 'xformers' needs a package: pip install xformers; or choose 'auto'"
        ) from error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "b i n d -> b n i d") for x in (q, k, v))  # xformers' layout
        return rearrange(memory_efficient_attention(q, k, v), "b n i d -> b i n d")

    return attend


def _flash_attn_backend() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ConfigError(
            "attention 'flash_attn' needs a package: pip install flash-attn; or choose 'auto'"
        ) from error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "b i n d -> b n i d") for x in (q, k, v))  # its layout
        return rearrange(flash_attn_func(q, k, v), "b n i d -> b i n d")

    return attend
