"""Reading weights from any published layout, one tensor at a time, and strictly: all of them or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import check_regular, inside
from chunkrl.files.tensor_files import check_finite
from chunkrl.install import MissingExtraError
from chunkrl.models.pi import layout
from chunkrl.models.pi.config import PiConfig
from chunkrl.models.pi.flow import PiModel

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_SHOWN = 20


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint's weights, described but not yet read.

    shapes: parameter name -> shape, as they will be after reading.
    unexpected: entries that belong to no parameter.
    read: yields (parameter name, tensor in its stored dtype, on the CPU); no two yielded tensors share memory.
    unused: published tensors that no implementation reads (kept so that saving gives them back), memory-mapped.
    tied_embedding: where the embedding comes from.
    """

    layout: str
    location: Path
    shapes: Mapping[str, tuple[int, ...]]
    unexpected: tuple[str, ...]
    tied_embedding: str
    read: Callable[[], Iterator[tuple[str, Tensor]]]
    unused: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint holds against what the model needs. `problems()` is empty for a checkpoint that fits.

    mis_shaped: (name, shape found, shape expected).
    """

    layout: str
    location: Path
    num_parameters: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mis_shaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    tied_embedding: str

    def problems(self) -> str:
        """The differences as text, one line each, at most twenty of a kind."""
        shaped = tuple(f"{name} is {list(a)}, must be {list(b)}" for name, a, b in self.mis_shaped)
        lines: list[str] = []
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", shaped))
        for title, entries in kinds:
            lines += [f"  {title}: {entry}" for entry in entries[:_SHOWN]]
            if len(entries) > _SHOWN:
                lines.append(f"  {title}: and {len(entries) - _SHOWN} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.location}: {self.layout}, {self.num_parameters:,} parameters, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.mis_shaped)} mis-shaped; "
            f"embedding from {self.tied_embedding}"
        )


# ---- PyTorch layouts


def _shards(folder: Path) -> list[Path]:
    single, index = folder / WEIGHTS_FILE, folder / WEIGHTS_INDEX
    if single.is_file():
        return [single]
    cure = "download it again"
    weight_map = read_json(index, dict, CheckpointError, cure).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is not a safetensors index ('weight_map' is no object); {cure}")
    files = {
        inside(folder, name, f"{index}: the file of '{key}'", CheckpointError)
        for key, name in weight_map.items()
    }
    absent = sorted(file.name for file in files if not file.exists())
    if absent:
        raise CheckpointError(f"{folder} lacks the shards {absent} that {index.name} names; {cure}")
    return sorted(files)


def _read_tensor(file: Path, key: str) -> Tensor:
    # Opened again for each tensor: one mapping for the whole file would keep every page read so far resident,
    # a second copy of the weights.
    with safe_open(file, framework="pt") as handle:
        return handle.get_tensor(key)


def _torch_entries(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """Name without LeRobot's prefix -> (file, key in the file, shape)."""
    entries: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for file in _shards(folder):
        check_regular(file, CheckpointError, "download it again")
        try:
            with safe_open(file, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                    name = key.removeprefix(layout.LEROBOT_PREFIX)
                    if name in entries:
                        raise CheckpointError(
                            f"{file} holds '{key}' twice (with and without 'model.'); keep one"
                        )
                    entries[name] = (file, key, tuple(handle.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is truncated or not a safetensors file ({error}); download it again"
            ) from error
    return entries


def torch_source(folder: Path, name: str) -> WeightSource:
    """Weights in openpi's or LeRobot's PyTorch layout; `name` says which in the report."""
    entries = _torch_entries(folder)
    embedding = layout.to_torch_name(layout.EMBEDDING)
    unused_names = {layout.UNUSED_HEAD} & set(entries)
    tied = embedding
    if embedding not in entries and layout.TIED_HEAD in entries:
        entries[embedding] = entries.pop(layout.TIED_HEAD)
        tied = f"{layout.TIED_HEAD} (tied)"
    elif layout.TIED_HEAD in entries:
        # LeRobot does not tie the two while it trains; it embeds with embed_tokens, so that one counts.
        del entries[layout.TIED_HEAD]
        tied = f"{embedding} (also stored as {layout.TIED_HEAD})"
    own = {layout.from_torch_name(key): entry for key, entry in entries.items() if key not in unused_names}

    def read() -> Iterator[tuple[str, Tensor]]:
        for key, (file, stored, _) in own.items():
            yield key, _read_tensor(file, stored).clone()

    def unused() -> dict[str, Tensor]:
        return {key: _read_tensor(*entries[key][:2]) for key in sorted(unused_names)}

    return WeightSource(name, folder, {k: e[2] for k, e in own.items()}, (), tied, read, unused)


# ---- JAX layout (Orbax)


def _jax_kvstore(folder: Path, path: str = "") -> dict[str, Any]:
    if (folder / "manifest.ocdbt").is_file():
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.resolve()}/"}, "path": path}
    return {"driver": "file", "path": f"{folder.resolve()}/{path}"}


def _open_jax_arrays(folder: Path) -> dict[str, Any]:
    """Parameter path joined with `/` -> open tensorstore array; a chunk that is not there is an error."""
    try:
        import tensorstore as ts  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("reading a JAX (Orbax) checkpoint", "tensorstore", "pi") from error
    for path in folder.rglob("*"):
        if not path.is_dir():
            check_regular(path, CheckpointError, "download the checkpoint again")
    try:
        keys = {key.decode() for key in ts.KvStore.open(_jax_kvstore(folder)).result().list().result()}
        names = sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))
        arrays = {}
        for name in names:
            spec = {"driver": "zarr", "kvstore": _jax_kvstore(folder, f"{name}/")}
            array = ts.open(spec, open=True).result()
            chunk: Any = array.chunk_layout.read_chunk.shape
            num_chunks = prod(-(-size // step) for size, step in zip(array.shape, chunk, strict=True))
            stored = sum(key.startswith(f"{name}/") for key in keys) - 1
            # tensorstore reads an absent chunk as zeros without a word.
            if stored != num_chunks:
                raise CheckpointError(
                    f"{folder}: '{name}' has {stored} of its {num_chunks} chunks; download the checkpoint again"
                )
            path = name.removeprefix("params.").removesuffix(".value").replace(".", "/")
            arrays[path] = array
    except (ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is not a readable Orbax checkpoint: {error}") from error
    if not arrays:
        raise CheckpointError(
            f"{folder} holds no arrays; it is not an Orbax checkpoint, or it is not complete"
        )
    return arrays


def _to_torch(array: Any) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def jax_source(folder: Path, config: PiConfig) -> WeightSource:
    """Weights in openpi's JAX layout; `folder` holds the arrays (openpi's `params`)."""
    arrays = _open_jax_arrays(folder)
    rules = layout.jax_rules(config)
    shapes, problems = layout.converted_shapes(rules, {name: tuple(a.shape) for name, a in arrays.items()})

    def read() -> Iterator[tuple[str, Tensor]]:
        # The largest first: an array and its parameters are in memory together, and later there is less room.
        for name, array in sorted(arrays.items(), key=lambda item: -item[1].size):
            stacked = rules[name].num_layers is not None
            step = array.chunk_layout.read_chunk.shape[0] if stacked else None
            for first in range(0, array.shape[0] if stacked else 1, step or 1):
                part = array[first : first + step] if step else array
                try:
                    values = part.read().result()
                except ValueError as error:
                    raise CheckpointError(
                        f"{folder}: '{name}' cannot be read ({error}); download the checkpoint again"
                    ) from error
                for key, value in rules[name].convert(_to_torch(values), first).items():
                    yield key, value.clone(memory_format=torch.contiguous_format)

    return WeightSource(
        "openpi JAX", folder, shapes, tuple(problems), "PaliGemma/llm/embedder/input_embedding", read, dict
    )


# ---- the model


def compare(config: PiConfig, source: WeightSource) -> LoadReport:
    """Match the checkpoint's names and shapes with the model's; nothing is read."""
    expected = layout.parameter_shapes(config)
    found = source.shapes
    return LoadReport(
        layout=source.layout,
        location=source.location,
        num_parameters=sum(prod(shape) for name, shape in found.items() if name in expected),
        missing=tuple(layout.to_torch_name(name) for name in expected if name not in found),
        unexpected=(
            *source.unexpected,
            *(f"{layout.to_torch_name(n)} {list(s)}" for n, s in found.items() if n not in expected),
        ),
        mis_shaped=tuple(
            (layout.to_torch_name(n), found[n], s)
            for n, s in expected.items()
            if n in found and found[n] != s
        ),
        tied_embedding=source.tied_embedding,
    )


def _kind_hint(config: PiConfig, source: WeightSource) -> str:
    names = " ".join((*source.shapes, *source.unexpected))
    found = "pi0" if "state_proj" in names else "pi05" if "time_mlp_in" in names else config.kind
    return "" if found == config.kind else f" (it looks like a {found} model)"


def load_model(
    config: PiConfig, source: WeightSource, dtype: torch.dtype | None, device: torch.device | str
) -> tuple[PiModel, LoadReport]:
    """Build the model from a checkpoint, or raise: there is no partly loaded model.

    Args:
        config: sizes; they must be the checkpoint's.
        source: see `torch_source` and `jax_source`.
        dtype: of all parameters; None keeps each as it is stored.
        device: where the parameters go, one at a time.

    Raises:
        CheckpointError: names or shapes differ, a file is truncated, a value is NaN or infinite.
    """
    report = compare(config, source)
    if report.problems():
        raise CheckpointError(
            f"{source.location} ({source.layout}) does not fit a {config.kind} model of these sizes"
            f"{_kind_hint(config, source)}; check the recipe (kind, sizes) or download the checkpoint again:\n"
            f"{report.problems()}"
        )
    with torch.device("meta"):
        model = PiModel(config)
    for name, tensor in source.read():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source.location}: {name} has dtype {tensor.dtype}; weights are floats")
        check_finite(name, tensor, source.location, CheckpointError, "the checkpoint is damaged")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device=device, dtype=dtype)))
    model.freeze_unused()
    return model, report
