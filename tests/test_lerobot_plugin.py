"""Our policies in LeRobot's own commands, by the plug-in: equal to `load_policy` of the same folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from actor_fakes import small_policy
from pi_tiny import ACTION_DIM, STATE_DIM, TOKENIZER, random_model, tiny_recipe, tiny_stats
from safetensors.torch import load_file, save_file

from chunkrl import Observation, load_policy
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.pi import PiPolicy
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.tokenizer import SentencePieceTokenizer
from chunkrl.models.plugin_files import POSTPROCESSOR, PREPROCESSOR

pytestmark = pytest.mark.lerobot
TOY = Path(__file__).parent / "lerobot_toy"
PLUGIN = Path(__file__).parents[1] / "plugins" / "lerobot_policy_chunkrl"
needs_rollout = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None or importlib.util.find_spec("lerobot.rollout") is None,
    reason="LeRobot 0.4 has no lerobot-rollout",
)
POSITIVE, NEGATIVE = "Advantage: positive", "Advantage: negative"


@pytest.fixture(autouse=True)
def _lerobot() -> None:
    pytest.importorskip("lerobot.policies.pretrained", reason="needs LeRobot (make test-lerobot)")


def small(folder: Path) -> Path:
    """A small Gaussian policy of the toy's state."""
    small_policy(0, STATE_DIM, ACTION_DIM).save(folder)
    return folder


def flow(folder: Path) -> Path:
    """A small flow policy of the toy's state."""
    small_policy(0, STATE_DIM, ACTION_DIM, kind="flow").save(folder)
    return folder


def tiny_pi(folder: Path, **settings: Any) -> Path:
    """A tiny pi0.5 that was trained with conditions, of the toy's cameras and state."""
    recipe = tiny_recipe(
        "pi05", condition=POSITIVE, conditions=(NEGATIVE, POSITIVE), guidance=1.5, **settings
    )
    policy = PiPolicy(random_model("pi05"), recipe, tiny_stats(), SentencePieceTokenizer(TOKENIZER, 512))
    PiActor(policy).save(folder)
    return folder


