"""Settings of `chunkrl evaluate` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import tyro

from chunkrl.envs.libero_tasks import InitialStates
from chunkrl.envs.offscreen import Rendering
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import ActionMode
from chunkrl.options import check_least

_LEAST = {
    **{"num_episodes": 1, "num_workers": 0, "max_steps": 1, "num_candidates": 1, "seed": 0, "camera_size": 1},
    **{"exec_steps": 1, "batch_size": 1, "videos": 0, "hang_s": 1},
}


@dataclass(frozen=True)
class EvaluateConfig:
    """How a policy is evaluated, whichever it is."""

    env: tuple[str, ...] = ("push-v3",)
    """Tasks: MetaWorld's (push-v3), LIBERO's (libero_spatial/3), or a whole suite (libero_spatial)."""
    num_episodes: int | None = None
    """Initial states per task; default: 100 in MetaWorld, all 50 official ones in LIBERO."""
    seed: int = 0
    """Determines MetaWorld's initial states and all noise: equal seeds compare policies on equal states."""
    initial: InitialStates = "official"
    """LIBERO: the official initial states, or sampled, placements that --seed determines, as chunkrl collect draws
    them: to choose between policies without a look at the official ones."""
    max_steps: int | None = None
    """Time limit, steps; default: 150 in MetaWorld, the suite's own in LIBERO."""
    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk."""
    mode: ActionMode = "mode"
    """mode (most likely chunk; a flow from zero noise), sample (drawn noise, as openpi and LeRobot evaluate pi
    policies), or best_of_n (needs training with --train-q or --objective iql)."""
    num_candidates: int = 16
    """N of best_of_n."""
    condition: str | None = None
    """What a pi policy is asked for, e.g. "Advantage: negative"; "" for nothing; default: what it was saved with."""
    guidance: float | None = None
    """Classifier-free guidance of a pi policy towards the condition; default: what it was saved with."""
    guidance_from: str | None = None
    """The condition that guidance leads away from, e.g. "Advantage: negative"; "" for the policy asked for nothing;
    default: what it was saved with."""
    flow_steps: int | None = None
    """Euler steps of a pi policy; default 10."""
    camera_size: int | None = None
    """Side of the cameras' images, pixels; default: as the policy's data were recorded; of a pi policy: 256 in
    LIBERO, as its public data sets have it, else the policy's input."""
    rendering: Rendering = "default"
    """LIBERO: default, as robosuite draws; fast, without shadows, reflections and multisampling. As the data were."""
    rename: tuple[str, ...] = ()
    """Cameras that the policy knows by another name: ENVIRONMENT'S=POLICY'S."""
    num_workers: int | None = None
    """Simulator processes; default: one per core; 0: in this process. Results do not depend on it."""
    batch_size: int = 4
    """Observations per policy call (1, or 4 and more); fewer are filled up: rounding must not depend on timing."""
    hang_s: float = 300.0
    """Seconds after which a silent simulator process is taken for hung and replaced."""
    videos: int = 0
    """Episodes to repeat and record on video, failures first; needs --output-dir."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def __post_init__(self) -> None:
        check_least(self, _LEAST)
        if self.batch_size in (
            2,
            3,
        ):  # measured: with so few rows a product's rounding depends on the row's place
            raise ChunkRLError(
                f"batch_size is {self.batch_size}; results would depend on which simulators are ready first: "
                "use 1, or 4 and more"
            )
        for name, choices in (("mode", ActionMode), ("initial", InitialStates)):
            if getattr(self, name) not in get_args(choices):
                raise ChunkRLError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(choices))}"
                )


@dataclass(frozen=True)
class EvaluateCommand(EvaluateConfig):
    """A trained policy on MetaWorld or LIBERO, from fixed initial states."""

    policy: str = ""
    """A saved policy's folder (required): a run's `policy`, or any pi folder that says its settings."""
    output_dir: str | None = None
    """Folder for results, page and videos; default: only the rates are printed. An evaluation with the same settings
    that lies there is resumed, any other is refused."""
    overwrite: bool = False
    """Another evaluation in --output-dir makes place: its folder is kept as NAME.replaced-001."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.videos and self.output_dir is None:
            raise ChunkRLError("--videos needs a folder to put them in: give --output-dir")


@dataclass(frozen=True)
class CompareCommand:
    """Evaluations of policies on the same tasks and initial states: chunkrl compare NEW OLD, or
    NEW=FOLDER NEW=FOLDER OLD=FOLDER OLD=FOLDER for methods with several training seeds each."""

    evaluations: tyro.conf.Positional[tuple[str, ...]] = ()
    """Output folders of chunkrl evaluate, the method to judge first; NAME=FOLDER names it, a name given again is
    another training seed of that method, in the same order for every method."""
    output_dir: str | None = None
    """Folder for comparison.json and comparison.html; another comparison there is refused."""
    overwrite: bool = False
    """Another comparison in --output-dir is replaced."""
    aggregates: bool = True
    """Interquartile mean, optimality gap and probability of improvement, where there are several seeds (rliable)."""
