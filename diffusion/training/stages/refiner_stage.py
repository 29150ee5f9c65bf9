"""The stages that train the diffusion transformer, alone or together with the compressor."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.config import resolve
from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.weights import load_initial_weights
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.pipelines.conditioning import Conditioning
from diffusion.training.draws import Draws
from diffusion.training.losses import charbonnier
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.multi_scale import random_pieces
from diffusion.training.stages.stage import Batches, Stage
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Natural, Share, Weight
from diffusion.utils.resize import resize_bilinear

See = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""A transformer, x_t and t -> its prediction, given all else that it sees of a batch."""


def see_clip(
    network: nn.Module, x_t: Tensor, t: Tensor, *, condition: Tensor, **how: Any
) -> Tensor:
    return network(x_t, t, condition, **how)


class RefinerStage(Stage):
    """The diffusion transformer on clips, with one timestep per clip.

    Clips come encoded, or as videos that the frozen compressor and VAE encode.

    networks: the others of the cascade, for videos and for `reconstruct`.
    image_share: share of the steps whose frames are treated as unrelated images (joint training).
    position_range: the first token's frame, row and column are drawn below these, so that
        positions which no crop reaches are known all the same.
    latent_crop: train on random crops of this side, in VAE latents, out of larger clips.
    multi_scale: half of the steps see crops of twice this side, on a position lattice twice as
        fine and with a quarter of the frames; the others see four crops. See `random_pieces`.
    sample_posterior: the target is drawn from the VAE's posterior (of videos; latents are as
        they were stored).
    init_from: weights file to start from, its input layer may have fewer channels.
    """

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        networks: FrozenNetworks | None = None,
        image_share: Share = 0.1,
        position_range: tuple[Natural, Natural, Natural] = (0, 0, 0),
        latent_crop: Count | None = None,
        multi_scale: bool = False,
        sample_posterior: bool = False,
        init_from: str | None = None,
    ):
        if noise.learned_variance != refiner.learned_variance:
            raise ConfigError(
                f"noise.learned_variance={noise.learned_variance} but refiner.learned_variance="
                f"{refiner.learned_variance}; make them equal"
            )
        if multi_scale and latent_crop is None:
            raise ConfigError("multi_scale needs latent_crop, the side of the smaller scale")
        super().__init__(refiner=refiner)
        self.noise, self.conditioning, self.networks = noise, conditioning, networks
        self.image_share, self.position_range = image_share, position_range
        self.latent_crop, self.multi_scale = latent_crop, multi_scale
        self.sample_posterior, self.init_from = sample_posterior, init_from
        self.position_interpolation = refiner.position_interpolation

    def prepare(self, batches: Batches) -> None:
        if self.init_from is not None:
            load_initial_weights(self.parts["refiner"], resolve(self.init_from))

    def loss(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        latents = batch if isinstance(batch, LatentBatch) else self.encode(batch, draws)
        return {"loss_diffusion": self.diffusion_loss(latents, draws)}

    def diffusion_loss(self, latents: LatentBatch, draws: Draws) -> Tensor:
        condition = self.conditioning.join(latents.semantic, latents.base)
        x0 = self.conditioning.to_x0(latents.target, latents.base)  # (B, 4, F, h, w)
        scale = 1
        if self.latent_crop is not None:
            (x0, condition), scale = random_pieces(
                (x0, condition), self.latent_crop, self.multi_scale, draws
            )  # (B or 4 * B, ...)
        per_clip = [draws.uniform() for _ in range(len(x0) // len(latents))]
        quantiles = torch.stack(per_clip, dim=1).flatten()  # (B or 4 * B,)
        noise = draws.normal(x0)
        see = partial(  # network, x_t, t -> prediction
            see_clip,
            condition=condition,
            image_mode=draws.shared_uniform() < self.image_share,
            origin=draws.shared_integers(self.position_range),
            position_interpolation=scale * self.position_interpolation,
        )
        return self.loss_of(x0, noise, quantiles, see)

    def loss_of(self, x0: Tensor, noise: Tensor, quantiles: Tensor, see: See) -> Tensor:
        """x0, noise: (B, 4, F, h, w); quantiles: (B,) uniform in [0, 1), of the timestep."""
        t = self.noise.times(quantiles)
        prediction = see(self.parts["refiner"], self.noise.add_noise(x0, noise, t), t)
        return self.noise.training_loss(prediction, x0, noise, t).loss.mean()

    @torch.no_grad()
    def encode(self, batch: Batch, draws: Draws) -> LatentBatch:
        semantic = self.network("compressor", batch.video).encode(batch.video).float()
        return self.with_target(batch, semantic, draws)

    @torch.no_grad()
    def with_target(self, batch: Batch, semantic: Tensor, draws: Draws) -> LatentBatch:
        """The videos' VAE latents and those of their previews, beside the semantic latents."""
        vae = self.network("vae", batch.video)
        if self.sample_posterior:
            target = sample_posterior(vae, batch.video, draws)
        else:
            target = vae.encode(batch.video)
        base = None
        if self.conditioning.uses_base:
            base = vae.encode(self.network("previewer", semantic).decode(semantic)).float()
        return LatentBatch(target.float(), semantic, base, batch.sources)

    def network(self, name: str, like: Tensor) -> nn.Module:
        """The trained or frozen network, on the device of `like`."""
        return self.parts[name] if name in self.parts else self._networks().get(name, like.device)

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        """By the cascade of the config, with `parts` in it, sampled as the config says."""
        return self._networks().cascade(parts, video.device).reconstruct(video)

    def _networks(self) -> FrozenNetworks:
        if self.networks is None:
            raise ConfigError("training on videos needs the other networks of the cascade")
        return self.networks


class JointStage(RefinerStage):
    """The diffusion transformer and the compressor that its condition comes from, on videos.

    As Wuerstchen trains them (Pernias et al. 2023, arXiv:2306.00637): the gradient of
    the diffusion loss reaches the compressor through the condition. The preview's loss keeps what
    can be seen in the latents. Compressor and previewer start from the config's `weights`.

    preview_weight, latent_weight: of the preview's distance, and of the latents' mean square.
    """

    more_networks = ("previewer",)

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        networks: FrozenNetworks,
        image_share: Share = 0.1,
        position_range: tuple[Natural, Natural, Natural] = (0, 0, 0),
        sample_posterior: bool = False,
        init_from: str | None = None,
        preview_weight: Weight = 1.0,
        latent_weight: Weight = 1e-3,
    ):
        super().__init__(
            refiner=refiner,
            noise=noise,
            conditioning=conditioning,
            networks=networks,
            image_share=image_share,
            position_range=position_range,
            sample_posterior=sample_posterior,
            init_from=init_from,
        )
        for name in ("compressor", "previewer"):
            self.parts[name] = networks.fresh(name)
        self.preview_weight, self.latent_weight = preview_weight, latent_weight

    def loss(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        if isinstance(batch, LatentBatch):
            raise ConfigError("JointStage trains the compressor, so its data must be videos")
        semantic = self.parts["compressor"].encode(batch.video).float()
        preview = self.parts["previewer"].decode(semantic).float()
        wanted = resize_bilinear(batch.video, tuple(preview.shape[-2:]))
        # The base is what the refiner builds on: an input and part of its target, not to be moved.
        latents = self.with_target(batch, semantic, draws)
        return {
            "loss_diffusion": self.diffusion_loss(latents, draws),
            "preview": self.preview_weight * charbonnier(preview - wanted),
            "latents": self.latent_weight * 0.5 * semantic.square().mean(),
        }


def sample_posterior(vae: nn.Module, video: Tensor, draws: Draws) -> Tensor:
    """(B, 3, F, H, W) -> model-ready latents (B, 4, F, h, w), with this step's noise.

    (The VAE's own sampling would draw from one generator for all clips of a process.)
    """
    mean, std = vae.posterior(video)
    return (mean + std * draws.normal(mean) - vae.shift_factor) * vae.scaling_factor
