"""The video VAE between pixels and the latents that the DiT restores: Stable Video Diffusion's."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor

from diffusion.models.autoencoder import Autoencoder
from diffusion.utils.errors import UserError
from diffusion.utils.frames import map_frames
from diffusion.utils.progress import track
from diffusion.utils.ranges import Count, Natural, Positive
from diffusion.utils.spans import span_starts, span_weights


class VideoVAE(Autoencoder):
    """Encodes every frame by itself; decodes spans of frames with layers that mix them in time.

    Latents that go in and out are model-ready: shifted and scaled for the diffusion model.
    Parameter names are those of the published `vae` folder.
    """

    _supports_gradient_checkpointing = True

    temporal_compression = 1

    @register_to_config
    def __init__(
        self,
        *,
        block_out_channels: Sequence[Count] = (128, 256, 512, 512),
        layers_per_block: Count = 2,
        latent_channels: Count = 4,
        # SDXL's value. This VAE's own is 0.18215, but the published DiT was trained with SDXL's.
        scaling_factor: Positive = 0.13025,
        shift_factor: float = 0.0,
        force_upcast: bool = True,
        encode_chunk: Count = 4,
        decode_chunk: Count = 8,
        decode_overlap: Natural = 4,
    ) -> None:
        """The default sizes are the published ones.

        force_upcast: encode in float32 where autocast would compute in float16, whose range the
            encoder leaves; so the published folder's config has it.
        encode_chunk: frames per encoder call; it bounds memory, not the result.
        decode_chunk: frames decoded together. The layers that mix frames do not see beyond it, so
            it is a matter of quality as well as of memory. The published model used 4.
        decode_overlap: frames that neighbouring chunks share and blend, so that their borders do
            not flicker. 0 decodes independent chunks, as the published model did.
        """
        # slow, and other VAEs need none of it
        from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
            AutoencoderKLTemporalDecoder,
        )

        super().__init__()
        if not 0 <= decode_overlap < decode_chunk:
            raise UserError(
                f"decode_overlap={decode_overlap} must be at least 0 and less than "
                f"decode_chunk={decode_chunk}"
            )
        autoencoder = AutoencoderKLTemporalDecoder(
            down_block_types=len(block_out_channels) * ("DownEncoderBlock2D",),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
        )
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv
        self.decoder = autoencoder.decoder

        self.latent_channels = latent_channels
        self.spatial_compression = 2 ** (len(block_out_channels) - 1)
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        self.force_upcast = force_upcast
        self.encode_chunk = encode_chunk
        self.decode_chunk = decode_chunk
        self.decode_overlap = decode_overlap

    @apply_forward_hook
    def encode(
        self,
        video: Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, C, F, h, w): the posterior's mean, or a sample of it.

        The noise of a sample is one draw for the whole video, so it does not depend on the chunks.
        """
        latents, std = self.posterior(video)
        if sample_posterior:
            from diffusers.utils.torch_utils import randn_tensor

            noise = randn_tensor(std.shape, generator, device=std.device, dtype=std.dtype)
            latents = latents + std * noise
        return (latents - self.shift_factor) * self.scaling_factor

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, F, H, W) -> mean, standard deviation of unscaled latents (B, C, F, h, w)."""
        height, width = video.shape[-2:]
        if height % self.spatial_compression or width % self.spatial_compression:
            raise UserError(
                f"the VAE cannot encode {height}x{width} pixels (height x width): "
                f"crop or pad both to multiples of {self.spatial_compression}"
            )
        if self._must_upcast(video.device):
            with torch.autocast(video.device.type, enabled=False):
                return self.posterior(video.float())
        moments = map_frames(
            lambda frames: self.quant_conv(self.encoder(frames)), video, self.encode_chunk
        )  # (B, 2C, F, h, w)
        mean, log_variance = moments.chunk(2, dim=1)
        # Only keeps exp() finite; trained networks stay well inside.
        return mean, (log_variance.clamp(-30, 20) / 2).exp()

    def _must_upcast(self, device: torch.device) -> bool:
        autocast = self.force_upcast and torch.is_autocast_enabled(device.type)
        return autocast and torch.get_autocast_dtype(device.type) == torch.float16

    @apply_forward_hook
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, H, W), about [-1, 1] and not clamped; any F from 1."""
        latents = latents / self.scaling_factor + self.shift_factor
        length = latents.shape[2]
        starts = span_starts(length, self.decode_chunk, self.decode_overlap)
        weights = span_weights(starts, self.decode_chunk, length).to(
            latents
        )  # (spans, span length)
        video: Tensor | None = None
        for start, weight in track(list(zip(starts, weights, strict=True))):
            span = slice(start, start + len(weight))
            decoded = self._decode_together(latents[:, :, span])
            if video is None:
                video = decoded.new_zeros(*decoded.shape[:2], length, *decoded.shape[3:])
            video[:, :, span].addcmul_(decoded, rearrange(weight, "f -> f 1 1"))
        assert video is not None  # there is a span of any length from 1
        return video

    def _decode_together(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, F, h, w) -> (B, 3, F, H, W), mixing all F frames."""
        batch, _, num_frames = latents.shape[:3]
        # The decoder's layers mix in time what this marks as video, not as separate images.
        is_image = latents.new_zeros(batch, num_frames)
        frames = rearrange(latents, "b c f h w -> (b f) c h w")
        decoded = self.decoder(frames, num_frames=num_frames, image_only_indicator=is_image)
        return rearrange(decoded, "(b f) c h w -> b c f h w", b=batch)
