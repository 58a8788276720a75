"""`chunkrl report RUN`: a training run as one HTML page that loads nothing.

What was trained with what, the curves, what the values are worth on episodes that they never saw, what became of the
advantages, and where along the episodes and in which frames they are highest and lowest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chunkrl.algorithms.value_labels import known_outcomes
from chunkrl.algorithms.value_quality import ValueQuality, quality_warnings, value_quality
from chunkrl.algorithms.weight_spread import GIVEN_CURE, LITERAL_CURE, balance_cure, starved_warnings
from chunkrl.models.condition import condition_text
from chunkrl.report import distributions
from chunkrl.report.numbers import percent, signed
from chunkrl.report.page import Card, Facts, Page, Section, Tile, VideoPlayer, notes_card
from chunkrl.report.records import EpisodeTrace
from chunkrl.report.run_facts import curves, losses_recorded_once, settings_section
from chunkrl.report.run_frames import VideoOf, extreme_frames_section
from chunkrl.report.run_weights import run_spread, trained_column, weight_cards
from chunkrl.report.sections import curve_section, trace_section
from chunkrl.report.training_run import Episode, LabelledData, TrainingRun
from chunkrl.report.value_video import render_episodes
from chunkrl.training.algorithm import Histogram

NUM_TRACES = 6


def render_run(run: TrainingRun, num_videos: int = 0) -> str:
    """The page.

    num_videos: of episodes of the first data set.

    Raises:
        ChunkRLError: videos of data without cameras, or of a run without values.
    """
    quality = value_quality_of(run)
    warnings = run_warnings(run, quality)
    sections = [
        Section("What is not on this page", "", [notes_card(run.notes, wide=True)] if run.notes else []),
        *_quality_sections(run, quality, warnings),
        *_advantage_sections(run),
    ]
    if run.has_values:
        recorded = run.data[0].choose_episodes(num_videos)

        def video_of(data: LabelledData, episode: Episode) -> str:
            return f"#{_video_name(episode)}" if data is run.data[0] and episode in recorded else ""

        hint = "A title leads to the episode's video." if recorded else ""
        if not recorded and run.data[0].cameras:
            hint = "chunkrl report --videos N shows N of them as videos."
        sections += [trace_section(_traces(run, video_of), hint), _video_section(run, num_videos)]
        sections += [extreme_frames_section(run.data, video_of)]
    elif num_videos:
        _video_section(run, num_videos)  # says why there are none
    sections += [curve_section(curves(run), losses_recorded_once(run)), settings_section(run)]
    title = f"Training run: {run.folder.resolve().name}"
    return Page(title, _tiles(run, quality, warnings), sections).render()


def value_quality_of(run: TrainingRun) -> ValueQuality | None:
    """The quality of the values beside the run, where outcomes are known; None for a run without values."""
    if not run.has_values:
        return None
    known = np.concatenate([known_outcomes(part.dataset, run.config.fit.time_out) for part in run.data])
    value, seen, returns = (run.column(name)[known] for name in ("value", "value_seen", "return"))
    return value_quality(value, seen, returns)


def run_warnings(run: TrainingRun, quality: ValueQuality | None) -> list[str]:
    """What a reader must know of the values and of where the weight lies."""
    spread = run_spread(run)
    starved = [] if spread is None else starved_warnings(spread, _cure(run))
    if quality is None:
        return starved
    if not run.config.cross_fits:
        unknown = (
            "Cross-fitting was off (--num-folds 1, or the document's objective): every value is of a network that "
            "trained on the episode, so no number here says what the values are worth."
        )
        return [unknown, *starved]
    return quality_warnings(quality.held_out, quality.seen) + starved


def _cure(run: TrainingRun) -> str:
    method = run.config.method
    if method.weighs:
        return balance_cure(run.config.balance, mixes=not method.joint)
    return LITERAL_CURE if method.joint else GIVEN_CURE


def _tiles(run: TrainingRun, quality: ValueQuality | None, warnings: list[str]) -> list[Tile]:
    tiles = []
    success = np.concatenate([part.dataset.frame_labels.success for part in run.data])
    if quality is not None:
        tiles.append(
            Tile(
                f"{quality.held_out:.2f}".replace("-", "−"),
                "rank correlation of the values with the return, on episodes they never saw",
                f"{quality.seen:.2f} on the episodes that they trained on",
                kind="bad" if warnings else "good",
            )
        )
        share = float(np.mean(trained_column(run, "advantage") > 0))
        tiles.append(Tile(percent(round(share, 3)), "of the frames have a positive advantage", _used(run)))
    num_frames = sum(part.dataset.num_frames for part in run.data)
    detail = f"{len(success)} episodes, {num_frames:,} frames{_labels_of(run)}"
    tiles.append(Tile(percent(round(float(success.mean()), 3)), "of the episodes succeed", detail))
    return tiles


def _labels_of(run: TrainingRun) -> str:
    """The files that labels were read from, where there are any."""
    files = [part.dataset.frame_labels.file for part in run.data if part.dataset.frame_labels.file]
    return f"; by {', '.join(files)}" if files else ""


def _used(run: TrainingRun) -> str:
    """What became of the advantages, in short."""
    if "advantage_bin" in run.data[0].labels:
        return f"used as text in the prompt, {run.config.conditioning.num_bins} bins"
    size = run.last("weight/effective_sample_size")
    if size is not None:
        return f"used as weights; effective sample size {percent(round(size, 3))} of the data"
    return "not used by the policy"


def _quality_sections(run: TrainingRun, quality: ValueQuality | None, warnings: list[str]) -> list[Section]:
    cards = [notes_card(warnings, wide=True)] if warnings else []
    if quality is None:
        return [Section("What to know of the weights", "", cards)]
    cards.append(
        Card(
            "Held out beside trained on",
            [
                Facts(
                    {
                        "rank correlation with the return, held out": signed(quality.held_out),
                        "the same, on episodes trained on": signed(quality.seen),
                        "over-fit gap, the second minus the first": signed(quality.overfit_gap),
                        "expected calibration error, held out": f"{quality.calibration.error:.3f}",
                    }
                )
            ],
        )
    )
    found = quality.calibration
    summary = f"Calibration: {len(found.counts)} bins, expected calibration error {found.error:.3f}."
    cards.append(
        Card(
            "Calibration of held-out values",
            [distributions.calibration_chart(found, summary)],
            "Bins of equally many frames; on the line, frames earn on average what was predicted.",
        )
    )
    value = Histogram.of(trained_column(run, "value"))
    cards.append(
        Card("Held-out values", [distributions.histogram_chart(value, "value", "Distribution of values.")])
    )
    lead = "Values of networks that never saw the episode, against what the episode returned from there."
    return [Section("What the values are worth", lead, cards, "grid small")]


def _advantage_sections(run: TrainingRun) -> list[Section]:
    if not run.has_values:
        lead = "How often the policy's loss counts each frame."
        return [Section("The weights", lead, weight_cards(run), "grid small")]
    advantage = trained_column(run, "advantage")
    chart = distributions.histogram_chart(
        Histogram.of(advantage), "advantage", "Distribution of advantages.", by_sign=True
    )
    positive = float(np.mean(advantage > 0))
    cards = [Card("Advantages", [chart], f"Positive (green): {percent(round(positive, 3))} of the frames.")]
    if "advantage_bin" in run.data[0].labels:
        cards.append(_bins_card(run))
    cards += weight_cards(run)
    lead = (
        "The advantage compares what followed a frame with the value there; the policy hears of it as shown."
    )
    return [Section("What became of the advantages", lead, cards, "grid small")]


def _bins_card(run: TrainingRun) -> Card:
    names = ("advantage_bin", "advantage_bin_raw", "advantage")
    bins, raw, advantage = (trained_column(run, name) for name in names)
    num_bins = run.config.conditioning.num_bins
    shares = [
        distributions.Share(
            condition_text(label, num_bins),
            float(np.mean(bins == label)),
            f"mean {signed(float(np.mean(advantage[bins == label])))}" if (bins == label).any() else "empty",
        )
        for label in range(num_bins)
    ]
    summary = "; ".join(f"{one.label} {percent(round(one.share, 3))}" for one in shares)
    forced = float(np.mean(bins != raw))
    note = f"Forced high (human chunks, chosen data): {percent(round(forced, 3))}." if forced else ""
    return Card("Bins in the prompt", [distributions.share_chart(shares, summary)], note)


def _video_name(episode: Episode) -> str:
    """The name of an episode's video on the page."""
    return f"video-{episode.index}"


