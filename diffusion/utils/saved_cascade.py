"""What a saved cascade's folder says of it: JSON, of which nothing is run."""

import json
from pathlib import Path
from typing import Any

from diffusion.utils.errors import ConfigError

INDEX = "model_index.json"
LIBRARY = "cascadev"  # whose classes the index names
CHANGE = "LowRank"  # the class of what is no network of its own


def saved_config(folder: Path) -> dict[str, Any]:
    """The keys of a config: what the index has of the model, its networks, and their weights."""
    index = read_json(folder / INDEX)
    config: dict[str, Any] = dict(index.get("settings") or {})
    weights = {}
    for name, entry in index.items():
        if not (isinstance(entry, list) and entry[:1] == [LIBRARY] and Path(name).name == name):
            continue
        weights[name] = str(folder / name)
        if entry[1:] != [CHANGE]:
            written = read_json(folder / name / "config.json")
            options = {key: value for key, value in written.items() if key[0] != "_"}
            config[name] = {"type": written.get("_class_name"), **options}
    return {**config, "weights": weights}


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConfigError for a file that is missing, or no JSON of names and values."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable part of a saved cascade ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, no names and values")
    return values
