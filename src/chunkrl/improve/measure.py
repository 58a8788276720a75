"""The numbers of the diagnosis: of the data as training reads them, and of the values that a run left."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from chunkrl.algorithms.advantages import step_rewards
from chunkrl.algorithms.balance import StrataLabels, episode_steps, with_past_advantage
from chunkrl.algorithms.human_chunks import human_chunks
from chunkrl.algorithms.value_labels import monte_carlo_returns
from chunkrl.algorithms.weight_spread import balance_cure, starved_warnings
from chunkrl.algorithms.weights import WeightRule, weigh_starts
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import draw_rates, trained_starts
from chunkrl.data.hold_out import held_out_episodes
from chunkrl.improve.diagnosis import DataFacts, ValueFacts
from chunkrl.progress import Progress
from chunkrl.report.load_run import load_run
from chunkrl.report.run import value_quality_of
from chunkrl.report.run_weights import collection_of
from chunkrl.run.build import open_datasets
from chunkrl.run.config import TrainConfig

_SAME = 1e-5  # of returns: float32


def measure_data(config: TrainConfig, labels: str, progress: Progress) -> DataFacts:
    """The data set of a training, with the episodes that are held out; images are not looked at.

    labels: what says who succeeded, for people.

    Raises:
        DatasetError: it cannot be trained on, or nothing says who succeeded.
    """
    part = config.frames.held_out
    frames = replace(config.frames, held_out=0.0, cache=False)
    dataset = open_datasets(replace(config, frames=frames), progress)[0]
    outcomes, table = dataset.frame_labels.success, dataset.table
    held = np.isin(table.episode_ids, sorted(held_out_episodes(table.description, part)) if part else [])
    texts = [table.task_text(int(row)) for row in table.episode_start]
    succeeds = dict.fromkeys(texts, False)
    for text, success in zip(texts, (outcomes & ~held).tolist(), strict=True):
        succeeds[text] |= success
    return DataFacts(
        name=dataset.name,
        labels=labels,
        num_episodes=table.num_episodes,
        num_success=int(outcomes.sum()),
        num_frames=table.num_frames,
        num_held_out=int(held.sum()),
        num_held_out_success=int(outcomes[held].sum()),
        held_out=part,
        num_tasks=len(succeeds),
        silent_tasks=tuple(text for text, success in succeeds.items() if not success),
        returns_differ=_returns_differ(dataset),
        gamma=config.gamma,
    )


def _returns_differ(dataset: ChunkDataset) -> bool:
    """Whether two episodes return something else from the same step on; nothing counts after a success."""
    data = ChunkCollection([dataset])
    trained = trained_starts(data)
    starts = np.arange(len(data)) if trained is None else np.asarray(trained)
    returns = monte_carlo_returns(data, step_rewards(data))[data.starts[starts]]
    step = episode_steps(data)[0][starts]
    low, high = np.full(step.max() + 1, np.inf), np.full(step.max() + 1, -np.inf)
    np.minimum.at(low, step, returns)
    np.maximum.at(high, step, returns)
    there = np.isfinite(low)
    return bool((high[there] - low[there] > _SAME * max(1.0, float(np.abs(returns).max()))).any())


def measure_values(run_dir: Path, config: TrainConfig, progress: Progress) -> ValueFacts:
    """What the values in a run's folder are worth, and the weights that a training by `config` would make of them."""
    run = load_run(run_dir, progress)
    quality = value_quality_of(run)
    assert quality is not None, "the run is of --objective value"
    data = collection_of(run)
    value, fit = run.column("value"), config.fit
    advantage = with_past_advantage(run.column("advantage"), data, value, fit.past_advantage)
    rates = draw_rates(data, trained_starts(data))
    human = human_chunks(data, config.human_chunks)
    forced = None if human is None else human.forced
    rule = WeightRule(config.beta, fit.advantage_scale, fit.weight_clip, config.balance.success_mix)
    found = weigh_starts(advantage, value, data, rates, forced, rule, StrataLabels(config.balance))
    return ValueFacts(
        None if math.isnan(quality.held_out) else quality.held_out,
        None if math.isnan(quality.seen) else quality.seen,
        found.metrics["weight/effective_sample_size"],
        found.spread.on_successes,
        tuple(starved_warnings(found.spread, balance_cure(config.balance))),
    )
