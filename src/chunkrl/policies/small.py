"""Small networks with encoders of their own: Gaussian and flow matching, and what else is built of the same parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.policies.family import PolicyFamily, RunSettings, TrainedPolicy

if TYPE_CHECKING:
    import torch

    from chunkrl.algorithms.best_of_n import QEnsemble
    from chunkrl.data.collection import ChunkData
    from chunkrl.models.encoders import ObservationSpec
    from chunkrl.models.factory import NetworkFactory
    from chunkrl.models.policy import PolicyModel
    from chunkrl.policies.chunk_policy import ChunkPolicy, PolicySpec, QSpec
    from chunkrl.progress import Progress

# what equal tensors do not show: names of inputs, and what outputs mean
_SAME = ("observation", "shape", "network", "policy", "encoding")


class SmallFamily(PolicyFamily):
    """Policies and critics on encoders of their own, of every size that the data have.

    A family whose policy is another network on the same inputs derives from it: it names its kinds and settings, and
    says in `policy` what the network is. Critics, statistics, saving and Q for best-of-N are then there.
    """

    name = "small"
    kinds: tuple[str, ...] = ("gaussian", "flow")
    settings = PolicyConfig
    reads: tuple[str, ...] = (
        *("network", "use_state", "use_task", "encoding"),
        *("fit.hidden_dim", "fit.num_layers", "fit.dropout", "fit.noise"),
    )
    reads_of: Mapping[str, tuple[str, ...]] = {
        "gaussian": ("policy.spread", "policy.fixed_std"),
        "flow": ("policy.flow_steps",),
    }

    def policy(self, parts: NetworkFactory) -> PolicyModel:
        """pi(A | x), freshly initialised, with `parts.encoder(parts.network)` for what it sees."""
        from chunkrl.models.factory import policy_network

        return policy_network(parts)

    def check(self, config: RunSettings) -> None:
        """A deviation is read where it is fixed."""
        policy = config.policy
        if not isinstance(policy, PolicyConfig) or policy.spread == "fixed":
            return
        if policy.fixed_std != PolicyConfig.fixed_std:
            raise ChunkRLError("--policy.fixed-std is read with --policy.spread fixed: give both, or neither")

    def decided(self, config: RunSettings, dataset: ChunkData) -> dict[str, Any]:
        """Whether the networks read the task's text."""
        return {"use_task": _reads_task(config, dataset)}

    # ---- networks

    def networks(
        self, config: RunSettings, dataset: ChunkData, device: torch.device, progress: Progress
    ) -> NetworkFactory:
        """Inputs from the data, statistics of its states and actions."""
        import torch

        from chunkrl.data.normalize import Normalizer
        from chunkrl.models.factory import NetworkFactory
        from chunkrl.models.policy import ChunkShape

        spec = observation_spec(config, dataset)
        actions = dataset.action_statistics()
        state = (
            Normalizer(dataset.state_statistics(), "mean_std") if spec.state_dim else Normalizer.identity(1)
        )
        joint, fit = config.method.joint, config.fit
        fitted = NetworkConfig(hidden_dim=fit.hidden_dim, num_layers=fit.num_layers, dropout=fit.dropout)
        return NetworkFactory(
            spec,
            ChunkShape(dataset.action_horizon, dataset.action_dim),
            state,
            Normalizer(actions, "mean_std"),
            (torch.from_numpy(actions.min), torch.from_numpy(actions.max)),
            config.network,
            config.policy,
            critic_network=config.network if joint else fitted,
            state_noise=0.0 if joint else fit.noise,
            make_policy=self.policy,
        )

    # ---- a policy's folder

    def matches(self, folder: Path, kinds: Collection[str]) -> bool:
        """Recognises it by the kind that its description has; where that is none, the first such family says what is
        wrong."""
        from chunkrl.training.checkpoint import VALUES, read_plain

        if not (folder / VALUES).is_file():
            return False
        try:
            kind = read_plain(folder)["spec_json"]["policy"]["kind"]
        except (ChunkRLError, KeyError, TypeError):
            return True
        return kind in self.kinds or kind not in kinds

    def load(self, folder: Path, device: torch.device | str, with_q: bool) -> ChunkPolicy:
        """Loads it with Q: it is small, too."""
        from chunkrl.policies.chunk_policy import ChunkPolicy

        return ChunkPolicy.load(folder, device, self.policy)

    def acting(self, trained: TrainedPolicy) -> ChunkPolicy:
        """What acts, with Q where the method trained one."""
        from chunkrl.policies.chunk_policy import ChunkPolicy

        q = trained.q()
        return ChunkPolicy(self._spec(trained, q), trained.networks, q)

    def _spec(self, trained: TrainedPolicy, q: QEnsemble | None = None) -> PolicySpec:
        from chunkrl.models.policy import ChunkShape
        from chunkrl.policies.chunk_policy import PolicySpec

        config, dataset = trained.config, trained.dataset
        return PolicySpec(
            observation=observation_spec(config, dataset),
            shape=ChunkShape(dataset.action_horizon, dataset.action_dim),
            network=config.network,
            policy=config.policy,
            q=None if q is None else _q_spec(q),
            fps=float(dataset.fps),
            objective=config.objective,
            dataset_fingerprint=dataset.fingerprint,
            encoding=dataset.encoding,
            image_sizes=dataset.image_sizes,
            resize=dataset.resize,
            recorded_sizes=dataset.recorded_sizes,
        )

    def check_initial(
        self, trained: TrainedPolicy, source: Path, folder: Path, state: dict[str, Any]
    ) -> None:
        """Names, sizes and meanings must be equal."""
        from chunkrl.policies.chunk_policy import read_spec

        saved, built = read_spec(folder, state), self._spec(trained)
        differing = [
            f"{name} {getattr(saved, name)} there and {getattr(built, name)} here"
            for name in _SAME
            if getattr(saved, name) != getattr(built, name)
        ]
        if differing:
            raise CheckpointError(
                f"--init {source}: another policy than these settings build: {'; '.join(differing)}. Give the "
                "settings of the run that made it (its config.json), and --use-task as its data decided it"
            )

    def made_with(self, folder: Path) -> dict[str, Any]:
        """What its description has of the run's settings."""
        from chunkrl.files.json_files import as_json
        from chunkrl.policies.chunk_policy import read_spec
        from chunkrl.training.checkpoint import read_plain

        spec = read_spec(folder, read_plain(folder))
        there = {"objective": spec.objective, "action_horizon": spec.shape.horizon}
        there |= {name: asdict(getattr(spec, name)) for name in ("policy", "network", "encoding")}
        return as_json(there)

    def pretrained(
        self, config: RunSettings, family_in: Callable[[Path], PolicyFamily]
    ) -> tuple[Path, RunSettings]:
        """The policy of --init, which decides sizes and inputs."""
        from chunkrl.policies.chunk_policy import ChunkPolicy

        if config.init is None:
            raise ChunkRLError(
                "name the pretrained policy, which acts first and which each round begins with: --init RUN/policy of "
                "an earlier chunkrl train, or --policy.kind pi with --pi0-config"
            )
        if not config.method.takes_init:
            raise ChunkRLError(
                f"--objective {config.objective} begins with fresh networks, not with a pretrained policy's: use "
                "cross_fitted"
            )
        folder = Path(config.init)
        found = family_in(folder)
        policy = found.load(folder, "cpu", True)
        if not isinstance(policy, ChunkPolicy):
            kind = found.kinds[0]
            raise ChunkRLError(
                f"--init {folder} is a {kind} policy: give --policy.kind {kind} --pi0-checkpoints-dir "
                f"{folder.parent} --pi0-config {folder.name}"
            )
        return folder, _fitted(config, policy.spec)


