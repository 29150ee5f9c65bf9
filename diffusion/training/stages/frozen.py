"""The networks that a stage needs beside those it trains."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import assemble, build_part, load_parts, sampling_of
from diffusion.utils.errors import ConfigError


class FrozenNetworks:
    """The networks of a config, with its `weights`, each loaded when it is first asked for.

    Training on cached latents asks for none. They are no modules of the stage that holds them, so
    that they are in no checkpoint and stay in eval mode.

    random: draw the weights instead, where only sizes and times matter.
    """

    def __init__(self, config: Mapping[str, Any], *, random: bool = False):
        self.config, self.random = config, random
        self._loaded: dict[str, nn.Module] = {}
        self._pipeline: Cascade | None = None

    def fresh(self, name: str) -> nn.Module:
        """A copy of its own, to be trained on, without the changes that the cascade makes."""
        return self._load(name, changed=False)

    def _load(self, name: str, *, changed: bool) -> nn.Module:
        if self.random:
            return build_part(self.config, name)
        return load_parts(self.config, (name,), changed=changed)[name]

    @property
    def loaded(self) -> Mapping[str, nn.Module]:
        return self._loaded

    def get(self, name: str, device: torch.device) -> nn.Module:
        if name not in self._loaded:
            # A network draws first weights, when it is needed: the run's own draws must not notice.
            with torch.random.fork_rng(devices=[]):
                network = self._load(name, changed=True)
            self._loaded[name] = network.eval().requires_grad_(False)
        network = self._loaded[name]
        if next(network.parameters()).device != device:
            network.to(device)
        return network

    def check_sampling(self, steps: int, sampler: str | None = None) -> None:
        """Refuse a config that would sample what it trains otherwise than it is trained for."""
        sampling = sampling_of(self.config)
        wanted = {"steps": steps} | ({"sampler": sampler} if sampler is not None else {})
        for name, value in wanted.items():
            if getattr(sampling, name) != value:
                raise ConfigError(
                    f"train.stage: this student is sampled with {name}={value!r}, and the config "
                    f"has {getattr(sampling, name)!r}; set reconstruct.{name}={value!r}"
                )

    def pipeline(self, device: torch.device, *more: str) -> Cascade:
        """The pipeline of frozen networks alone, in the precision of the training step.

        more: names of those that it shall have beside autoencoders.
        """
        if self._pipeline is None:
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else torch.float32
            parts = {name: self.get(name, device) for name in more}
            self._pipeline = self.cascade(parts, device, dtype)
        return self._pipeline

    def cascade(
        self,
        parts: Mapping[str, nn.Module],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Cascade:
        """The pipeline of the config around `parts` and the others that it needs."""
        uses_base = self.config.get("conditioning", {}).get("residual_std") is not None
        names = {"compressor", "vae", *(["previewer"] if uses_base else [])} - parts.keys()
        others = {name: self.get(name, device) for name in names}
        return assemble(self.config, {**parts, **others}, device=device, dtype=dtype)
