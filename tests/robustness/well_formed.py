"""Files that hold other values of the same form: what no reader without a checksum could tell from the right ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def same_form(value: Any, truth: Any, free_text: Iterable[str] = ()) -> bool:
    """JSON of the same keys and types; numbers finite and of the same sign, texts equal but those under a key of
    `free_text`, flags of either value."""
    if isinstance(truth, dict):
        return (
            isinstance(value, dict)
            and value.keys() == truth.keys()
            and all(
                same_form(value[key], truth[key], free_text)
                or (key in free_text and isinstance(value[key], str) and isinstance(truth[key], str))
                for key in truth
            )
        )
    if isinstance(truth, list):
        return (
            isinstance(value, list)
            and len(value) == len(truth)
            and all(same_form(a, b, free_text) for a, b in zip(value, truth, strict=True))
        )
    if type(value) is not type(truth):
        return False
    if isinstance(truth, (int, float)) and not isinstance(truth, bool):
        return math.isfinite(value) and (value > 0) == (truth > 0) and (value < 0) == (truth < 0)
    return isinstance(truth, bool) or value == truth


def is_records(text: str) -> bool:
    """Lines of metrics.jsonl as they are written: objects of the five keys, numbers finite, updates never falling,
    none twice."""
    *lines, cut = text.split("\n")
    if not cut.isprintable():  # of the last line a kill leaves a part
        return False
    last, seen = 0, set()
    for line in lines:
        record = json.loads(line, parse_constant=lambda name: math.nan)
        if not isinstance(record, dict) or set(record) != {
            "update",
            "phase",
            "time",
            "scalars",
            "histograms",
        }:
            return False
        update, scalars = record["update"], record["scalars"]
        identity = (update, record["phase"], record["time"], *scalars)
        if identity in seen:
            return False
        seen.add(identity)
        if type(update) is not int or update < last or not isinstance(record["phase"], str):
            return False
        if not isinstance(scalars, dict) or not all(v is None or _finite(v) for v in scalars.values()):
            return False
        if not _finite(record["time"]) or not isinstance(record["histograms"], dict):
            return False
        for histogram in record["histograms"].values():
            edges, counts = histogram["edges"], histogram["counts"]
            if (
                set(histogram) != {"edges", "counts"}
                or len(edges) != len(counts) + 1
                or sorted(edges) != edges
            ):
                return False
            if not all(map(_finite, edges)) or not all(type(n) is int and n >= 0 for n in counts):
                return False
        last = update
    return True


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def same_tensors(path: Path, truth: Path) -> bool:
    """Safetensors of the same names and shapes, all finite; floats may be of another width."""
    ours, whole = load_file(path), load_file(truth)
    return ours.keys() == whole.keys() and all(
        (ours[name].dtype == tensor.dtype or (ours[name].is_floating_point() and tensor.is_floating_point()))
        and ours[name].shape == tensor.shape
        and (not tensor.is_floating_point() or bool(torch.isfinite(ours[name]).all()))
        for name, tensor in whole.items()
    )


def same_arrays(folder: Path, truth: Path) -> bool:
    """Orbax folders whose arrays have the same names, dtypes and shapes, all finite, as tensorstore reads them."""
    ours, whole = _arrays(folder), _arrays(truth)
    return ours.keys() == whole.keys() and all(
        ours[name].dtype == array.dtype
        and ours[name].shape == array.shape
        and bool(np.isfinite(ours[name].astype(np.float64)).all())
        for name, array in whole.items()
    )


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    import tensorstore as ts  # type: ignore[import-not-found]

    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
    names = [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]
    specs = {name: {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}} for name in names}
    return {name: ts.open(spec, open=True).result().read().result() for name, spec in specs.items()}


def only_other_values(
    root: Path, truth: Path, covered: Callable[[Path], bool], free_text: Iterable[str] = ()
) -> str | None:
    """None where every file that differs holds other values of the same form and no checksum covers it; else why not.

    covered: whether a manifest in the folder has a checksum of this file (relative).
    """
    names = {str(p.relative_to(truth)) for p in truth.rglob("*")}
    if names != {str(p.relative_to(root)) for p in root.rglob("*")}:
        return "other files"
    for name in sorted(names):
        ours, whole = root / name, truth / name
        if whole.is_dir() and ours.is_dir():
            continue
        if not ours.is_file():
            return f"{name} is no file"
        if ours.read_bytes() == whole.read_bytes():
            continue
        if covered(Path(name)):
            return f"{name} has a checksum"
        try:
            if not _has_form(ours, whole, free_text):
                return f"{name} is malformed"
        except Exception as error:
            return f"{name} is damaged ({type(error).__name__})"
    return None


def _has_form(ours: Path, whole: Path, free_text: Iterable[str]) -> bool:
    if ours.name == "metrics.jsonl":
        return is_records(ours.read_text(encoding="utf-8"))
    if ours.name == "versions.json":  # names of packages to versions
        found = json.loads(ours.read_text(encoding="utf-8"))
        return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if ours.suffix == ".json":
        value, truth = (json.loads(path.read_text(encoding="utf-8")) for path in (ours, whole))
        return same_form(value, truth, free_text)
    if ours.suffix == ".safetensors":
        return same_tensors(ours, whole)
    orbax = [folder for folder in ours.parents if (folder / "manifest.ocdbt").exists()]
    # processes write into folders of their own, which the outermost one's names
    return bool(orbax) and same_arrays(orbax[-1], _counterpart(orbax[-1], ours, whole))


def _counterpart(folder: Path, ours: Path, whole: Path) -> Path:
    return whole.parents[list(ours.parents).index(folder)]
