"""The video diffusion transformer: a DiT whose blocks attend within the cells of a grid.

Conditioning by adaptive layer norm with one shared projection of the timestep and a learnt table
per block (adaLN-single, PixArt-alpha, Chen et al. 2023, section 2.3).
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from diffusion.models.embeddings import TimestepEmbedder, position_dims, video_positions
from diffusion.models.grid_attention import (
    AttentionName,
    Grid,
    GridAttention,
    parse_grid,
    token_size,
)
from diffusion.models.initialisation import start_at_zero, zero_bias
from diffusion.models.network import Network
from diffusion.utils.errors import ConfigError, UserError
from diffusion.utils.ranges import Count, Natural, Positive

TIMESTEP_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class PatchEmbed(nn.Module):
    """Frames -> tokens: one vector per patch x patch square."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, F, H, W) -> (B, F, h, w, D), where h = H / patch and w = W / patch."""
        tokens = self.proj(rearrange(latents, "b c f h w -> (b f) c h w"))
        return rearrange(tokens, "(b f) d h w -> b f h w d", b=len(latents))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose affine part comes from the conditioning.

    x: (B, F, h, w, D); shift, scale: (B, 1 or F, 1, 1, D).
    """
    if scale.numel() == x.shape[-1]:  # one video, one time: the norm's own affine part, in one pass
        weight, bias = (1 + scale).flatten(), shift.flatten()
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def modulation(table: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
    """Learnt table (K, D) + embedding (B, 1 or F, K or 1, D) -> K times (B, 1 or F, 1, 1, D)."""
    rows = rearrange(table + embedding, "b f k d -> k b f 1 1 d")
    return rows.unbind()


class LocalMixing(nn.Module):
    """Depthwise 3x3 convolution of every frame's tokens, added to them.

    Conditional positional encoding (Chu et al. 2021, arXiv:2102.10882): tokens learn of
    their neighbours across the borders of attention cells, and of where the picture ends.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w, D) -> (B, F, h, w, D)."""
        frames = rearrange(x, "b f h w d -> (b f) d h w")  # channels_last in memory
        return x + rearrange(self.conv(frames), "(b f) d h w -> b f h w d", b=len(x))


class Block(nn.Module):
    """Attention, then MLP, each a residual branch with modulated norm and gate."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        attention: AttentionName,
        fp32_attention: bool,
        local_mixing: bool,
    ) -> None:
        super().__init__()
        self.local = LocalMixing(hidden_size) if local_mixing else nn.Identity()
        self.attn = GridAttention(
            hidden_size, num_heads, backend=attention, fp32_attention=fp32_attention
        )
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, hidden_size))

    def forward(self, x: Tensor, embedding: Tensor, grid: Grid) -> Tensor:
        """x: (B, F, h, w, D), embedding: (B, 1 or F, 6, D) -> (B, F, h, w, D)."""
        rows = modulation(self.scale_shift_table, embedding)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = rows
        x = self.local(x)
        attended = self.attn(modulated_norm(x, shift_attn, scale_attn), grid)
        x = torch.addcmul(x, gate_attn, attended)
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """Tokens -> pixels of the patches."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.scale_shift_table = nn.Parameter(torch.empty(2, hidden_size))
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, F, h, w, D), embedding: (B, 1 or F, D) -> (B, C, F, H, W)."""
        shift, scale = modulation(self.scale_shift_table, rearrange(embedding, "b f d -> b f 1 d"))
        patches = self.linear(modulated_norm(x, shift, scale))
        p = self.patch_size
        return rearrange(patches, "b f h w (p q c) -> b c f (h p) (w q)", p=p, q=p)