def _traces(run: TrainingRun, video_of: VideoOf) -> list[EpisodeTrace]:
    per_set = max(2, NUM_TRACES // len(run.data))
    traces = []
    for part in run.data:
        for episode in part.choose_episodes(per_set):
            value, advantage = (part.labels[name][episode.rows] for name in ("value", "advantage"))
            task = episode.task if len(run.data) == 1 else f"{Path(part.dataset.name).name}, {episode.task}"
            traces.append(
                EpisodeTrace(
                    task or "episodes",
                    f"episode {episode.index}",
                    episode.success,
                    value,
                    advantage,
                    link=video_of(part, episode),
                )
            )
    return traces


def _video_section(run: TrainingRun, num_videos: int) -> Section:
    part, cards = run.data[0], []
    rendered = render_episodes(part, part.choose_episodes(num_videos)) if num_videos else ()
    for episode, content, mime in rendered:
        label = f"{episode.name}, with value and advantage below"
        pill = ("good", "success") if episode.success else ("bad", "failure")
        title = f"{episode.task}: episode {episode.index}"
        cards.append(Card(title, [VideoPlayer(content, mime, label)], pill=pill, name=_video_name(episode)))
    lead = "Recorded episodes over the values of networks that never saw them."
    return Section("Episodes with their values", lead, cards)