def _reads_task(config: RunSettings, dataset: ChunkData) -> bool:
    """Whether the task is read: as the settings say, else where the data have several tasks."""
    return len(dataset.tasks) > 1 if config.use_task is None else config.use_task


def observation_spec(config: RunSettings, dataset: ChunkData) -> ObservationSpec:
    """What the networks see. Raises ChunkRLError where that is nothing."""
    from chunkrl.data.collection import ChunkCollection
    from chunkrl.data.roles import describe_columns
    from chunkrl.models.encoders import ObservationSpec

    use_state, use_task = config.use_state and dataset.state_dim > 0, _reads_task(config, dataset)
    if not (dataset.cameras or use_state or use_task):
        description = ChunkCollection.of(dataset).datasets[0].table.description
        raise ChunkRLError(
            f"{description.root}: the networks would see nothing: of its columns no state and no camera is read "
            f"({describe_columns(description.features.values())}): name them, or let the networks read the "
            "task's text with --use-task"
        )
    return ObservationSpec(dataset.cameras, dataset.state_dim if use_state else 0, use_task)


def _q_spec(q: Any) -> QSpec:
    from chunkrl.policies.chunk_policy import QSpec

    first = q.critic.networks[0]
    return QSpec(q.critic.num_folds, len(first.heads), first.encoders[0].config, first.value_head)


def _fitted(config: RunSettings, spec: PolicySpec) -> RunSettings:
    """The training settings that the pretrained policy decides. Raises ChunkRLError where others were given."""
    observation, untouched = spec.observation, type(config)()
    kind_alone = replace(type(spec.policy)(), kind=spec.policy.kind)
    decided = {
        "action_horizon": spec.shape.horizon,
        "action_dim": spec.shape.action_dim,
        "policy": spec.policy,
        "network": spec.network,
        "encoding": spec.encoding,
        "cameras": observation.cameras,
        "use_state": observation.state_dim > 0,
        "use_task": observation.use_task,
    }
    for name, value in decided.items():
        given = getattr(config, name)
        if given not in (value, getattr(untouched, name), kind_alone):
            raise ChunkRLError(
                f"{name} is {given}, and the pretrained policy {config.init} has {value}: leave it out, the policy "
                "decides it"
            )
    return replace(config, **decided)
