"""A resumption from a state that is not the one of its folder, its run or its types is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.errors import CheckpointError
from chunkrl.manifest import write_manifest
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.training.checkpoint_checks import check_like

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    ChunkLevelOfflineRL(**settings(data, folder)).train()
    return folder


def last(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()


def resume(data: Path, run: Path, checkpoint: Path, **changes: Any) -> None:
    """As a run of its own, in another folder."""
    output = run.parent / f"{run.name}-resumed"
    ChunkLevelOfflineRL(**settings(data, output, resume=str(checkpoint), **changes)).train()


def changed(run: Path, folder: Path, change: Callable[[Tree], object]) -> Path:
    """The run's last checkpoint with a change, saved as whole as any."""
    state = load_state(last(run))
    change(state)
    save_state(folder, state)
    return folder


def put(*path: str, value: Any) -> Callable[[Tree], object]:
    def change(state: Tree) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def test_the_state_is_that_of_its_folder(data: Path, run: Path, tmp_path: Path) -> None:
    end = int(last(run).name)
    beyond = changed(run, tmp_path / f"{end + 1:07d}", put("update", value=end + 1))
    with pytest.raises(CheckpointError, match=rf"is of update {end + 1}, and this run ends at {end}: raise"):
        resume(data, tmp_path / "r", beyond)
    for folder, update in (("0000003", end), (f"{end:07d}", 3), (f"{end:07d}", 10**9)):
        moved = changed(run, tmp_path / "x" / folder, put("update", value=update))
        with pytest.raises(CheckpointError, match=rf"{folder} holds the state of update {update}.*own name"):
            resume(data, tmp_path / "r", moved)
    huge = changed(run, tmp_path / "best", put("update", value=10**9))
    with pytest.raises(CheckpointError, match="is of update 1000000000, and this run ends at"):
        resume(data, tmp_path / "r", huge)
    for update in (-1, True, 1.5, "3", None, [3]):
        wrong = changed(run, tmp_path / "best", put("update", value=update))
        with pytest.raises(CheckpointError, match=r"'update' is .*expected a count from 0"):
            resume(data, tmp_path / "r", wrong)
    with pytest.raises(CheckpointError, match=rf"is of update {end}, and this run ends at"):
        resume(data, tmp_path / "r", last(run), num_updates=1)
    assert not (tmp_path / "r-resumed" / "policy").exists()
    resume(
        data, tmp_path / "r", changed(run, tmp_path / "best", lambda state: None)
    )  # a name that is no number
    for name in ("state.safetensors", "state.json"):
        policy = tmp_path / "r-resumed" / "policy" / name
        assert policy.read_bytes() == (run / "policy" / name).read_bytes()


def of_policy(convert: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tree], object]:
    """A change of one of the policy's tensors of floats."""

    def change(state: Tree) -> None:
        policy = state["algorithm"]["policy"]
        name = next(name for name, tensor in policy.items() if tensor.is_floating_point())
        policy[name] = convert(policy[name])

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            of_policy(lambda t: t.round().to(torch.int64)),
            r"algorithm\|policy\|.*of torch.int64, expected torch.float32",
        ),
        (of_policy(lambda t: t.to(torch.float64)), r"algorithm\|policy\|.*of torch.float64"),
        (of_policy(lambda t: t.to(torch.float16)), r"algorithm\|policy\|.*of torch.float16"),
        (of_policy(lambda t: t * float("nan")), r"algorithm\|policy\|.* holds NaN or infinity"),
        (of_policy(lambda t: t[..., :1].clone()), "made with another configuration"),
        (put("algorithm", "policy", value={}), "trains other parameters"),
        (put("algorithm", "policy", value=3), r"'algorithm\|policy' is 3, expected several entries"),
        (put("algorithm", "num_policy_updates", value="3"), r"'algorithm\|num_policy_updates' is '3'"),
        (put("algorithm", "num_policy_updates", value=-5), r"'algorithm\|num_policy_updates' is -5"),
        (put("algorithm", "num_policy_updates", value=True), r"'algorithm\|num_policy_updates' is True"),
        (put("algorithm", value={}), "another configuration"),
        (lambda state: state.pop("algorithm"), "lacks algorithm"),
        (lambda state: state.pop("rng"), "lacks rng"),
        (put("rng", value={}), "another configuration"),
        (put("rng", "cpu", value=torch.zeros(4, dtype=torch.uint8)), "another configuration"),
        (put("rng", "cpu", value=torch.zeros(4)), "another configuration"),
        (put("sums", value={"a": "x"}), "'sums' and 'num_summed'"),
        (put("num_summed", value={"a": 1}), "'sums' and 'num_summed'"),
        (put("records", value={"a": 1}), "'records' is no list"),
        (put("records", value=[{"update": 1}]), "record 0 is no record"),
        (
            put(
                "records", value=[{"update": 10**6, "phase": "p", "time": 1, "scalars": {}, "histograms": {}}]
            ),
            "not those of updates up to",
        ),
        (put("data", value=3), "made on other data"),
    ],
)
def test_states_of_other_types_are_refused(
    data: Path, run: Path, tmp_path: Path, change: Callable[[Tree], object], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        resume(data, tmp_path / "r", changed(run, tmp_path / last(run).name, change))


@pytest.mark.parametrize(
    "content",
    [b"", b"../../policy", b"/etc", b"0000099", b"\xff\xfe", b"x" * 10_000, b"0000003\n0000006"],
    ids=str,
)
def test_the_pointer_names_a_checkpoint_beside_it(
    data: Path, run: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "copy" / "checkpoints").mkdir(parents=True)
    (tmp_path / "copy" / "checkpoints" / last(run).name).symlink_to(last(run))
    pointer = tmp_path / "copy" / "checkpoints" / "last"
    pointer.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last names .* no checkpoint beside it"):
        resume(data, tmp_path / "r", tmp_path / "copy")


def test_what_both_have_is_of_one_kind() -> None:
    template = {"a": torch.zeros(2), "b": {"c": 1, "d": 0.5, "e": "x", "f": [1, 2], "g": None, "h": [0.5]}}
    check_like(
        Path("f"), {"a": torch.ones(3), "new": object(), "b": {"c": -1, "d": 2, "f": [], "h": [1]}}, template
    )
    for state in (
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": 1.0},
        {"b": 1},
        {"b": {"c": 1.0}},
        {"b": {"c": -2}},
        {"b": {"d": float("nan")}},
        {"b": {"d": "1"}},
        {"b": {"e": 1}},
        {"b": {"f": 1}},
        {"b": {"f": [True]}},
        {"b": {"h": ["x"]}},
    ):
        with pytest.raises(CheckpointError, match=r"^f: 'algorithm\|"):
            check_like(Path("f"), state, template)


def test_values_that_contradict_each_other(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"a": {"b": 1}, "c": {"d": torch.ones(2)}})
    for change in ({"a": 3}, {"c": 3}, {"x": float("inf")}):
        save_state(tmp_path / "s", {"a": {"b": 1}, "c": {"d": torch.ones(2)}})
        file = tmp_path / "s" / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        write_manifest(tmp_path / "s")
        with pytest.raises(CheckpointError, match=r"state\.json"):
            load_state(tmp_path / "s")
