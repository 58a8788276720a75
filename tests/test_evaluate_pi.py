"""`chunkrl evaluate` on pi policies, and the tiny pi0.5 that the command line makes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece", reason="needs the extra chunkrl[pi]")
pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunkrl.cli import main
from chunkrl.envs.metaworld import CAMERA
from chunkrl.errors import CheckpointError
from chunkrl.manifest import MANIFEST_FILE
from chunkrl.models.pi import PiPolicy, find_recipe, load_pretrained, save_pretrained, tiny
from chunkrl.run.policy_io import load_policy

POSITIVE = "Advantage: positive"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes with the compact state and a camera."""
    folder = tmp_path_factory.mktemp("data") / "push"
    short = "--num-episodes 2 --max-steps 8 --num-workers 0 --state compact --camera-size 16"
    main(["collect", "--output-dir", str(folder), *short.split()])
    return folder


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pi0.5 on the state alone that asks for `POSITIVE` at guidance 1.5."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny.main(
        [str(data), str(root / "fresh"), "--horizon", "3", "--no-cameras", "--width", "16", "--depth", "1"]
    )
    fresh = load_pretrained(root / "fresh")
    settings = replace(fresh.recipe.settings, condition=POSITIVE, guidance=1.5)
    recipe = replace(fresh.recipe, settings=settings)
    asking = PiPolicy(fresh.model, recipe, fresh.norm_stats, fresh.tokenizer)
    return save_pretrained(asking, root / "asking")


def evaluated(policy: Path, output: Path, *more: str) -> dict:
    """What the result says: settings, and the episodes of the one task."""
    arguments = (
        f"--policy {policy} --num-episodes 2 --num-workers 0 --batch-size 4 --max-steps 6 --device cpu"
    )
    main(["evaluate", *arguments.split(), "--output-dir", str(output), *more])
    result = json.loads((output / "result.json").read_text())
    (task,) = result["tasks"].values()
    return result["settings"] | {"episodes": task["episodes"]}


