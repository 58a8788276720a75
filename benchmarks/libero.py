"""Success on LIBERO over training seeds, on mixed-quality scripted data: LIBERO physics and tasks.

    python -m benchmarks.libero                       # libero_spatial on states that include the objects, 3 seeds
    python -m benchmarks.libero --variant images      # two tasks on two 128-pixel cameras and the robot's state
    python -m benchmarks.libero --num-states 10       # later: more official initial states; what is there is kept
    python -m benchmarks.libero --development         # placements of seed 777, for choosing settings

Every seed has a data set of its own (collection seed 1010 + s, sampled placements), its own networks, and the same
official initial states for every arm and seed, which no choice of a setting has seen. A kill loses the episode or
training under way; what is finished is kept, in the output folder and in the results, so that a fresh clone goes on
from results that were committed. Prints Markdown.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.balance_choice import CANDIDATES
from benchmarks.kept import check_settings
from benchmarks.libero_records import Finished, Outcomes, Records
from benchmarks.libero_tables import add_intervals, markdown
from benchmarks.metaworld import summarize
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.algorithms.value_config import Draw
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.frames import FrameTable
from chunkrl.demo.arms import (
    APART,
    BC,
    BEST_OF_16,
    CHUNK_RL,
    DISTILLED,
    SCALE_3,
    SHUFFLED,
    SUCCESS_BC,
    TOGETHER,
    UNBALANCED,
    Arm,
)
from chunkrl.demo.experiment import data_hash
from chunkrl.envs.registry import asset_fingerprint, expand
from chunkrl.envs.scripted import Mixture, MixtureConfig
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.observed import fit_policy, make_pool, renamed
from chunkrl.evaluation.rollout import Episode, EpisodeResult, RolloutConfig, run_episodes
from chunkrl.models.config import NetworkConfig
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.progress import Progress, ProgressBars, silent
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import run_config
from chunkrl.run.offline import ChunkLevelOfflineRL

Variant = Literal["state", "images"]
_CANDIDATES = [arm for arm in CANDIDATES if arm.values == CHUNK_RL.values]  # they share one value phase
ARMS = (
    BC,
    SUCCESS_BC,
    CHUNK_RL,
    APART,
    TOGETHER,
    SCALE_3,
    UNBALANCED,
    SHUFFLED,
    BEST_OF_16,
    DISTILLED,
    *_CANDIDATES,
)
MAIN_ARMS = (BC, SUCCESS_BC, CHUNK_RL, UNBALANCED)


@dataclass(frozen=True)
class Recipe:
    """What a variant has unless the command line says otherwise.

    num_collect: episodes of a data set. num_folds, value_epochs, lam: of the values; draw: of the policy's starts.
    The few episodes with images are memorised within two passes, and where V knows little of unseen episodes the
    advantage is better made of returns alone (lambda 1): otherwise the first steps of an episode, which V's error
    outweighs, are hardly learned. Of a batch of 64 eight rows would carry the weighted loss: starts are drawn by
    weight.
    """

    tasks: tuple[str, ...]
    num_collect: int
    updates: int
    batch_size: int
    num_folds: int
    value_epochs: float
    lam: float
    draw: Draw


RECIPES: dict[Variant, Recipe] = {
    "state": Recipe(("libero_spatial",), 200, 3000, 256, 5, 5.0, 0.98, "uniform"),
    "images": Recipe(("libero_spatial/0", "libero_spatial/5"), 60, 1500, 64, 3, 1.0, 1.0, "weight"),
}
CAMERA_SIZE = 128
DEVELOPMENT_SEED = 777000  # sampled placements of this seed and the following ones


@dataclass(frozen=True)
class LiberoBenchmark:
    """What to run."""

    variant: Variant = "state"
    """state: object and target poses in the state, no cameras; images: cameras and the robot's state."""
    output_dir: str = "runs/libero"
    """Data, runs and episodes."""
    results: str = "benchmarks/results/libero.json"
    """The summary; a variant has its own entry."""
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(arm.name for arm in MAIN_ARMS)
    data_seed: int = 1010
    """Seed s collects with data_seed + s."""
    num_collect: int | None = None
    """Episodes of each data set; this and the next ones: the variant's where they are not given."""
    num_states: int = 5
    """Official initial states per task: 0, 1, ..."""
    mixture: Mixture = "episodes"
    """How good and bad behaviour are mixed: whole episodes, or `within` them."""
    updates: int | None = None
    """Policy updates."""
    lr: float = 1e-3
    """The learning rate at first; it falls to a tenth of that (cosine)."""
    gamma: float = 0.998
    """Discount a step; episodes have 100 to 220 steps."""
    value_epochs: float | None = None
    """Of the value phase."""
    num_folds: int | None = None
    """Networks of the value phase, each of which sees all but its share of the episodes."""
    lam: float | None = None
    """Lambda of the advantages."""
    draw: Draw | None = None
    """How the weighted policy's starts are drawn."""
    horizon: int = 10
    """H, executed whole."""
    max_steps: int | None = None
    """Time limit, steps; default: the suite's."""
    num_workers: int = 2
    """Simulator processes."""
    development: bool = False
    """Sampled placements of seed 777 and a data set of collection seed 777, in a folder of their own."""

    @property
    def recipe(self) -> Recipe:
        """The variant's, with what was given."""
        names = [f.name for f in fields(Recipe)]
        given = {name: value for name in names if (value := getattr(self, name, None)) is not None}
        return replace(RECIPES[self.variant], **given)


