"""The command line's frozen surface, configuration files, and one clear error for each bad input."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, random_episodes, write_dataset

from chunkrl import TrainConfig
from chunkrl.cli import COMMANDS, main
from chunkrl.config import load_config, save_config

# name and default of every flag of the chunk-level document
DOCUMENT: dict[str, Any] = {
    "dataset_dir": "",
    "action_horizon": 10,
    "action_dim": None,  # the document's 7, where the data have 7
    "gamma": 0.99,
    "beta": 1.0,
    "lambda_v": 1.0,
    "lambda_pi": 1.0,
    "lr": 3e-4,
    "batch_size": 32,
    "num_epochs": 100,
    "device": "auto",
    "use_pi0_actions": False,
    "pi0_config": None,
    "pi0_checkpoints_dir": "checkpoints/pi0",
    "save_interval": 10,
    "log_interval": 100,
    "resume": None,
}
OURS = {
    *("output_dir", "overwrite", "num_updates", "seed", "objective", "policy", "network", "num_folds", "fit"),
    *("value_epochs", "train_q", "labels", "reward", "hold", "mapping", "revision", "cameras"),
    *("critic_horizon", "encoding", "tracking", "value_videos"),
    *("use_state", "use_task", "weight_decay", "grad_clip", "frames", "pi0"),
    *("additional_offline_dataset_paths", "dataset_weights", "additional_success", "additional_labels"),
    *(
        "values",
        "value_updates_per_update",
        "relabel_interval",
        "conditioning",
        "pi",
        "microbatch_size",
        "ema_decay",
    ),
    *("value_updates", "init", "human_chunks", "balance", "sample_weights", "distil", "iql"),
    *(
        "save_updates",
        "save_minutes",
        "keep_checkpoints",
        "schedule",
        "warmup_updates",
        "final_lr_ratio",
        "betas",
        "optimizer",
        "value_lr",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


def small(data: Path, output: Path, *more: str) -> list[str]:
    text = f"--dataset-dir {data} --output-dir {output} --action-horizon 3 --action-dim 2 --batch-size 8 "
    text += "--num-updates 3 --network.hidden-dim 16 "
    if "--objective" not in more:
        text += "--value-epochs 0.5 --num-folds 2 --fit.hidden-dim 16 "
    return ["train", *text.split(), "--device", "cpu", *more]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that ends with status 2 and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error:") == 1
    return error


def refused_or_boxed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """As `refused`, also where the message is tyro's, which shows what it finds in a box."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    shown = re.sub(r"[\s│]+", " ", captured.err + captured.out)
    assert "Traceback" not in shown
    return shown


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS) == {
        *(
            "demo",
            "collect",
            "inspect",
            "label",
            "train",
            "evaluate",
            "compare",
            "verdict",
            "trial",
            "improve",
            "iterate",
            "learner",
            "actor",
            "serve",
            "report",
            "export-values",
            "download",
            "convert",
            "push",
            "pull",
            "config",
            "manifest",
            "doctor",
            "completion",
        )
    }
    main([])
    usage = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", usage, re.MULTILINE) for name in COMMANDS)
    main(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_train_flags_are_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig()
    assert {name: getattr(config, name) for name in DOCUMENT} == DOCUMENT
    assert {f.name for f in fields(TrainConfig)} == DOCUMENT.keys() | OURS
    main(["train", "--help-all"])
    shown = capsys.readouterr().out
    for name in DOCUMENT:
        assert f"--{name.replace('_', '-')}" in shown
    for flag in ("--policy.kind", "--fit.lam", "--network.hidden-dim", "--success", "--hold.control"):
        assert flag in shown


@pytest.mark.parametrize("command", ["train", "inspect", "label"])
def test_columns_have_the_same_flags_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help-all"])
    shown = capsys.readouterr().out
    for flag in ("--image-keys", "--state-key", "--action-key"):
        assert flag in shown
    assert "--mapping" not in shown


def test_columns_of_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"observation.state": "pose", "action": "command", "next.success": "next.success"}
    episodes = [{names[key]: values for key, values in columns.items()} for columns in random_episodes(6)]
    root = write_dataset(tmp_path / "d", episodes)
    assert "name it with --action-key" in refused(["label", str(root)], capsys)
    columns = ["--state-key", "pose", "--action-key", "command"]
    main(["label", str(root), *columns])
    main(small(root, tmp_path / "run", *columns, "--image-keys"))
    saved = load_config(TrainConfig, tmp_path / "run" / "config.json")
    assert (saved.mapping.state_key, saved.mapping.action_key, saved.mapping.image_keys) == (
        ("pose",),
        ("command",),
        (),
    )
    assert "'pose2', which --state-key names" in refused(
        ["label", str(root), *columns, "--state-key", "pose2"], capsys
    )


