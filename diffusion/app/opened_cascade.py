"""What every command that uses the cascade begins with: config, devices, source, networks."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from diffusion.app.options import clip_options, device_options, read_config, sampling_options
from diffusion.app.reconstruction.clip_source import ClipSource, open_clip
from diffusion.app.reconstruction.several_processes import sharing
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.reconstruction.unfinished import UnfinishedRun, run_key
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import PARTS, build_cascade, weights_of

S = TypeVar("S")


@dataclass(frozen=True)
class OpenedCascade(Generic[S]):
    """source: the clip or the latents that a command was given; path: their file.

    weights: part -> file. sampling: arguments of `Cascade.restore_stream`.
    """

    config: Mapping[str, Any]
    path: Path
    source: S
    pipeline: Cascade
    weights: dict[str, Path]
    sampling: dict[str, Any]
    stages: Stages

    @contextmanager
    def running(self, unfinished: Path, **settings: Any) -> Iterator[tuple[bool, UnfinishedRun]]:
        """Within the block, this process's share of a run, which continues what is `unfinished`.

        -> whether this process is the first one, which writes, and what is finished.
        settings: what the run depends on beside what is known here.
        """
        devices = (self.pipeline.device, self.pipeline.dtype)
        clip = self.source if isinstance(self.source, ClipSource) else None  # else all of the file
        settings = {**self.sampling, **settings, "clip": clip}
        key = run_key(self.config, self.weights, self.path, *devices, **settings)
        with (
            sharing(self.pipeline) as is_first,
            UnfinishedRun(unfinished, key, writes=is_first) as run,
        ):
            yield is_first, run


def open_cascade(
    args: argparse.Namespace,
    path: str,
    open_source: Callable[[str, Mapping[str, Any]], S],
    parts: tuple[str, ...] = PARTS,
) -> OpenedCascade[S]:
    """Refuses what cannot be before anything large is loaded.

    open_source: of the path and the config. parts: the networks that will be used.
    """
    config = read_config(args)
    sampling = sampling_options(args, config) if "refiner" in parts else {}
    devices = device_options(args)
    stages = Stages(devices["device"])
    with stages("read"):
        source = open_source(path, config)
    with stages("load"):
        pipeline = build_cascade(config, weights=args.weights, only=parts, **devices)
    weights = weights_of(config, args.weights)
    return OpenedCascade(config, Path(path), source, pipeline, weights, sampling, stages)


def open_cascade_for_clip(
    args: argparse.Namespace, parts: tuple[str, ...] = PARTS
) -> OpenedCascade[ClipSource]:
    """For the clip that the options name in `args.video`."""

    def open_source(path: str, config: Mapping[str, Any]) -> ClipSource:
        return open_clip(path, clip_options(args, config))

    return open_cascade(args, args.video, open_source, parts)