@dataclass(frozen=True)
class _Place:
    """Folders and data of one seed."""

    config: LiberoBenchmark
    seed: int

    @property
    def root(self) -> Path:
        config = self.config
        return Path(config.output_dir) / f"{config.variant}{'-development' if config.development else ''}"

    @property
    def collection(self) -> CollectConfig:
        """Mixed quality, sampled placements."""
        config, images = self.config, self.config.variant == "images"
        return CollectConfig(
            env="+".join(config.recipe.tasks),
            mixture=MixtureConfig(mixture=config.mixture),
            num_episodes=config.recipe.num_collect,
            max_steps=config.max_steps,
            seed=(777 if config.development else config.data_seed) + self.seed,
            num_workers=config.num_workers,
            state="full" if images else "privileged",
            camera_size=CAMERA_SIZE if images else 0,
            rendering="fast",
        )

    @property
    def dataset(self) -> Path:
        return self.root / "data" / f"seed{self.collection.seed}-{self.collection.num_episodes}"

    def run(self, arm: Arm) -> Path:
        """The training that an arm shares with those that differ in how they act."""
        first = next(a for a in ARMS if a.training == arm.training)
        return self.root / "runs" / f"seed{self.seed}" / first.name

    @property
    def values(self) -> Path:
        """The values that all arms share."""
        return self.root / "runs" / f"seed{self.seed}" / "values"

    def episodes(self, arm: Arm) -> Path:
        return self.root / "episodes" / f"seed{self.seed}-{arm.name}.jsonl"


def shared_settings(config: LiberoBenchmark) -> dict[str, Any]:
    """What all data and runs of a folder, and all records of a results file, have in common; as JSON has it."""
    names = ("mixture", "lr", "gamma", "horizon", "max_steps")
    settings = {name: getattr(config, name) for name in names}
    settings |= {"recipe": asdict(config.recipe), "network": asdict(NetworkConfig())}
    return json.loads(json.dumps(settings))


def collect(place: _Place, progress: Progress) -> dict[str, Any]:
    """Collects what is missing; hash, frames and success of the data."""
    num_success = collect_dataset(place.dataset, place.collection, progress, accept_complete=True)
    table = FrameTable.open(place.dataset, progress=silent)
    return {
        "sha256": data_hash(table),
        "episodes": table.num_episodes,
        "frames": table.num_frames,
        "success": num_success / table.num_episodes,
    }


