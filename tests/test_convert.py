"""`chunkrl convert`: what it prints, what it writes, what it refuses before it writes anything."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from actor_fakes import small_policy
from pi_tiny import ACTION_DIM, GOLDEN, KINDS, STATE_DIM, TOKENIZER, needs_golden, tiny_policy, tiny_recipe

from chunkrl import load_policy
from chunkrl.cli import main
from chunkrl.errors import CheckpointError
from chunkrl.manifest import write_manifest
from chunkrl.models.pi import PiPolicy, load_pretrained, save_pretrained
from chunkrl.models.pi.config import ModelKind, pi0_base, pi0_libero
from chunkrl.models.pi.recipes import choose_recipe


def openpi_folder(root: Path, kind: ModelKind) -> Path:
    """Weights and norm stats as openpi keeps them, with nothing that tells the settings; and a recipe file."""
    policy = tiny_policy(kind)
    save_pretrained(policy, root / "lerobot")
    folder = root / "openpi"
    stats = folder / "assets" / "robot" / "norm_stats.json"
    stats.parent.mkdir(parents=True)
    shutil.move(root / "lerobot" / "model.safetensors", folder)
    assert policy.norm_stats is not None
    values = {
        name: {key: value.tolist() for key, value in side.items()}
        for name, side in (("state", policy.norm_stats.state), ("actions", policy.norm_stats.action))
    }
    stats.write_text(json.dumps({"norm_stats": values}))
    (root / "recipe.json").write_text(tiny_recipe(kind).to_json())
    return folder


def assert_same(policy: PiPolicy, expected: PiPolicy, dtype: torch.dtype = torch.float32) -> None:
    found, wanted = dict(policy.model.named_parameters()), dict(expected.model.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].to(dtype)) for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_an_openpi_folder_becomes_a_lerobot_folder(
    kind: ModelKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = openpi_folder(tmp_path, kind)
    main(["convert", str(source), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")])
    shown = capsys.readouterr().out
    assert "openpi PyTorch" in shown
    assert "0 missing, 0 unexpected, 0 mis-shaped" in shown
    assert "norm stats: written" in shown
    assert "tokenizer: absent: chunkrl download tokenizer" in shown
    loaded, expected = load_pretrained(tmp_path / "out"), tiny_policy(kind)
    assert loaded.recipe == expected.recipe
    assert_same(loaded, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["type"] == kind
    main(["convert", str(tmp_path / "out"), str(tmp_path / "half"), "--dtype", "bfloat16"])
    assert_same(load_pretrained(tmp_path / "half"), expected, torch.bfloat16)


@needs_golden
@pytest.mark.parametrize("kind", KINDS)
def test_orbax_to_lerobot(kind: ModelKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorstore", reason="reading Orbax needs chunkrl[pi]")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(tiny_recipe(kind).to_json())
    source = GOLDEN / kind / "orbax_ckpt"
    main(["convert", str(source), str(tmp_path / "out"), "--recipe", str(recipe)])
    assert "openpi JAX" in capsys.readouterr().out
    assert_same(load_pretrained(tmp_path / "out"), load_pretrained(source, recipe=tiny_recipe(kind)))


def test_the_tokenizer_goes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    source = openpi_folder(tmp_path, "pi05")
    recipe, out = str(tmp_path / "recipe.json"), str(tmp_path / "out")
    main(["convert", str(source), out, "--recipe", recipe, "--tokenizer", str(TOKENIZER)])
    assert "tokenizer: written" in capsys.readouterr().out
    assert load_pretrained(tmp_path / "out").tokenizer is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "chunkrl convert SOURCE TARGET"),
        ("{openpi} {root}/out", "does not say its prompt format"),
        ("{openpi} {root}/out --recipe pi7", "neither a file nor one of pi0_libero"),
        ("{openpi} {root}/out --recipe pi05_base", "give --cameras, --state-dim and --action-dim"),
        ("{openpi} {root}/out --recipe pi05_libero", "does not fit a pi05 model of these sizes"),
        ("{openpi} {root}/out --state-dim 3", "belong to --recipe"),
        ("{openpi} {root}/lerobot --recipe {root}/recipe.json", "exists and is not empty"),
        ("{root}/none {root}/out", "neither a checkpoint folder nor a Hub repository"),
    ],
)
def test_refused(arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = openpi_folder(tmp_path, "pi05")
    with pytest.raises(SystemExit) as stop:
        main(["convert", *arguments.format(openpi=source, root=tmp_path).split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipes_by_name() -> None:
    assert choose_recipe("pi0_libero") == pi0_libero()
    cameras = ("front", "wrist")
    assert choose_recipe("pi0_base", cameras, STATE_DIM, ACTION_DIM) == pi0_base(
        cameras, STATE_DIM, ACTION_DIM
    )
    with pytest.raises(CheckpointError, match="serves any robot"):
        choose_recipe("pi0_base", cameras, STATE_DIM, 0)


def test_any_policy_becomes_one_for_the_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of folders of before the plug-in's files were written."""
    small_policy(0, STATE_DIM, ACTION_DIM).save(tmp_path / "small")
    (tmp_path / "small" / "config.json").unlink()
    write_manifest(tmp_path / "small")
    save_pretrained(tiny_policy("pi05"), tmp_path / "pi05")
    for name in ("small", "pi05"):
        main(["convert", str(tmp_path / name), str(tmp_path / "out" / name), "--plugin"])
        assert json.loads((tmp_path / "out" / name / "config.json").read_text())["type"] == "chunkrl"
        assert "of type chunkrl" in capsys.readouterr().out
    assert load_policy(tmp_path / "out" / "small").action_dim == ACTION_DIM
    assert_same(load_pretrained(tmp_path / "out" / "pi05"), tiny_policy("pi05"))
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "small"), str(tmp_path / "native")])
    assert "of no type that stock LeRobot has: give --plugin" in capsys.readouterr().err
