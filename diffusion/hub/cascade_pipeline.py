"""The cascade as a pipeline of diffusers, over what the commands use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, __version__
from diffusers.utils import BaseOutput
from packaging.version import Version
from torch import Tensor

from diffusion.hub.videos import Video, as_output, as_video, check_output_type
from diffusion.models.autoencoder import Autoencoder
from diffusion.models.dit import VideoDiT
from diffusion.models.interfaces import Compressor, PreviewDecoder
from diffusion.models.low_rank import LowRank, change
from diffusion.models.network import FolderError
from diffusion.noise.samplers import draw_seed
from diffusion.noise.sampling import OwnScheduler
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import PARTS, assemble, reconstruct_of
from diffusion.pipelines.cascade_folder import CLASS, write_pipeline_file
from diffusion.pipelines.restore import Run
from diffusion.pipelines.streams import SamplerStep
from diffusion.utils.devices import choose_device, choose_dtype
from diffusion.utils.errors import UserError
from diffusion.utils.saved_cascade import INDEX, LIBRARY

# what diffusers' own pipelines call it
DTYPE = "torch_dtype" if Version(__version__) < Version("0.42") else "dtype"

Callback = Callable[["CascadePipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class CascadeOutput(BaseOutput):
    """frames: what `output_type` asked for, see `as_output`."""

    frames: Any


class CascadePipeline(DiffusionPipeline):  # ty: ignore[unsupported-base]  (or a dummy)
    """Compresses videos to semantic latents, and restores them by diffusion.

    Videos: see `Video` in diffusion/hub/videos.py. Latents: (B, 16, F, H/32, W/32), of about unit
    variance, float32. Any size and length: sides are padded to multiples of 32, long clips go
    through windows.

    Example:
        pipe = CascadePipeline.from_pretrained("pretrained/compact", torch_dtype="auto")
        latents = pipe.encode("my_video.mp4")
        frames = pipe.decode(latents, num_inference_steps=8, output_type="pil").frames

    After Wuerstchen (Pernias et al. 2023, arXiv:2306.00637), with a video VAE at the end.
    """

    model_cpu_offload_seq = "compressor->previewer->refiner->vae"
    _optional_components: ClassVar = ["previewer", "decoder_change", "refiner_change"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        compressor: Compressor,
        vae: Autoencoder,
        refiner: VideoDiT,
        scheduler: SchedulerMixin,
        previewer: PreviewDecoder | None = None,
        decoder_change: LowRank | None = None,
        refiner_change: LowRank | None = None,
        settings: dict[str, Any] | None = None,
    ):
        """decoder_change, refiner_change: made to `vae.decoder` and `refiner`, for good.

        settings: the keys `model_id`, `noise`, `conditioning`, `cascade` and `reconstruct` of a
            config.
        """
        super().__init__()
        if decoder_change is not None:
            change(vae.get_submodule("decoder"), decoder_change)
        if refiner_change is not None:
            change(refiner, refiner_change)
        self.register_modules(
            compressor=compressor,
            previewer=previewer,
            vae=vae,
            refiner=refiner,
            scheduler=scheduler,
            decoder_change=None,
            refiner_change=None,
        )
        self.register_to_config(settings=dict(settings or {"model_id": "cascade"}))
        self._built: tuple[tuple[Any, ...], Cascade] | None = None
        self._cascade()  # refuses settings that do not fit

    # Folders.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "CascadePipeline":
        """A folder that `save_pretrained` wrote, or a repository of the hub. No code of it is run.

        torch_dtype, dtype: that the networks compute in. "auto": what the device is fast at. The
            refiner's weights are in it; the others stay float32, since theirs is the last word.
        device: "auto", "cuda", ...; by default the CPU.
        options: of DiffusionPipeline.from_pretrained, such as `variant`, and components.
        """
        import cascadev  # noqa: F401  what the folder names; diffusers imports none by itself

        source = str(pretrained_model_name_or_path)
        if Path(source).is_dir() and not (Path(source) / INDEX).is_file():
            raise FolderError(f"{source}: holds no {INDEX}; is it the folder of a pipeline?")
        torch_dtype = dtype if torch_dtype is None else torch_dtype
        chosen = choose_device(str(device or "cpu"))
        if isinstance(torch_dtype, str):
            torch_dtype = choose_dtype(torch_dtype, chosen)
        if torch_dtype is not None:
            options[DTYPE] = {"refiner": torch_dtype, "default": torch.float32}
        try:
            pipeline = super().from_pretrained(source, **options)
        except (UserError, torch.OutOfMemoryError):
            raise
        except (OSError, ValueError) as error:
            raise FolderError(f"{source}: {' '.join(str(error).split())}") from error
        return pipeline if device is None else pipeline.to(chosen)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        """Without the code that the folder carries, which only trust_remote_code runs."""
        return {**super()._dict_from_json_file(json_file), "_class_name": CLASS}

    def save_config(self, save_directory: str | Path, **options: Any) -> None:
        """The index, and the code for who trusts it; `save_pretrained` calls this at last."""
        super().save_config(save_directory, **options)
        write_pipeline_file(Path(save_directory))

    def register_to_config(self, **values: Any) -> None:
        """Classes of this project are found by their public names."""
        for name, value in values.items():
            if isinstance(value, tuple) and str(value[0]).startswith("diffusion."):
                values[name] = (LIBRARY, value[1])
        super().register_to_config(**values)

    # Use.

    @property
    def dtype(self) -> torch.dtype:
        """That the networks compute in: the refiner's."""
        return self.refiner.dtype

    @torch.no_grad()
    def encode(self, video: Video) -> Tensor:
        """-> semantic latents (B, 16, F, H/32, W/32) float32; sides are padded by reflection.

        Raises UserError, and VideoError for a file that cannot be read.
        """
        return self._cascade().encode(as_video(video))

    @torch.no_grad()
    def preview(self, latents: Tensor, output_type: str = "pt") -> Any:
        """What the latents hold without diffusion, possibly smaller: see `as_output`."""
        return as_output(self._cascade().preview(latents), output_type)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> CascadeOutput | tuple[Any]:
        """(B, 16, F, h, w) -> `.frames` of (32h, 32w) pixels.

        num_inference_steps: by default those that the model is meant for.
        generator: of the noise; without one it is always the same.
        callback_on_step_end: called with the pipeline, the step, its timestep and
            {"latents": x_t (B, 4, F, 4h, 4w)}; what it returns under that name takes its place.
            A clip of several windows takes its steps piece by piece, and calls come for each.
        """
        check_output_type(output_type)
        whole = self.decode_stream(
            [latents],
            latents.shape[2],
            num_inference_steps,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        frames = as_output(torch.cat(list(whole), dim=2), output_type)
        return CascadeOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def decode_stream(
        self,
        latents: Iterable[Tensor],
        num_frames: int,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Iterator[Tensor]:
        """`decode` of latents that come in pieces along the frames, `num_frames` in all.

        -> videos (B, 3, f, H, W) in [-1, 1], in order, each as soon as it is done; together they
        are what `decode` gives. Memory does not grow with the clip.
        """
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise UserError(f"a callback is given 'latents', not {sorted(unknown)}")
        cascade = self._cascade()
        sampling = self._sampling(num_inference_steps)
        windows = len(cascade.time_spans(num_frames).starts)
        timesteps = sampling.own.timesteps

        with self.progress_bar(total=sampling.steps * windows) as bar:

            def on_step(step: SamplerStep) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                given = {"latents": step.x} if callback_on_step_end_tensor_inputs else {}
                answer = callback_on_step_end(self, step.index, timesteps[step.index], given)
                return (answer or {}).get("latents")

            run = Run(sampling, draw_seed(generator), on_step=on_step)
            pieces = ((piece, None) for piece in latents)
            restored = cascade.restorer.stream(pieces, num_frames, run)
            yield from cascade.decode_vae_stream(restored, num_frames)

    @torch.no_grad()
    def __call__(
        self, video: Video, output_type: str = "pt", return_dict: bool = True, **options: Any
    ) -> CascadeOutput | tuple[Any]:
        """Encode and decode: `.frames` of the video's size. options: see `decode_stream`."""
        check_output_type(output_type)
        source = as_video(video)
        latents = self.encode(source)
        decoded = torch.cat(list(self.decode_stream([latents], latents.shape[2], **options)), dim=2)
        frames = as_output(decoded[..., : source.shape[-2], : source.shape[-1]], output_type)
        return CascadeOutput(frames=frames) if return_dict else (frames,)

    def _sampling(self, steps: int | None) -> OwnScheduler:
        options = self.config["settings"].get("cascade", {})
        spacing = options.get("euler_a_spacing", "even")
        count = reconstruct_of(self.config["settings"]).steps if steps is None else steps
        published = options.get("published", False)
        return OwnScheduler.of(self.scheduler, count, spacing, published)

    def _cascade(self) -> Cascade:
        """Of the components as they are now, where they are now."""
        parts = {name: getattr(self, name) for name in PARTS}
        moved = any(hasattr(part, "_hf_hook") for part in parts.values() if part is not None)
        device = self._execution_device
        key = (device, self.dtype, moved, *map(id, parts.values()))
        if self._built is None or self._built[0] != key:
            cascade = assemble(
                self.config["settings"], parts, device=device, dtype=self.dtype, live=moved
            )
            self._built = (key, cascade)
        return self._built[1]