def lerobot(command: str, *arguments: str, log: Path) -> subprocess.CompletedProcess[str]:
    """LeRobot's own command in a process of its own, without a network."""
    path = [str(TOY), str(PLUGIN), str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    more = {
        "PYTHONPATH": os.pathsep.join(path),
        "CHUNKRL_TOY_LOG": str(log),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(log.parent / "hf"),
    }
    line = [sys.executable, "-m", f"lerobot.scripts.{command}", *arguments]
    return subprocess.run(
        line, env=os.environ | more, capture_output=True, text=True, check=False, cwd=log.parent, timeout=900
    )


def evaluated(folder: Path, tmp_path: Path, *more: str) -> list[dict[str, np.ndarray]]:
    """What the toy saw in two episodes of `lerobot-eval`."""
    log = tmp_path / "log"
    done = lerobot(
        "lerobot_eval",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--env.type=chunkrltoy",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'out'}",
        "--seed=7",
        *more,
        log=log,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [dict(np.load(file)) for file in sorted(log.iterdir())]


def replayed(policy: ActingPolicy, episodes: list[dict[str, np.ndarray]], steps: int) -> np.ndarray:
    """The actions of our own policy on what the toy showed, of all episodes in one batch, `steps` of each chunk."""
    chunks = []
    for start in range(0, len(episodes[0]["state"]), steps):
        seen = Observation(
            images={  # type: ignore[arg-type]
                name: np.stack([e[name.rsplit(".", 1)[-1]][start] for e in episodes])
                for name in policy.cameras
            },
            state=np.stack([e["state"][start] for e in episodes]).astype(np.float32),  # type: ignore[arg-type]
            task="push the red cup",
        )
        chunks.append(policy.act(seen)[:, :steps])
    return torch.cat(chunks, dim=1)[:, : len(episodes[0]["state"])].numpy()


def gap(policy: ActingPolicy, episodes: list[dict[str, np.ndarray]], steps: int) -> float:
    """The largest difference between the toy's actions and ours."""
    done = np.stack([episode["action"] for episode in episodes])
    return float(np.abs(done - replayed(policy, episodes, steps)).max())


@pytest.mark.parametrize(
    ("write", "more", "asked", "steps", "tolerance"),
    [
        (small, (), {}, 8, 0.0),
        (small, ("--policy.n_action_steps=3",), {}, 3, 0.0),
        (
            tiny_pi,
            (f"--policy.condition={NEGATIVE}", "--policy.flow_steps=4", "--policy.n_action_steps=5"),
            {"condition": NEGATIVE, "flow_steps": 4},
            5,
            1e-6,
        ),
    ],
)
def test_lerobot_eval_acts_as_load_policy(
    write: Callable[[Path], Path],
    more: tuple[str, ...],
    asked: dict[str, Any],
    steps: int,
    tolerance: float,
    tmp_path: Path,
) -> None:
    """Acceptance test 3: a process of LeRobot's, and the same folder by our own loader."""
    folder = write(tmp_path / "policy")
    episodes = evaluated(folder, tmp_path, *more)
    assert len(episodes) == 2
    policy = load_policy(folder)
    if isinstance(policy, PiActor):
        policy.ask(**asked)
    assert gap(policy, episodes, steps) <= tolerance
    if isinstance(policy, PiActor):  # the condition reached the prompt
        policy.ask(POSITIVE, None, 4)
        assert gap(policy, episodes, steps) > 1e-4


def test_cameras_that_the_environment_lacks_are_named_with_its_own(tmp_path: Path) -> None:
    folder = tiny_pi(tmp_path / "policy")
    log = tmp_path / "log"
    arguments = (
        "--env.type=chunkrltoy",
        "--env.cameras=front,side",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
    )
    done = lerobot(
        "lerobot_eval",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        f"--output_dir={tmp_path / 'out'}",
        *arguments,
        log=log,
    )
    assert done.returncode != 0
    assert "observation.images.wrist" in done.stderr and "observation.images.side" in done.stderr


def rolled_out(folder: Path, tmp_path: Path, *more: str) -> tuple[dict[str, np.ndarray], str]:
    """What the toy robot saw and was told in a few seconds of `lerobot-rollout`, and what LeRobot said."""
    log = tmp_path / "log"
    done = lerobot(
        "lerobot_rollout",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--device=cpu",
        "--robot.type=chunkrltoyrobot",
        "--task=push the red cup",
        "--fps=5",
        "--return_to_initial_position=false",
        "--play_sounds=false",
        *more,
        log=log,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(log / "robot.npz")), done.stderr


@needs_rollout
@pytest.mark.parametrize(("write", "tolerance"), [(small, 0.0), (tiny_pi, 1e-6)])
def test_lerobot_rollout_acts_as_load_policy(
    write: Callable[[Path], Path], tolerance: float, tmp_path: Path
) -> None:
    folder = write(tmp_path / "policy")
    more = ("--duration=4", "--policy.n_action_steps=3")
    episode, _ = rolled_out(folder, tmp_path, *more)
    assert len(episode["action"]) >= 4
    assert gap(load_policy(folder), [episode], 3) <= tolerance


@needs_rollout
@pytest.mark.parametrize(("write", "duration"), [(flow, 8), (tiny_pi, 20)])
def test_lerobot_rollout_asks_for_chunks_in_real_time(
    write: Callable[[Path], Path], duration: int, tmp_path: Path
) -> None:
    """Its RTC loop, with what is left of each chunk: no error, and the robot moves on after the first chunk."""
    folder = write(tmp_path / "policy")
    more = (f"--duration={duration}", "--inference.type=rtc", "--inference.rtc.execution_horizon=6")
    episode, said = rolled_out(folder, tmp_path, *more, "--inference.queue_threshold=4")
    assert "RTC inference error" not in said and "not supported" not in said
    actions, horizon = episode["action"], load_policy(folder).action_horizon
    assert len(actions) > horizon and np.isfinite(actions).all()


# ---- in this process


@pytest.fixture
def plugin() -> Any:
    sys.path.insert(0, str(PLUGIN))
    import lerobot_policy_chunkrl.modeling_chunkrl as module  # type: ignore[import-not-found]

    yield module
    sys.path.remove(str(PLUGIN))


def _drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _drop_tensor(folder: Path) -> None:
    from chunkrl.manifest import write_manifest

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.time_mlp_in.bias"]
    save_file(tensors, folder / "model.safetensors")
    write_manifest(folder)  # somebody accepted the folder as it is


def _normaliser_without_statistics(folder: Path) -> None:
    file = folder / PREPROCESSOR
    data = json.loads(file.read_text())
    data["steps"].append(
        {"registry_name": "normalizer_processor", "config": {"features": {}, "norm_map": {}}}
    )
    file.write_text(json.dumps(data))


def _drop_statistics(folder: Path) -> None:
    from chunkrl.manifest import write_manifest

    (folder / "chunkrl_pi_stats.safetensors").unlink()
    write_manifest(folder)


def _drop_pipeline(folder: Path) -> None:
    (folder / POSTPROCESSOR).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_drop_weights, r"model\.safetensors"),
        (_drop_tensor, r"time_mlp_in\.bias"),
        (_normaliser_without_statistics, "no state_file"),
        (_drop_statistics, "has no norm stats"),
        (_drop_pipeline, "policy_postprocessor.json is missing"),
    ],
)
def test_what_lerobot_passes_over_in_silence_is_an_error(
    damage: Callable[[Path], None], told: str, tmp_path: Path, plugin: Any
) -> None:
    """Acceptance test 2."""
    from chunkrl.errors import ChunkRLError

    folder = tiny_pi(tmp_path / "policy")
    plugin.ChunkRLPolicy.from_pretrained(folder)
    damage(folder)
    with pytest.raises(ChunkRLError, match=told):
        plugin.ChunkRLPolicy.from_pretrained(folder)