class VideoDiT(Network):
    """Predicts noise (or what its training asked for) from noisy latents and a condition.

    `grids` has one entry per block (see parse_grid) and repeats when it is shorter than the depth.
    With `local_mixing` every block begins with a LocalMixing.
    With `learned_variance` the output has as many channels again for the variance.
    `timestep_dtype="float16"` rounds fractional timesteps as half-precision inference of the
    published weights did: to 0.5 above 512, to 0.25 above 256, and so on.
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = True
    # diffusers does not say that these are the class's
    _no_split_modules: ClassVar = ["Block"]  # ty: ignore[incompatible-attribute-override]
    _repeated_blocks: ClassVar = ["Block"]  # ty: ignore[incompatible-attribute-override]
    # their dtype is asked for before they are called
    _skip_layerwise_casting_patterns = ("x_embedder", "t_embedder")

    @register_to_config
    def __init__(
        self,
        *,
        latent_channels: Count = 4,
        condition_channels: Natural = 16,
        hidden_size: Count = 1152,
        depth: Count = 28,
        num_heads: Count = 16,
        patch_size: Count = 2,
        mlp_ratio: Positive = 4.0,
        learned_variance: bool = True,
        grids: Sequence[str | Sequence[int] | None] | None = None,
        position_interpolation: Positive = 1.0,
        attention: AttentionName = "auto",
        fp32_attention: bool = False,
        local_mixing: bool = False,
        timestep_dtype: Literal["float32", "float16"] = "float32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if timestep_dtype not in TIMESTEP_DTYPES:
            raise ConfigError(
                f"timestep_dtype {timestep_dtype!r} is not one of {list(TIMESTEP_DTYPES)}"
            )
        if grids is not None and not 0 < len(grids) <= depth:
            raise ConfigError(f"{len(grids)} grids for {depth} blocks; give one per block or fewer")
        position_dims(hidden_size)  # refuses a hidden size that has no positions
        if hidden_size * mlp_ratio < 1:
            raise ConfigError(f"mlp_ratio={mlp_ratio} leaves no channels of {hidden_size}")
        self.latent_channels = latent_channels
        self.condition_channels = condition_channels
        self.hidden_size = hidden_size
        self.patch_size = patch_size
        self.learned_variance = learned_variance
        self.out_channels = 2 * latent_channels if learned_variance else latent_channels
        self.position_interpolation = position_interpolation
        self.timestep_dtype = TIMESTEP_DTYPES[timestep_dtype]
        self.gradient_checkpointing = False

        cycle = [parse_grid(entry) for entry in (grids or [None])]
        self.grids = tuple(cycle[i % len(cycle)] for i in range(depth))
        self.x_embedder = PatchEmbed(latent_channels + condition_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.blocks = nn.ModuleList(
            Block(
                hidden_size,
                num_heads,
                mlp_ratio=mlp_ratio,
                attention=attention,
                fp32_attention=fp32_attention,
                local_mixing=local_mixing,
            )
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize()
        if gradient_checkpointing:
            self.enable_gradient_checkpointing()

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.proj.weight.dtype

    @property
    def size_multiple(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns must be multiples of these."""
        time, space = (
            math.lcm(*axis) for axis in zip(*(g.multiples for g in self.grids), strict=True)
        )
        return time, space * self.patch_size, space * self.patch_size

    def initialize(self) -> None:
        """Draw the weights of an untrained model."""
        # Transformer layers as in DiT: variance kept both ways, no bias.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                zero_bias(module)
        # The patch embedding is a linear layer in the shape of a convolution.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        zero_bias(self.x_embedder.proj)
        # Small, so that early on all times look alike to the blocks.
        for layer in linear_layers(self.t_embedder):
            nn.init.normal_(layer.weight, std=0.02)
        # Nothing is mixed yet either.
        for module in self.modules():
            if isinstance(module, LocalMixing):
                start_at_zero(module.conv)
        # adaLN-Zero: shifts, scales and gates start at zero, every block as the identity.
        for layer in linear_layers(self.t_block):
            nn.init.zeros_(layer.weight)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                nn.init.zeros_(module.scale_shift_table)
        # The model starts by predicting zero, so that the first loss is that of knowing nothing.
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        *,
        image_mode: bool = False,
        origin: tuple[float, float, float] = (0, 0, 0),
        position_interpolation: float | None = None,
    ) -> Tensor:
        """(B, C, F, H, W), (B,) or (B, F), (B, Cc, F, H, W) -> (B, C_out, F, H, W).

        Blocks see the first frame's timestep, the final layer every frame's. In `image_mode` frames
        are unrelated images: none attends to another, and blocks too see every frame's timestep.
        `origin` is the (frame, row, column) of the first token in its clip, in tokens.
        """
        self._check(x_t, condition, image_mode)
        latents = x_t if condition is None else torch.cat([x_t, condition], dim=1)
        x = self.x_embedder(latents.to(self.dtype))  # (B, F, h, w, D)
        x = x + video_positions(
            token_size(x),
            self.hidden_size,
            origin=tuple(origin),
            interpolation=position_interpolation or self.position_interpolation,
            device=x.device,
            dtype=self.dtype,
        )
        timestep = timestep.to(self.timestep_dtype).reshape(len(x_t), -1)  # (B, 1 or F)
        frame_embedding = self.t_embedder(timestep)  # (B, 1 or F, D)
        block_embedding = frame_embedding if image_mode else frame_embedding[:, :1]
        block_embedding = rearrange(self.t_block(block_embedding), "b f (k d) -> b f k d", k=6)
        computed_again = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        for block, grid in zip(self.blocks, self.grids, strict=True):
            grid = grid.of_single_frames() if image_mode else grid
            if computed_again is not None and torch.is_grad_enabled():
                x = computed_again(block, x, block_embedding, grid)
            else:
                x = block(x, block_embedding, grid)
        # latents stay in the caller's precision whatever the weights are in
        return self.final_layer(x, frame_embedding).to(x_t.dtype)  # (B, C_out, F, H, W)

    def _check(self, x_t: Tensor, condition: Tensor | None, image_mode: bool) -> None:
        """Refuse shapes that the layers would trip over one by one."""
        channels = (x_t.shape[1], 0 if condition is None else condition.shape[1])
        expected = (self.latent_channels, self.condition_channels)
        if channels != expected:
            raise UserError(
                f"latents and condition have {channels[0]} and {channels[1]} channels; "
                f"this model takes {expected[0]} and {expected[1]}"
            )
        size = tuple(x_t.shape[2:])
        if condition is not None and tuple(condition.shape[2:]) != size:
            raise UserError(
                f"the condition is {_by(condition.shape[2:])} (frames, rows, columns) and the "
                f"latents are {_by(size)}; resize the condition to the latents"
            )
        time, height, width = self.size_multiple
        multiple = (1 if image_mode else time, height, width)
        if any(length % m for length, m in zip(size, multiple, strict=True)):
            raise UserError(
                f"latents of {_by(size)} (frames, rows, columns) do not fit the attention grids "
                f"and patches of this model; take multiples of {_by(multiple)}"
            )


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