def train(place: _Place, arm: Arm, progress: Progress) -> None:
    """Trains the arm's policy unless it is there, and before it the values that it needs."""
    run = place.run(arm)
    if (run / "policy").is_dir():
        return
    needs_q = any(a.training == arm.training and a.mode == "best_of_n" for a in ARMS)
    config = _train_config(place, arm)
    if needs_q or arm.values is not None:
        if not place.values.is_dir():
            values = replace(CHUNK_RL, objective="value", balance=BalanceConfig())
            _train(replace(_train_config(place, values), num_updates=None), place.values, progress)
        config = replace(config, train_q=needs_q, values=str(place.values))
    _train(config, run, progress)


def check_same_arm(run: Path, wanted: TrainConfig) -> None:
    """Raises ChunkRLError where a run is of other data, or of an arm that meant something else."""
    made = run_config(run / "config.json")
    names = (
        "objective",
        "policy",
        "num_folds",
        "fit",
        "balance",
        "distil",
        "seed",
        "batch_size",
        "num_updates",
    )
    wrong = [name for name in names if getattr(made, name) != getattr(wanted, name)]
    if Path(made.dataset_dir).resolve() != Path(wanted.dataset_dir).resolve():
        wrong.append("dataset_dir")
    if wrong:
        raise ChunkRLError(
            f"{run} was trained with other settings ({', '.join(wrong)}): use another --output-dir"
        )


def _train_config(place: _Place, arm: Arm) -> TrainConfig:
    config, recipe = place.config, place.config.recipe
    train = TrainConfig(
        dataset_dir=str(place.dataset),
        action_horizon=config.horizon,
        action_dim=7,
        batch_size=recipe.batch_size,
        num_updates=int(recipe.updates * arm.updates_factor),
        lr=config.lr,
        schedule="cosine",
        gamma=config.gamma,
        value_epochs=recipe.value_epochs,
        fit=replace(arm.fit, lam=recipe.lam, draw=recipe.draw),
        balance=arm.balance,
        distil=arm.distil,
        objective=arm.objective,
        policy=arm.policy,
        num_folds=recipe.num_folds,
        seed=place.seed,
        device="cpu",
        save_interval=0,
    )
    return train.with_objective(arm.objective)


def _train(config: TrainConfig, folder: Path, progress: Progress) -> None:
    """Trains into `folder`, which is there when it is whole."""
    partial_run = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_run, ignore_errors=True)
    name = f"{folder.parent.name} {folder.name}"
    ChunkLevelOfflineRL(
        replace(config, output_dir=str(partial_run)),
        lambda stage, done, total: progress(f"{name}: {stage}", done, total),
    ).train()
    partial_run.rename(folder)


def evaluate(place: _Place, arm: Arm, known: Finished | None, progress: Progress) -> Outcomes:
    """All episodes of the arm; those that are there, or `known`, are not run again."""
    config, path = place.config, place.episodes(arm)
    if (place.run(arm) / "policy").is_dir():
        check_same_arm(place.run(arm), _train_config(place, arm))
    tasks = expand(config.recipe.tasks)
    done: dict[tuple[str, int], tuple[bool, int]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            done[entry["env"], entry["state"]] = entry["success"], entry["num_steps"]
    first = DEVELOPMENT_SEED if config.development else 0
    for task, rows in (known.outcomes if known else {}).items():
        done = {(task, first + number): found for number, found in enumerate(rows)} | done
    wanted = [(task, first + number) for number in range(config.num_states) for task in tasks]
    missing = [key for key in wanted if key not in done]
    if missing:
        train(place, arm, progress)
        policy = ChunkPolicy.load(place.run(arm) / "policy")
        size = CAMERA_SIZE if policy.cameras else None
        request = fit_policy(policy, tasks, config.max_steps, size, (), "fast")
        initial = "sampled" if config.development else "official"
        request = replace(request, options=replace(request.options, initial=initial))
        episodes = [Episode(env, state, 1000 * place.seed + state) for env, state in missing]
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            closing(make_pool(request, config.num_workers, 4, len(missing), 900.0)) as pool,
            path.open("a") as file,
        ):
            num_done = 0

            def finished(position: int, result: EpisodeResult) -> None:
                nonlocal num_done
                env, state = missing[position]
                done[env, state] = result.success, result.num_steps
                entry = {"env": env, "state": state, "success": result.success, "num_steps": result.num_steps}
                file.write(json.dumps(entry) + "\n")
                file.flush()
                num_done += 1
                progress(f"seed {place.seed} {arm.name}: evaluate", num_done, len(missing))

            actor = renamed(partial(policy.act, mode=arm.mode), request.rename)
            run_episodes(actor, pool, episodes, RolloutConfig(config.horizon, 4), finished)
    return {task: [done[task, first + number] for number in range(config.num_states)] for task in tasks}