def test_train_from_flags_and_its_saved_configuration(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(small(data, tmp_path / "a", "--policy.kind", "flow", "--cameras"))
    assert "policy:" in capsys.readouterr().out
    config = load_config(TrainConfig, tmp_path / "a" / "config.json")
    assert (config.policy.kind, config.gamma, config.cameras) == ("flow", 0.99, ())
    # the saved file makes the same run; a flag on top of it wins, before or after --config
    for number, place in enumerate((0, 2)):
        again = tmp_path / f"b{number}"
        arguments = ["--config", str(tmp_path / "a" / "config.json")]
        arguments[place:place] = ["--gamma", "0.5", "--output-dir", str(again)]
        main(["train", *arguments])
        second = load_config(TrainConfig, again / "config.json")
        assert second == replace(config, gamma=0.5)


def test_configuration_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(dataset_dir="x", cameras=("a", "b"), num_updates=7, use_task=True)
    save_config(config, tmp_path / "c.json")
    assert load_config(TrainConfig, tmp_path / "c.json") == config
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"learning_rate": 1}', "unknown configuration key.*learning_rate"),
        ('{"fit": {"lambda": 1}}', "unknown configuration key.*lambda"),
        ('{"gamma": "0.9"}', "gamma"),
        ('{"batch_size": 1.5}', "batch_size"),
        ('{"policy": {"kind": "mixture"}}', "kind"),
        ('{"fit": {"lam": 2}}', "lam is 2"),
        ("[]", "holds a list .* expected an object"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_configuration_files(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(content)
    error = refused(["train", "--config", str(tmp_path / "c.json")], capsys)
    assert re.search(message, error) and str(tmp_path / "c.json") in error


def test_configuration_file_given_badly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--config", str(tmp_path / "none.json")], [f"--config={tmp_path / 'none.json'}"]):
        assert "none.json is missing: give another file" in refused(["train", *arguments], capsys)
    assert "--config needs a file" in refused(["train", "--config"], capsys)


def test_unknown_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trian"], ["train", "--learning-rate", "1"], ["train", "--gamma", "high"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert arguments[-2 if len(arguments) > 1 else -1] in "".join(capsys.readouterr())


def no_labels(root: Path) -> Path:
    rng = np.random.default_rng(0)
    episodes = [episode(6, True, rng) for _ in range(4)]
    return write_dataset(root, [{k: v for k, v in e.items() if k != "next.success"} for e in episodes])


def nan_actions(root: Path) -> Path:
    write_dataset(root, random_episodes(4, lengths=(6, 7)))
    import pyarrow as pa
    import pyarrow.parquet as pq

    (file,) = root.glob("data/*/*.parquet")
    table = pq.read_table(file)
    actions = table["action"].to_pylist()
    actions[8][1] = float("nan")
    position = table.schema.get_field_index("action")
    table = table.set_column(position, table.schema.field("action"), pa.array(actions, table["action"].type))
    pq.write_table(table, file)
    return root


def no_dataset(root: Path) -> Path:
    root.mkdir()
    (root / "notes.txt").write_text("nothing")
    return root


BAD_DATA: list[tuple[str, Callable[[Path], Path], str]] = [
    ("no such folder", lambda root: root, "absent|does not exist|no such|not found|no folder"),
    ("not a data set", no_dataset, r"meta/info\.json"),
    ("no label", no_labels, r"which episodes succeeded.*--success all"),
    ("NaN actions", nan_actions, r"episode 1, frame 2: 'action' is NaN"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_DATA, ids=[name for name, _, _ in BAD_DATA])
def test_bad_data(
    tmp_path: Path,
    name: str,
    make: Callable[[Path], Path],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make(tmp_path / "absent")
    error = refused(small(root, tmp_path / "run"), capsys)
    assert re.search(message, error, re.IGNORECASE | re.DOTALL), error
    assert str(root) in error
    assert not (tmp_path / "run").exists()  # before any training


BAD_SETTINGS: list[tuple[str, str]] = [
    ("--action-dim 5", "action_dim is 5.* have 2 values: pass --action-dim 2, or leave it out"),
    ("--action-horizon 30", "action_horizon 30 is longer than every episode"),
    ("--action-horizon 0", "action_horizon is 0"),
    ("--gamma 1.5", "gamma is 1.5"),
    ("--num-folds 40", "40 folds need at least 40 episodes.*--num-folds"),
    ("--lr -1", "lr is -1"),
    ("--device tpu9", "device 'tpu9' is unknown"),
    ("--device meta", "device 'meta' is not supported"),
    ("--lr nan", "lr is nan"),
    ("--beta nan", "beta is nan"),
    ("--beta -1", "beta is -1"),
    ("--use-pi0-actions", "--pi0-config belongs to --use-pi0-actions and --policy.kind pi"),
    ("--pi0-config pi05_libero", "--pi0-config belongs to --use-pi0-actions and --policy.kind pi"),
    ("--use-pi0-actions --pi0-config pi05_libero", "no pi checkpoint at .*chunkrl download pi05_libero"),
    ("--use-pi0-actions --pi0-config x --pi0.use candidates", "candidates needs .*--objective iql"),
    ("--pi0.num-candidates 0", "num_candidates is 0"),
    ("--pi0.seed -1", "pi0.seed is -1"),
    ("--objective document --policy.kind flow", "only a Gaussian policy has"),
    ("--cameras top", "no camera 'top'"),
    ("--resume nowhere", "no checkpoint at nowhere"),
    ("--success episodes", "success"),
    ("--policy.fixed-std 0", "fixed_std"),
    ("--network.num-layers 0", "num_layers"),
    ("--hold.gripper-dims 9", "gripper_dims"),
    ("--fit.lam 2", "lam is 2"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_SETTINGS, ids=[flags for flags, _ in BAD_SETTINGS])
def test_bad_settings(
    data: Path, tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = refused_or_boxed(small(data, tmp_path / "run", *flags.split()), capsys)
    assert re.search(message, shown), shown
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(small(data, tmp_path / "run", "--device", "cuda"), capsys)
    assert "finds no GPU" in error and "--device cpu" in error


def test_checkpoint_of_another_configuration(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(small(data, run))
    error = refused(small(data, run, "--resume", str(run), "--gamma", "0.5"), capsys)
    assert re.search(r"another configuration: gamma \(0.99 then, 0.5 now\)", error)
    assert "leave these out" in error and "--init" in error
    main(small(data, run, "--resume", str(run)))  # the same configuration is taken
    assert "nothing is left to train (more: --num-updates or --num-epochs)" in capsys.readouterr().out


def test_output_that_is_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file" in refused(small(data, tmp_path / "run"), capsys)


@pytest.mark.parametrize("objective", ["cross_fitted", "iql", "document"])
def test_no_reward_anywhere(tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    failures = [e | {"next.success": np.zeros_like(e["next.success"])} for e in random_episodes(6)]
    root = write_dataset(tmp_path / "d", failures)
    error = refused(small(root, tmp_path / "run", "--objective", objective), capsys)
    assert re.search(r"no reward anywhere in .*d,.*--success", error)
    assert not (tmp_path / "run").exists()


def test_no_data_set_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dataset-dir" in refused(["train"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate --policy nowhere --device cpu", "nowhere holds no policy: give a run's `policy` folder"),
        ("evaluate --num-episodes 0", "num_episodes is 0"),
        ("evaluate --max-steps 0", "max_steps is 0"),
        ("collect --num-episodes 0", "num_episodes is 0"),
        ("collect --max-steps 0", "max_steps is 0"),
        ("collect --num-workers -1", "num_workers is -1"),
    ],
)
def test_bad_input_of_other_commands(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_or_boxed(arguments.split(), capsys)
