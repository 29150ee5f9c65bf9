"""Which folder may import which: a reader of one layer need not know the ones above it."""

import ast

import pytest

from diffusion.config import ROOT

# From the bottom; the members of a layer may not import one another, but for the lowest.
LAYERS = (
    {"utils", "registry", "config"},
    {"models", "data", "noise"},
    {"pipelines"},
    {"hub"},
    {"evaluation"},
    {"training"},
    {"app"},
    {"tools"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted([*(ROOT / "diffusion").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


def imported(source: str) -> set[str]:
    """Dotted names of the project's modules that the code imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("diffusion", "tools")}


def part_of(name: str) -> str:
    """'diffusion.data.training.random_clips' -> 'data'; 'tools.train' -> 'tools'."""
    first, *rest = name.split(".")
    return first if first == "tools" else rest[0]


def allowed(importer: str, target: str) -> bool:
    lowest = LEVEL[importer] == LEVEL[target] == 0
    return lowest or importer == target or LEVEL[target] < LEVEL[importer]


def test_every_folder_has_a_layer():
    parts = {
        path.relative_to(ROOT / "diffusion").parts[0] for path in FILES if "tools" not in str(path)
    }
    assert {part.removesuffix(".py") for part in parts} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_below(path):
    importer = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if importer == "__init__":
        return
    breaches = [name for name in imported(path.read_text()) if not allowed(importer, part_of(name))]
    assert not breaches, f"{importer} may not import {breaches}"


def test_the_rule_can_fail():
    assert imported("from diffusion.training import trainer") == {"diffusion.training.trainer"}
    assert not allowed("evaluation", "training")
    assert not allowed("models", "data")
    assert not allowed("utils", "models")
    assert allowed("app", "evaluation")


def test_only_one_file_knows_the_config_library():
    users = [path.name for path in FILES if "mmengine" in path.read_text()]
    assert users == ["config.py"]
