"""What all networks have in common: they are saved and loaded in diffusers' format."""

import logging
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch.utils.checkpoint import checkpoint

from diffusion.models.weights import FOLDER_FILE, check_names, first_sentence
from diffusion.registry import check_options
from diffusion.utils.errors import UserError, WeightsError
from diffusion.utils.files import disk_errors, make_folder

if TYPE_CHECKING:
    from typing_extensions import Self

# diffusers 0.42 warns of every `to(dtype)`, also where nothing has to stay in float32.
loader_log = logging.getLogger("diffusers.models.modeling_utils")
loader_log.addFilter(lambda record: "should be kept in float32: []" not in record.getMessage())


class FolderError(WeightsError, OSError):
    """A folder that a network cannot be loaded from; OSError is what diffusers' users expect."""


class Network(ModelMixin, ConfigMixin):
    """A network whose constructor's arguments are its config: JSON beside safetensors in a folder.

    `from_pretrained(folder or repository, subfolder=, variant=, torch_dtype=, device_map=)` and
    `save_pretrained(folder, variant=, max_shard_size=)` are diffusers'. Here they run no code that
    comes with the weights and read no pickle, and what does not fit is an error, not a warning.

    Constructors are decorated with `register_to_config`. Attributes that share a name with one of
    its arguments must be set there: read from the config they are deprecated.
    """

    # its hooks are on `forward`, and most networks are called by `encode` or `decode`
    _supports_group_offloading = False

    # Narrower than diffusers' here: what it calls arguments of its own are among `options`.
    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "Self":
        """The network in eval mode. Raises FolderError for a folder that does not hold its weights.

        options: diffusers' (see `ModelMixin.from_pretrained`), and arguments of the constructor in
            place of those in the folder.
        """
        source = str(pretrained_model_name_or_path)
        subfolder = options.get("subfolder") or ""
        place = f"{source}/{subfolder}" if subfolder else source
        with_report = options.pop("output_loading_info", False)
        if options.get("use_safetensors") is False:
            raise UserError(
                f"{place}: use_safetensors=False asks for a pickle, which is never read"
            )
        options["use_safetensors"] = True
        dtype = options.get("torch_dtype", options.get("dtype"))
        if not isinstance(dtype, torch.dtype | None):
            raise UserError(f"{place}: torch_dtype={dtype!r} must be one of torch's, torch.float16")
        if Path(source).is_dir():
            _check_folder(Path(source), subfolder, options.get("variant"))
        try:
            with _silent_loader():
                loaded: Any = super().from_pretrained(source, output_loading_info=True, **options)
                network, report = loaded
        except (UserError, torch.OutOfMemoryError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise FolderError(f"{place}: {first_sentence(error)}") from error
        check_names(cls.__name__, report["missing_keys"], report["unexpected_keys"], place)
        return loaded if with_report else network

    @classmethod
    def from_config(  # ty: ignore[incompatible-method-override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """The network with random weights. A key that the constructor does not take is an error."""
        kind = config.get("_class_name", cls.__name__)
        if kind != cls.__name__:
            raise WeightsError(f"the config describes a {kind}, not a {cls.__name__}")
        arguments = {key: value for key, value in config.items() if key[0] != "_"}
        check_options(cls, {**arguments, **options}, f"the config of {cls.__name__}")
        return super().from_config(dict(config), return_unused_kwargs, **options)

    def save_pretrained(  # ty: ignore[incompatible-method-override]
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,  # pipelines look which of these names there are
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **options: Any,
    ) -> None:
        """Write config.json and safetensors, whole under their final names or not at all.

        variant: part of the files' names. max_shard_size: of one file.
        options: diffusers' (see `ModelMixin.save_pretrained`).
        """
        if not safe_serialization:
            raise UserError("safe_serialization=False would write a pickle; leave it out")
        folder = make_folder(save_directory)
        options |= {"variant": variant, "max_shard_size": max_shard_size}
        options.setdefault("repo_id", folder.resolve().name)
        with disk_errors(folder), TemporaryDirectory(dir=folder, prefix=".partial.") as partial:
            super().save_pretrained(partial, **options)
            for file in _weights_files(folder, variant):
                file.unlink()  # of an older save, which may have been in other shards
            for file in Path(partial).iterdir():
                shutil.move(file, folder / file.name)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """Keep activations of the borders of blocks alone and compute the others again.

        gradient_checkpointing_func: called with a block and its arguments, in place of torch's.
        """
        # diffusers' default is a local function, with which no network can be pickled
        super().enable_gradient_checkpointing(gradient_checkpointing_func or computed_again)


def computed_again(block: torch.nn.Module, *arguments: Any) -> Any:
    """block(*arguments), computed once more in the backward pass in place of being kept."""
    return checkpoint(block, *arguments, use_reentrant=False)


@contextmanager
def _silent_loader() -> Generator[None]:
    """What the loader would warn of is an error here, which says it once."""
    level = loader_log.level
    loader_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        loader_log.setLevel(level)


def _check_folder(source: Path, subfolder: str, variant: str | None) -> None:
    """Refuse a local folder without the weights, and say what it has instead."""
    # diffusers looks for files in both
    folders = [folder for folder in (source / subfolder, source) if folder.is_dir()]
    if any(_weights_files(folder, variant) for folder in folders):
        return
    place, name = source / subfolder, _name(variant)
    if not place.is_dir():
        raise FolderError(f"{place}: no such folder; check the path")
    found = sorted(place.glob("*.safetensors"))
    if found:
        raise FolderError(
            f"{place}: holds no {name}.safetensors, but {found[0].name}; see `variant`"
        )
    pickles = sorted(place.glob("*.bin"))
    if pickles:
        raise FolderError(
            f"{place}: holds {pickles[0].name}, a pickle, which is never read, and no "
            f"{name}.safetensors; ask its author for safetensors"
        )
    raise FolderError(f"{place}: holds no {name}.safetensors; check the path")


def _weights_files(folder: Path, variant: str | None) -> list[Path]:
    """The file of weights in a folder, or its shards and their index."""
    shard = r"(-\d{5}-of-\d{5})?"
    pattern = re.compile(
        rf"{re.escape(_name(variant))}{shard}\.safetensors"
        rf"|{FOLDER_FILE}\.safetensors\.index\.{variant + '.' if variant else ''}json"
    )
    return [file for file in folder.iterdir() if pattern.fullmatch(file.name)]


def _name(variant: str | None) -> str:
    return f"{FOLDER_FILE}.{variant}" if variant else FOLDER_FILE