def test_a_policy_below_lerobots_files_is_the_same(tmp_path: Path, plugin: Any) -> None:
    folder = small(tmp_path / "policy")
    above = tmp_path / "above"
    above.mkdir()
    shutil.copytree(folder, above / "chunkrl")
    for name in ("config.json", PREPROCESSOR, POSTPROCESSOR):
        shutil.copy(folder / name, above / name)
    batch = {"observation.state": torch.linspace(-1, 1, STATE_DIM)[None], "task": ["x"]}
    chunks = [plugin.ChunkRLPolicy.from_pretrained(f).predict_action_chunk(batch) for f in (folder, above)]
    assert torch.equal(*chunks)
    assert torch.equal(
        chunks[0], load_policy(above).act(Observation(state=batch["observation.state"], task="x"))
    )


def test_a_policy_of_another_robot_says_so(tmp_path: Path, plugin: Any) -> None:
    from chunkrl.errors import CheckpointError

    folder = small(tmp_path / "policy")
    config = plugin.PreTrainedConfig.from_pretrained(folder)
    feature = config.output_features["action"]
    config.output_features = {"action": type(feature)(type=feature.type, shape=(4,))}
    with pytest.raises(
        CheckpointError, match=rf"takes \[4\] action values, and the policy in .* gives \[{ACTION_DIM}\]"
    ):
        plugin.ChunkRLPolicy.from_pretrained(folder, config=config)