def refused(capsys: pytest.CaptureFixture[str], policy: Path, *more: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--policy", str(policy), "--num-workers", "0", "--num-episodes", "1", *more])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_result_names_what_was_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(folder, tmp_path / "a")
    named = ("condition", "guidance", "flow_steps", "state", "camera_size", "mode", "exec_steps")
    assert [found[name] for name in named] == [POSITIVE, 1.5, 10, "compact", 0, "mode", 3]
    assert [episode["num_steps"] for episode in found["episodes"]] == [6, 6]
    shown = capsys.readouterr().out
    assert f"asked for {POSITIVE!r} at guidance 1.5, away from none" in shown
    assert "3 actions of each chunk executed, chosen by mode (the flow from zero noise)" in shown
    assert (
        "chunk chosen by</dt><dd>mode (the flow from zero noise)"
        in (tmp_path / "a" / "report.html").read_text()
    )
    asked = ("--condition", "Advantage: negative", "--guidance", "2", "--flow-steps", "3", "--mode", "sample")
    found = evaluated(folder, tmp_path / "b", *asked)
    assert [found[name] for name in named[:3]] == ["Advantage: negative", 2.0, 3]
    assert found["mode"] == "sample" and "chosen by sample" in capsys.readouterr().out
    assert evaluated(folder, tmp_path / "c", "--condition", "")["condition"] == ""
    found = evaluated(folder, tmp_path / "d", "--guidance-from", "Advantage: negative")
    assert (found["guidance"], found["guidance_from"]) == (1.5, "Advantage: negative")
    assert "at guidance 1.5, away from 'Advantage: negative'" in capsys.readouterr().out
    assert evaluated(folder, tmp_path / "e", "--guidance", "1")["guidance_from"] is None
    assert "at guidance 1\n" in capsys.readouterr().out


def test_the_asked_condition_reaches_the_prompt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[tuple[str | None, float | None, int]] = []
    sample = PiPolicy.sample

    def recorded(self: PiPolicy, *args, **kwargs) -> torch.Tensor:
        prompts.append((kwargs["condition"], kwargs["guidance"], kwargs["flow_steps"]))
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(PiPolicy, "sample", recorded)
    evaluated(folder, tmp_path / "a", "--condition", "Advantage: neutral", "--flow-steps", "2")
    assert set(prompts) == {("Advantage: neutral", 1.5, 2)}


def test_a_policy_with_a_camera_sees_pictures_of_the_size_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.main([str(data), str(tmp_path / "tiny"), "--horizon", "3", "--width", "16", "--depth", "1"])
    assert find_recipe(tmp_path / "tiny").settings.cameras == (CAMERA,)
    few = ("--flow-steps", "1", "--exec-steps", "3")
    assert evaluated(tmp_path / "tiny", tmp_path / "a", *few)["camera_size"] == tiny.IMAGE_SIZE
    found = evaluated(tmp_path / "tiny", tmp_path / "b", *few, "--camera-size", "16")
    assert (found["camera_size"], found["condition"], found["guidance"]) == (16, "", 1.0)
    renamed = load_pretrained(tmp_path / "tiny")
    settings = replace(renamed.recipe.settings, cameras=("wrist",))
    renamed = PiPolicy(
        renamed.model, replace(renamed.recipe, settings=settings), renamed.norm_stats, renamed.tokenizer
    )
    save_pretrained(renamed, tmp_path / "renamed")
    assert re.search(r"'wrist'.*--rename.*chunkrl collect", refused(capsys, tmp_path / "renamed"))


def test_what_cannot_be_asked_of_a_pi_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--condition", "positive"): "was trained with (with 'Advantage: negative'",
        ("--condition", "", "--guidance", "2"): "guidance leads towards a condition",
        ("--guidance", "-1"): "must not be negative",
        ("--guidance-from", POSITIVE): "changes nothing, since that is what the policy is asked for",
        ("--mode", "best_of_n"): "train with --train-q or --objective iql",
        ("--camera-size", "32"): "this one has none",
        ("--flow-steps", "0"): "at least one step",
        ("--exec-steps", "4"): "longer than the policy's chunk 3",
    }
    for flags, message in cases.items():
        assert message in refused(capsys, folder, *flags)
    fresh = folder.parent / "fresh"
    assert "(without any)" in refused(capsys, fresh, "--condition", POSITIVE)
    assert "holds no policy: give" in refused(capsys, folder.parent)


def test_what_cannot_be_asked_of_a_small_policy(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        f"--dataset-dir {data} --output-dir {tmp_path} --action-horizon 3 --action-dim 4 --batch-size 4"
    )
    more = "--num-updates 1 --objective behaviour_cloning --network.hidden-dim 8 --device cpu"
    main(["train", *arguments.split(), *more.split()])
    assert "give its policy" in refused(capsys, tmp_path)
    policy = tmp_path / "policy"
    error = refused(capsys, policy, "--condition", POSITIVE, "--flow-steps", "5")
    assert "--condition and --flow-steps are for pi policies" in error
    assert "trained on images of 16 x 16 pixels" in refused(capsys, policy, "--camera-size", "32")
    found = evaluated(policy, tmp_path / "a")
    assert (found["state"], found["camera_size"], found["condition"]) == ("compact", 16, None)


def test_a_lerobot_folder_without_our_file_is_read_as_lerobots(data: Path, tmp_path: Path) -> None:
    """Its config.json knows the published sizes only, and so the tiny one's is refused, by name."""
    tiny.main([str(data), str(tmp_path / "tiny"), "--horizon", "3", "--width", "16", "--depth", "1"])
    for name in ("chunkrl_pi.json", MANIFEST_FILE):
        (tmp_path / "tiny" / name).unlink()
    with pytest.raises(CheckpointError, match=r"config\.json.*chunkrl_16x32x1.*give the recipe yourself"):
        load_policy(tmp_path / "tiny")


def test_a_tiny_checkpoint_is_not_overwritten(data: Path, folder: Path) -> None:
    with pytest.raises(SystemExit, match="not empty"):
        tiny.main([str(data), str(folder), "--horizon", "3"])