def _run_seed(place: _Place, arms: list[Arm], kept: Records, progress: Progress) -> None:
    """All that `kept` lacks of one seed."""
    config = place.config
    tasks = expand(config.recipe.tasks)
    todo = [
        arm
        for arm in arms
        if not ((found := kept.get(place.seed, arm.name)) and found.covers(tasks, config.num_states))
    ]
    dataset = collect(place, progress) if todo else {}
    for arm in todo:
        outcomes = evaluate(place, arm, kept.get(place.seed, arm.name), progress)
        kept.add(place.seed, arm.name, Finished(dataset, outcomes))
        kept.save({})


def _record(config: LiberoBenchmark, kept: Records, seed: int, task: str, arms: list[Arm]) -> dict[str, Any]:
    """One task and seed, all arms, as `summarize` takes it."""
    found = {arm.name: finished for arm in arms if (finished := kept.get(seed, arm.name))}
    rows = {name: finished.outcomes[task][: config.num_states] for name, finished in found.items()}
    return {
        "task": task,
        "seed": seed,
        "dataset": dict(next(iter(found.values())).dataset),
        "diagnostics": {},
        "errors": {},
        "success": {name: [int(success) for success, _ in row] for name, row in rows.items()},
        "num_steps": {name: [steps for _, steps in row] for name, row in rows.items()},
    }


def main(config: LiberoBenchmark) -> None:
    """Runs what is missing, then prints and writes the summary."""
    check_settings(_Place(config, 0).root, shared_settings(config), "runs")
    torch.set_num_threads(1)
    started, progress = time.monotonic(), ProgressBars()
    arms = [arm for arm in ARMS if arm.name in config.arms]
    tasks = expand(config.recipe.tasks)
    entry = f"{config.variant}{'-development' if config.development else ''}"
    settings = shared_settings(config) | {"data_seed": _Place(config, 0).collection.seed}
    kept = Records(Path(config.results), entry, settings, ARMS)
    for seed in config.seeds:
        _run_seed(_Place(config, seed), arms, kept, progress)
    records = [_record(config, kept, seed, task, arms) for seed in config.seeds for task in tasks]
    names = tuple(arm.name for arm in arms)
    summary = summarize(records, names)
    summary |= {
        "config": asdict(config),
        "recipe": asdict(config.recipe),
        "collection": asdict(_Place(config, 0).collection),
    }
    summary["seconds"] = time.monotonic() - started  # of this call
    summary["assets"] = asset_fingerprint(tasks)
    add_intervals(records, summary, names)
    kept.save(summary)
    for record in records[:: len(tasks)]:
        data = record["dataset"]
        print(
            f"data of seed {record['seed']}: {data['episodes']} episodes, {data['frames']} frames, "
            f"{data['success']:.0%} successful, sha256 {data['sha256'][:16]}"
        )
    print(markdown(summary, names))
    print(f"{summary['seconds']:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(LiberoBenchmark))
