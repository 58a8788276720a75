"""Which package may import which: only those that stand below it, whether at once, late, or for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src"
# From the lowest up. A line imports itself, where it is one package, and what stands above it in this list.
LAYERS = (
    "errors types suggest progress signals ranks statistics options version renamed",
    "files",
    "config install",
    "settings manifest",
    "data",
    "models",
    "envs",
    "training",
    "algorithms",
    "integration",
    "policies",
    "run",
    "evaluation",
    "collect",
    "online",
    "label",
    "report",
    "browser",
    "publish",
    "trial",
    "iterate",
    "improve",
    "demo",
    "serve",
    "cli",
    "scripts __main__",
)
API = "chunkrl"  # chunkrl/__init__.py: names of all layers, fetched when they are asked for
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
GENERATED = {"online_pb2"}


def modules() -> dict[str, Path]:
    found = {}
    for file in (SOURCES / API).rglob("*.py"):
        parts = file.relative_to(SOURCES).with_suffix("").parts
        if parts[-1] not in GENERATED:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that one module names in an import, wherever it stands in it."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            )
            base = ".".join(part for part in (above, node.module) if part)
            wanted = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in wanted:
            if full == API or full.startswith(API + "."):
                yield known_part(full, known)


def known_part(name: str, known: dict[str, Path]) -> str:
    """`name` without the class or function at its end."""
    return name if name in known else known_part(name.rpartition(".")[0], known)


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[-1] if parts[-1] == "__main__" else parts[1]  # programs stand above what they run


GRAPH = {name: sorted({*imports(name, file, modules())} - {name}) for name, file in modules().items()}


def test_every_package_has_its_layer() -> None:
    assert {package_of(module) for module in GRAPH if module != API} == LEVELS.keys()


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_imports_what_stands_above_it(layer: str) -> None:
    wrong = [
        (module, wanted)
        for module, all_wanted in GRAPH.items()
        if module != API and package_of(module) in layer.split()
        for wanted in all_wanted
        if wanted == API or LEVELS[package_of(wanted)] > LEVELS[package_of(module)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: {wanted for wanted in all_wanted if wanted != API} for name, all_wanted in GRAPH.items()}
    while ends := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in ends:
            del left[name]
    # what is left is on a circle, or stands above one
    while tops := [name for name in left if not any(name in wanted for wanted in left.values())]:
        for name in tops:
            del left[name]
    assert sorted(left) == []


def test_online_stays_small() -> None:
    files = [
        path for path in (SOURCES / API / "online").rglob("*.py") if path.stem not in {"__init__", *GENERATED}
    ]
    assert len(files) <= 32
