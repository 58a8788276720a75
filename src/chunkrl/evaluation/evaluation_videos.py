"""Videos of evaluated episodes, failures first: the chosen episodes are run once more, with images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chunkrl.envs.pool import EnvPool
from chunkrl.evaluation.evaluation_folder import EvaluationFolder
from chunkrl.evaluation.evaluation_result import Evaluation, Video
from chunkrl.evaluation.rollout import Actor, Episode, EpisodeResult, RolloutConfig, run_episodes
from chunkrl.evaluation.video import episode_video
from chunkrl.files.atomic import replace_file
from chunkrl.progress import Progress

FPS = 10.0  # of the videos, in the simulator's own time
_SUFFIX = {"video/mp4": "mp4", "video/webm": "webm"}
MIME = {suffix: mime for mime, suffix in _SUFFIX.items()}


def choose_episodes(evaluation: Evaluation, episodes: Sequence[Episode], num_videos: int) -> list[int]:
    """Positions in `episodes`: failures, then successes; each kind's first of every task before its second."""
    seen: Counter[tuple[str, bool]] = Counter()
    keys = []
    outcomes = [outcome for env in evaluation.settings.envs for outcome in evaluation.episodes[env]]
    for number, (episode, outcome) in enumerate(zip(episodes, outcomes, strict=True)):
        keys.append((outcome.success, seen[episode.env, outcome.success], number))
        seen[episode.env, outcome.success] += 1
    return [number for *_, number in sorted(keys)[:num_videos]]


def videos_there(folder: EvaluationFolder, chosen: Sequence[Episode]) -> tuple[Video, ...]:
    """The videos of the episodes `chosen` that are in the folder, in their order."""
    videos = {video.episode: video for video in folder.videos()}
    return tuple(videos[e.env, e.seed] for e in chosen if (e.env, e.seed) in videos)


def record_videos(
    folder: EvaluationFolder,
    actor: Actor,
    pool: EnvPool,
    chosen: Sequence[Episode],
    evaluation: Evaluation,
    fps: float,
    progress: Progress,
) -> int:
    """Records on video the episodes `chosen` into the folder, all but those that are there already; returns how many.

    Episodes are functions of state and noise, so the repetition shows what was counted. Where it ends otherwise, the
    simulator or the policy's device is not deterministic; the video says so. fps: control steps per second.
    """
    outcomes = {(env, e.seed): e for env, found in evaluation.episodes.items() for e in found}
    there = {video.episode for video in videos_there(folder, chosen)}
    missing = [episode for episode in chosen if (episode.env, episode.seed) not in there]
    every = max(1, round(fps / FPS))
    num_done = 0

    def finished(position: int, result: EpisodeResult) -> None:
        """Writes the video, then the note that it is there."""
        nonlocal num_done
        episode = missing[position]
        assert result.frames is not None
        name = f"{episode.env}, initial state {episode.seed}"
        content, mime = episode_video(result.frames, name, fps / every, result.success)
        video = Video(
            episode.env,
            episode.seed,
            result.success,
            f"videos/{episode.env.replace('/', '.')}-{episode.seed}.{_SUFFIX[mime]}",
            result.success == outcomes[episode.env, episode.seed].success,
        )
        with replace_file(folder.root / video.file) as temporary:
            temporary.write_bytes(content)
        folder.save_video(video)
        num_done += 1
        progress("videos", num_done, len(missing))

    execution = RolloutConfig(evaluation.settings.exec_steps, evaluation.settings.batch_size)
    run_episodes(actor, pool, missing, execution, finished, record_every=every)
    return len(missing)