@pytest.mark.parametrize("write", [small, tiny_pi])
def test_the_loss_of_a_row_is_that_rows(write: Callable[[Path], Path], tmp_path: Path, plugin: Any) -> None:
    policy = plugin.ChunkRLPolicy.from_pretrained(write(tmp_path / "policy"))
    horizon = policy.config.chunk_size
    batch = {
        "observation.state": torch.randn(3, STATE_DIM),
        "observation.images.front": torch.rand(3, 3, 56, 56).mul(255).round().div(255),
        "observation.images.wrist": torch.rand(3, 3, 56, 56).mul(255).round().div(255),
        "task": ["push the red cup"] * 3,
        "action": torch.randn(3, horizon, ACTION_DIM),
        "action_is_pad": torch.arange(horizon)[None].expand(3, -1) >= torch.tensor([[horizon], [2], [1]]),
    }
    torch.manual_seed(0)
    rows, _ = policy(batch, reduction="none")
    torch.manual_seed(0)
    mean, info = policy(batch)
    assert (
        rows.shape == (3,)
        and torch.isclose(rows.mean(), mean)
        and np.isclose(info["loss"], float(mean.detach()))
    )
    mean.backward()
    assert any(p.grad is not None for p in policy.get_optim_params())


def test_what_it_saves_it_loads(tmp_path: Path, plugin: Any) -> None:
    policy = plugin.ChunkRLPolicy.from_pretrained(small(tmp_path / "policy"))
    policy.save_pretrained(tmp_path / "saved")
    batch = {"observation.state": torch.linspace(-1, 1, STATE_DIM)[None], "task": ["x"]}
    again = plugin.ChunkRLPolicy.from_pretrained(tmp_path / "saved")
    assert torch.equal(policy.predict_action_chunk(batch), again.predict_action_chunk(batch))


# ---- real-time chunking


def seen_by_robot() -> dict[str, Any]:
    """One observation as LeRobot's loop gives it."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.randint(0, 256, (2, 1, 3, 56, 56), generator=generator) / 255
    state = torch.randn(1, STATE_DIM, generator=generator)
    names = ("observation.images.front", "observation.images.wrist")
    return {
        "observation.state": state,
        "task": ["push the red cup"],
        **dict(zip(names, pictures, strict=True)),
    }


@pytest.mark.parametrize("write", [flow, tiny_pi])
def test_chunks_go_on_from_what_lerobot_kept(
    write: Callable[[Path], Path], tmp_path: Path, plugin: Any
) -> None:
    """Acceptance test 6: by the call that LeRobot's RTC loop makes, zeros after what is left included."""
    policy = plugin.ChunkRLPolicy.from_pretrained(write(tmp_path / "policy"))
    assert policy.supports_rtc()
    policy.config.rtc_config = plugin.RTCConfig(execution_horizon=8, max_guidance_weight=10.0)
    plain = policy.predict_action_chunk(seen_by_robot())
    first = policy.predict_action_chunk(seen_by_robot(), inference_delay=0, prev_chunk_left_over=None)
    assert torch.equal(plain, first)
    left = plain[0, :5] + 0.3
    filled = torch.cat([left, torch.zeros(3, ACTION_DIM)])
    chunks = [
        policy.predict_action_chunk(seen_by_robot(), inference_delay=2, prev_chunk_left_over=kept)
        for kept in (left, filled)
    ]
    assert torch.equal(*chunks)
    gaps = [float((chunk[0, :2] - left[:2]).abs().mean()) for chunk in (chunks[0], plain)]
    assert gaps[0] < 0.2 * gaps[1]
    nothing = policy.predict_action_chunk(
        seen_by_robot(), inference_delay=2, prev_chunk_left_over=torch.zeros(8, ACTION_DIM)
    )
    assert torch.equal(nothing, plain)


def test_a_gaussian_says_that_it_cannot(tmp_path: Path, plugin: Any) -> None:
    from chunkrl.errors import ChunkRLError

    policy = plugin.ChunkRLPolicy.from_pretrained(small(tmp_path / "policy"))
    assert not policy.supports_rtc()
    with pytest.raises(ChunkRLError, match="no flow that could be guided"):
        policy.predict_action_chunk(
            seen_by_robot(), inference_delay=1, prev_chunk_left_over=torch.ones(3, ACTION_DIM)
        )
