"""Whether a config continues the run that a checkpoint is of, or would begin another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.config import MOVED
from diffusion.training.learning_rate import LearningRate
from diffusion.utils.errors import ConfigError

# Keys that a run may change when it continues: they do not enter a step. (The length of a training
# enters through the schedule of its learning rate, see `written_out`.)
FREE_KEYS = (
    *("train.loop.max_steps", "train.loop.log_interval", "train.loop.num_workers"),
    *("train.saving", "train.fsdp", "train.compute"),
    *("data.cache_dir", "data.threads", "validation", "reconstruct"),
)
SCHEDULE_STEPS = "train.learning_rate.schedule_steps"
DIFFERENCES_SHOWN = 3


def plain(config: Any) -> Any:
    """A config as dicts, lists and plain values."""
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return config if isinstance(config, int | float | str | None) else str(config)


def check_same_config(stored: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> None:
    """Refuse to continue a run with a config that would have made it another run."""
    old, new = written_out(stored), written_out(plain(config))
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]
    if not changed:
        return
    shown = [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in changed[:DIFFERENCES_SHOWN]
    ]
    more = f" and {len(changed) - DIFFERENCES_SHOWN} more" * (len(changed) > DIFFERENCES_SHOWN)
    remedy = "undo the change"
    if changed == [SCHEDULE_STEPS]:
        remedy = f"set {SCHEDULE_STEPS}={old.get(SCHEDULE_STEPS)} for a training of another length"
    raise ConfigError(
        f"{source}: holds checkpoints of another config ({'; '.join(shown)}{more}); {remedy} or "
        "choose another --work-dir"
    )


def written_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, as it would be written today, with the length of the schedule."""
    flat = {renamed(key): value for key, value in flatten(config).items()}
    length = flat.pop(SCHEDULE_STEPS, None) or flat.get("train.loop.max_steps")
    if flat.get("train.learning_rate.schedule", LearningRate.schedule) != "constant":
        flat[SCHEDULE_STEPS] = length
    return flat


def renamed(key: str) -> str:
    """Where a value stands now that an older config, such as a checkpoint's, had at this key."""
    for old, new in MOVED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
