"""Whether all that lies in a run's folder is of one run: its configuration, records, checkpoints, values and policy.

Commands do not mix runs (`chunkrl.files.output_folder`); releases of before did, and copies by hand do. What then
lies beside a config.json is of other settings, and every number about it would be false.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chunkrl.data.sidecar import read_metadata
from chunkrl.errors import ChunkRLError, OutputFolderError
from chunkrl.files.json_files import as_json, first_object, leaves
from chunkrl.files.output_folder import KINDS
from chunkrl.policies.registry import family_in
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import FREE, is_run_folder, run_config, without_label_files
from chunkrl.training.checkpoint import VALUES
from chunkrl.training.metrics import MEASURED, METRICS_FILE

SETTINGS = "settings"
"""Key in the metadata of a run's values: `settings_of` what made them."""
_RECORDS = b'"records": ['
_OTHERS = (
    "improve",
    "iterate",
    "actor",
    "evaluate",
    "collect",
)  # commands whose files have no place in a training run's folder


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings that a run's numbers depend on, but its data and its length, as JSON."""
    return as_json(_without_free(asdict(without_label_files(config))), default=str)


def _without_free(settings: dict[str, Any], place: str = "") -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if f"{place}{name}" not in FREE}
    return {
        name: _without_free(value, f"{place}{name}.") if isinstance(value, dict) else value
        for name, value in kept.items()
    }


def check_one_run(folder: Path) -> None:
    """Looks at what is there, without the data.

    Raises:
        OutputFolderError: the folder holds parts of two runs; names them. ChunkRLError: a part is damaged.
    """
    found = list(_foreign(folder))
    if not found and (folder / "config.json").is_file():
        config = run_config(folder / "config.json")
        found = [*_wrong_values(folder, config), *_wrong_policy(folder, config), *_wrong_checkpoints(folder)]
    if found:
        raise OutputFolderError(
            f"{folder} holds parts of two runs: {'; '.join(found)}. Nothing tells which numbers belong together: "
            "move the parts of one of them away, or repeat the run that you want (chunkrl train --config "
            f"{folder / 'config.json'}), which goes into a new folder"
        )


def _foreign(folder: Path) -> Iterator[str]:
    for command in _OTHERS:
        if marks := KINDS[command].found(folder):
            yield f"{marks[0]} is of {KINDS[command].told}, beside a training run's config.json"


def _wrong_values(folder: Path, config: TrainConfig) -> Iterator[str]:
    for file in sorted(folder.glob("values*.parquet")):
        made = read_metadata(file)
        known = made.get(SETTINGS)
        if not isinstance(known, dict):  # of before all of them were noted
            known = {name: made[name] for name in ("objective", "seed") if name in made}
            returns = made.get("returns")
            known |= (
                {name: returns.get(name) for name in ("gamma", "reward")} if isinstance(returns, dict) else {}
            )
        if told := _told(known, config):
            yield f"{file.name} was made with {told}"
            return


def _wrong_policy(folder: Path, config: TrainConfig) -> Iterator[str]:
    policy = folder / "policy"
    if not policy.is_dir():
        return
    family = family_in(policy)
    if family is not config.family:
        yield f"policy/ is a {family.name} policy, and config.json has policy.kind {config.policy.kind}"
    if told := _told(family.made_with(policy), config):
        yield f"policy/ was made with {told}"


def _told(there: dict[str, Any], config: TrainConfig) -> str:
    """Settings that differ, of those that both have, since releases add some, and that are read: of the others
    `run_config` has the defaults of now."""
    then, now = leaves(there), leaves(settings_of(config))
    differing = [name for name in then if name in now and then[name] != now[name] and config.reads(name)]
    told = ", ".join(f"{name} {then[name]} where config.json has {now[name]}" for name in differing[:3])
    return told + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")


def _wrong_checkpoints(folder: Path) -> Iterator[str]:
    """Checkpoints hold the run's records: their first one is that of metrics.jsonl."""
    metrics = folder / METRICS_FILE
    if not metrics.is_file():
        return
    with metrics.open("rb") as file:
        first = first_object(file.readline())
    if first is None:
        return
    for checkpoint in sorted((folder / "checkpoints").glob("[0-9]*")):
        state = checkpoint / VALUES
        if not state.is_file():
            continue
        content = state.read_bytes()
        begin = content.find(_RECORDS)
        kept = None if begin < 0 else first_object(content[begin + len(_RECORDS) :])
        if kept is not None and not _is_same_record(kept, first):
            yield f"checkpoints/{checkpoint.name} is of another run than {METRICS_FILE}"
            return


def _is_same_record(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both are the first record of one run. It is made again, at another time but to the same numbers, where
    a run was resumed from before it."""
    if one.get("time") == other.get("time"):
        return True

    def what(record: dict[str, Any]) -> Any:
        scalars = record.get("scalars")
        kept = scalars if isinstance(scalars, dict) else {}
        numbers = {name: value for name, value in kept.items() if not name.startswith(MEASURED)}
        return record.get("update"), record.get("phase"), numbers

    return what(one) == what(other)


def check_one_run_of(policy: Path) -> None:
    """Does as `check_one_run`, where `policy` is the policy of a run's folder; nothing where it stands elsewhere."""
    run = policy.resolve().parent
    if policy.resolve().name == "policy" and is_run_folder(run):
        try:
            run_config(run / "config.json")
        except ChunkRLError:
            return  # it is another program's
        check_one_run(run)
