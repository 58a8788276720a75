"""`chunkrl evaluate` on MetaWorld: folders that go on, what is refused, videos, the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluations import SETTINGS, evaluation
from pages import Page

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunk_data import policy_of_one_update
from waiting import until

from chunkrl.cli import main
from chunkrl.envs import libero
from chunkrl.envs.family import EnvInfo, EnvOptions
from chunkrl.envs.metaworld import CAMERA
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation import observed
from chunkrl.evaluation.evaluate import format_evaluation
from chunkrl.evaluation.evaluation_folder import EvaluationFolder
from chunkrl.evaluation.evaluation_result import (
    EpisodeOutcome,
    read_evaluation,
    to_json,
    write_evaluation,
)
from chunkrl.evaluation.evaluation_videos import choose_episodes
from chunkrl.evaluation.observed import fit_policy, make_pool, plan_episodes, renamed
from chunkrl.evaluation.rollout import Episode, initial_seeds
from chunkrl.progress import ProgressBars
from chunkrl.report.evaluation import write_page
from chunkrl.statistics import wilson_interval
from chunkrl.types import Observation


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy after one update: it fails everywhere, and that is all these tests need."""
    root = tmp_path_factory.mktemp("policy")
    collect = f"collect --output-dir {root / 'data'} --num-episodes 2 --max-steps 8 --num-workers 0"
    main(collect.split())
    return policy_of_one_update(root / "data", root / "run", 4)


def arguments(policy: Path, output: Path | None, *more: str) -> list[str]:
    common = f"--policy {policy} --num-episodes 3 --max-steps 7 --num-workers 0 --mode sample --device cpu"
    folder = [] if output is None else ["--output-dir", str(output)]
    return ["evaluate", *common.split(), "--env", "push-v3", "reach-v3", *folder, *more]


def refused(capsys: pytest.CaptureFixture[str], call: list[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(call)
    assert stop.value.code == 2
    return re.sub(r"[\s│]+", " ", capsys.readouterr().err)  # flags' own errors are shown in a box


def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_result(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(policy, tmp_path / "whole"))
    saved: list[Episode] = []
    save = EvaluationFolder.save

    def dies(self: EvaluationFolder, episode: Episode, outcome: EpisodeOutcome) -> None:
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(episode)
        save(self, episode, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationFolder, "save", dies)
        with pytest.raises(SystemExit):
            main(arguments(policy, tmp_path / "stopped"))
    with pytest.raises(ChunkRLError, match="has finished"):
        read_evaluation(tmp_path / "stopped")
    # what a killed writer leaves is no episode
    (tmp_path / "stopped" / "episodes" / "push-v3" / ".1.json.partial-7").write_text("{")
    capsys.readouterr()
    main(arguments(policy, tmp_path / "stopped", "--batch-size", "4"))
    assert "4 of 6 episodes are there" in capsys.readouterr().out
    whole, gone_on = (read_evaluation(tmp_path / name) for name in ("whole", "stopped"))
    assert (whole.settings.device, whole.settings.opengl) == ("cpu", "")  # MetaWorld is drawn without OpenGL
    assert gone_on.settings == whole.settings and gone_on.episodes == whole.episodes
    assert gone_on.seeds("push-v3") == initial_seeds(0, 3)
    assert not list((tmp_path / "stopped").rglob("*partial*"))


@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_process_and_goes_on(policy: Path, tmp_path: Path) -> None:
    main(arguments(policy, tmp_path / "whole"))
    call = [
        sys.executable,
        "-m",
        "chunkrl.cli",
        *arguments(policy, tmp_path / "killed", "--num-workers", "2"),
    ]
    with subprocess.Popen(call, stderr=subprocess.DEVNULL, start_new_session=True) as process:

        def has_written() -> bool:
            assert process.poll() is None
            return any((tmp_path / "killed").rglob("episodes/*/*.json"))

        until(has_written)
        process.kill()
    # the simulators see the closed connection and end
    until(lambda: all(_session(stat) != process.pid for stat in Path("/proc").glob("[0-9]*/stat")))
    main(arguments(policy, tmp_path / "killed"))
    assert read_evaluation(tmp_path / "killed").episodes == read_evaluation(tmp_path / "whole").episodes


def _session(stat: Path) -> int:
    """Session of a process; 0 where it has ended meanwhile."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except (OSError, IndexError):
        return 0


def test_the_time_to_go_is_of_this_sessions_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    """A session that finds 90 of 100 episodes and then runs one a second has 5 s to go after 5, not none."""
    show = ProgressBars()
    show("evaluate", 90, 100)
    (bar,) = show._bars.values()
    bar.start_t -= 5.0
    show("evaluate", 95, 100)
    bar.refresh()
    assert re.search(r"95/100 \[00:0[5-9]<00:0[5-9]", capsys.readouterr().err.split("\r")[-1])
    show("evaluate", 100, 100)


def test_worker_processes_and_this_process_agree(policy: Path, tmp_path: Path) -> None:
    main(arguments(policy, tmp_path / "here"))
    main([*arguments(policy, tmp_path / "there"), "--num-workers", "1"])
    here, there = (read_evaluation(tmp_path / name) for name in ("here", "there"))
    assert here.settings == there.settings and here.episodes == there.episodes
    assert (here.num_workers, there.num_workers) == (0, 1)


def test_a_folder_of_another_evaluation_is_refused(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "e"
    main(arguments(policy, folder, "--env", "push-v3"))
    for more, message in (
        (("--exec-steps", "2"), "exec_steps 3 there, 2 asked for"),
        (("--seed", "1"), "seed 0 there, 1 asked for"),
        (("--env", "reach-v3"), "envs"),
    ):
        error = refused(capsys, arguments(policy, folder, "--env", "push-v3", *more))
        assert message in error and "--output-dir" in error
    other = tmp_path / "other"
    other.mkdir()
    for file in policy.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    main(arguments(other, folder, "--env", "push-v3"))  # a copy is the same policy
    (other / "more.txt").write_text("x")
    assert "fingerprint" in refused(capsys, arguments(other, folder, "--env", "push-v3"))
    assert "would mix its own files into it" in refused(capsys, arguments(policy, policy))
    before = (folder / "result.json").read_bytes()
    main(arguments(policy, folder, "--env", "push-v3", "--seed", "1", "--overwrite"))
    assert (tmp_path / "e.replaced-001" / "result.json").read_bytes() == before
    holder = EvaluationFolder(tmp_path / "held", SETTINGS)
    with pytest.raises(ChunkRLError, match="in use"):
        EvaluationFolder(tmp_path / "held", SETTINGS)
    holder.close()


def test_another_device_or_opengl_library_goes_on_with_no_evaluation(tmp_path: Path) -> None:
    ran = replace(SETTINGS, camera_size=64, rendering="fast", opengl="egl", device="cuda")
    EvaluationFolder(tmp_path / "e", ran).close()
    for change, told in (
        ({"device": "cpu"}, "device 'cuda' there, 'cpu' asked for"),
        ({"opengl": "osmesa"}, "opengl 'egl' there, 'osmesa' asked for"),
    ):
        with pytest.raises(ChunkRLError, match=told):
            EvaluationFolder(tmp_path / "e", replace(ran, **change))
    EvaluationFolder(tmp_path / "older", SETTINGS).close()  # of before they were noted
    EvaluationFolder(tmp_path / "older", replace(SETTINGS, device="cpu")).close()
    page = Page(write_page(tmp_path, evaluation((1,), (0,), settings=ran)).read_text())
    assert "images 64 pixels, rendering fast, OpenGL by egl" in page.text and "device cuda" in page.text


def test_what_cannot_be_evaluated(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--env", "push-v9"): "no task 'push-v9'",
        ("--env", "push-v3", "push-v3"): "given twice",
        ("--exec-steps", "4"): "exec_steps 4 is longer than the policy's chunk 3",
        ("--exec-steps", "0"): "exec_steps is 0; it must be at least 1",
        ("--videos", "1"): "needs a folder to put them in: give --output-dir",
        ("--condition", "x"): "is a small one",
        ("--batch-size", "3"): "use 1, or 4 and more",
    }
    for more, message in cases.items():
        assert message in refused(capsys, arguments(policy, None, *more)), more


def test_videos_show_failures_first_and_are_made_once(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--videos", "3", "--batch-size", "5")
    main(arguments(policy, tmp_path / "e", *few))
    videos = read_evaluation(tmp_path / "e").videos
    # one of five observations per policy call: the simulators are in this process
    assert read_evaluation(tmp_path / "e").num_workers == 0
    assert [(v.env, v.success, v.as_evaluated) for v in videos] == [
        ("push-v3", False, True),
        ("reach-v3", False, True),
        ("push-v3", False, True),
    ]
    assert all((tmp_path / "e" / v.file).stat().st_size > 1000 for v in videos)
    page = (tmp_path / "e" / "report.html").read_text()
    assert page.count("<video") == 3
    assert "simulator processes none: all in the policy's own" in Page(page).text
    assert list(Page(page).targets().values()) == ["div"] * 5  # two tasks and three videos
    monkeypatch.setattr("chunkrl.evaluation.evaluation_videos.episode_video", None)  # would fail if called
    main(arguments(policy, tmp_path / "e", *few))
    assert read_evaluation(tmp_path / "e").videos == videos
    monkeypatch.undo()
    (tmp_path / "e" / videos[1].file).unlink()  # its note stays
    main(arguments(policy, tmp_path / "e", *few))
    assert read_evaluation(tmp_path / "e").videos == videos
    assert (tmp_path / "e" / videos[1].file).stat().st_size > 1000


def test_a_fault_while_recording_videos_loses_no_result(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = arguments(policy, tmp_path / "e", "--videos", "2")
    videos: list[str] = []

    def second_fails(frames: Any, name: str, *more: Any) -> tuple[bytes, str]:
        videos.append(name)
        if len(videos) == 2:
            raise ChunkRLError("no OpenGL")
        return b"video", "video/mp4"

    with monkeypatch.context() as patch:
        patch.setattr("chunkrl.evaluation.evaluation_videos.episode_video", second_fails)
        assert "no OpenGL" in refused(capsys, call)
        found = read_evaluation(tmp_path / "e")
        assert [len(found.episodes[env]) for env in found.settings.envs] == [3, 3] and found.videos == ()
        assert "0 of 6 episodes" in Page((tmp_path / "e" / "report.html").read_text()).text
        videos.append("the first is there, and not made again")
        main(call)
    after = read_evaluation(tmp_path / "e")
    assert len(after.videos) == 2 and len(videos) == 4 and after.episodes == found.episodes
    assert (tmp_path / "e" / "report.html").read_text().count("<video") == 2


def test_one_environment_where_a_process_can_draw_in_one_alone() -> None:
    """A state policy's videos in LIBERO need the one rendering context that a process can have."""

    def num_slots(one_context: bool, camera_size: int, videos: bool) -> int:
        known = {
            "info": SimpleNamespace(one_context=one_context),
            "options": EnvOptions(None, "full", camera_size),
        }
        request: Any = SimpleNamespace(**known)
        return make_pool(request, 0, 4, 6, 1.0, videos).num_slots

    assert num_slots(True, 0, True) == num_slots(True, 64, False) == 1
    assert num_slots(True, 0, False) == num_slots(False, 64, True) == 4


def test_choice_of_videos() -> None:
    found = evaluation((1, 0, 1, 0), (0, 1, 1, 1))
    episodes = plan_episodes(found.settings, None)
    # each kind's first of every task before its second
    assert choose_episodes(found, episodes, 8) == [1, 4, 3, 0, 5, 2, 6, 7]
    assert choose_episodes(found, episodes, 2) == [1, 4]


def test_result_and_page_say_the_numbers(tmp_path: Path) -> None:
    found = evaluation((1, 0, 1, 1), (0, 0, 1, 0))
    write_evaluation(tmp_path, found)
    assert read_evaluation(tmp_path) == found == read_evaluation(tmp_path / "result.json")
    written = to_json(found)
    suite, push = wilson_interval(4, 8), wilson_interval(3, 4)
    assert (written["success"], written["interval"]) == (0.5, [suite.low, suite.high])
    assert written["tasks"]["push-v3"]["interval"] == [push.low, push.high]
    assert (written["exec_steps"], written["num_restarts"]) == (2, 0)
    # successes have 11 steps, failures 10
    assert written["median_steps_to_success"] == 11.0 and written["successes_per_1000_steps"] == 4000 / 84
    assert written["tasks"]["push-v3"]["successes_per_1000_steps"] == 3000 / 43
    assert "median steps to success 11 [11, 11], successes per 1,000 steps 69.8 [" in format_evaluation(found)
    page = Page(write_page(tmp_path, found).read_text())
    for said in (
        "4 of 8 episodes",
        "2 of 5 actions of each chunk",
        "3/4 · 75 %",
        "1.0 minutes",
        "1/4 · 25 %",
    ):
        assert said in page.text
    assert "cut short" in page.text and "meshes and textures" not in page.text
    assert written["settings"]["assets"] == ""
    on_libero = evaluation((1, 0), (1, 0), settings=replace(SETTINGS, assets="25611af90b3b791d"))
    noted = on_libero.settings
    assert noted.differences(replace(noted, assets="")) == ()  # made before assets were noted
    assert noted.differences(replace(noted, assets="5a")) == ("assets",)
    led = replace(noted, guidance_from="Advantage: negative")
    assert noted.differences(led) == () and led.differences(replace(led, guidance_from="")) == (
        "guidance_from",
    )
    assert noted.differences(replace(noted, initial="sampled")) == (
        "initial",
    )  # those of before are official
    sampled = replace(on_libero, settings=replace(noted, initial="sampled"))
    assert "2 per task, sampled, seed 0" in Page(write_page(tmp_path, sampled).read_text()).text
    assert "meshes and textures 25611af90b3b791d" in Page(write_page(tmp_path, on_libero).read_text()).text
    squares = [
        attrs for tag, attrs in page.tags if tag == "rect" and attrs.get("class") in ("bar good", "bar bad")
    ]
    assert [s["class"] for s in squares] == [
        f"bar {'good' if s else 'bad'}" for s in (1, 0, 1, 1, 0, 0, 1, 0)
    ]


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ChunkRLError, match="is not a result of chunkrl evaluate"):
        read_evaluation(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(to_json(evaluation((1,), (0,))) | {"version": 0}))
    with pytest.raises(ChunkRLError, match=r"version 0.*evaluate again"):
        read_evaluation(tmp_path)
    content = to_json(evaluation((1,), (0,)))
    content["settings"]["mode"] = "moody"
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(ChunkRLError, match=r"result\.json.*mode"):
        read_evaluation(tmp_path)
    for change in ({"seconds": -1.0}, {"num_workers": -1}):
        (tmp_path / "result.json").write_text(json.dumps(to_json(evaluation((1,), (0,))) | change))
        with pytest.raises(ChunkRLError, match="expected no negative numbers"):
            read_evaluation(tmp_path)


def fitted(
    cameras: tuple[str, ...] = (),
    state_dim: int = 39,
    action_dim: int = 4,
    image_sizes: tuple[tuple[int, int], ...] = (),
    recorded_sizes: tuple[tuple[tuple[int, int], ...], ...] = (),
    **more: Any,
):
    known = {"cameras": cameras, "state_dim": state_dim, "action_dim": action_dim}
    known |= {"image_sizes": image_sizes, "recorded_sizes": recorded_sizes, "own_image_size": None}
    policy: Any = SimpleNamespace(**known)
    asked = {"names": ("push-v3",), "max_steps": None, "camera_size": None, "rename": ()} | more
    return fit_policy(policy, **asked)


def test_policies_that_do_not_fit_are_told_what_does_not() -> None:
    assert fitted().max_steps == (150,)
    assert fitted(state_dim=10).options.state == "compact"
    assert fitted((CAMERA,), 0, camera_size=32).rename == ((CAMERA, CAMERA),)
    assert fitted(("wrist",), camera_size=8, rename=(f"{CAMERA}=wrist",)).rename == ((CAMERA, "wrist"),)
    assert fitted((CAMERA,), image_sizes=((32, 32),)).options.camera_size == 32
    resized = {
        "image_sizes": ((32, 32),),
        "recorded_sizes": (((96, 96),),),
    }  # images as its data were recorded
    assert fitted((CAMERA,), **resized).options.camera_size == 96
    assert fitted((CAMERA,), **resized, camera_size=32).options.camera_size == 32
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"action_dim": 7}, "7 action and 39 state values, MetaWorld has 4 and 39"),
        ({"state_dim": 8}, "8 state values, MetaWorld has 4 and 39"),
        ({"cameras": ("wrist",)}, "needs the camera 'wrist', and MetaWorld has"),
        ({"cameras": (CAMERA,)}, "--camera-size how large"),
        (
            {"cameras": (CAMERA,), "image_sizes": ((32, 32),), "camera_size": 64},
            "64: .* of 32 x 32 pixels, leave it",
        ),
        (
            {"cameras": (CAMERA,), "image_sizes": ((24, 32),)},
            "of 24 x 32 pixels, and MetaWorld draws squares",
        ),
        ({"camera_size": 8}, "this one has none"),
        (
            {"rendering": "fast"},
            "--rendering fast is of LIBERO, and MetaWorld draws in one way: leave it out",
        ),
        (
            {"initial": "sampled"},
            "MetaWorld has no official initial states, --seed draws all: leave it out",
        ),
        ({"cameras": ("wrist",), "rename": ("front=wrist",)}, "--rename front=wrist: give"),
        ({"cameras": ("a", "b"), "rename": (f"{CAMERA}=a", f"{CAMERA}=b")}, "two of the policy's cameras"),
    )
    for wrong, message in cases:
        with pytest.raises(ChunkRLError, match=message):
            fitted(**wrong)


@pytest.mark.parametrize(
    "names",
    [
        ("observation.images.image", "observation.images.image2"),  # LeRobot's pi05_libero
        ("image", "wrist_image"),  # openpi's pi0_libero and pi05_libero
        ("observation/wrist_image", "observation/image"),
        ("wrist_image",),
    ],
)
def test_liberos_cameras_are_known_by_the_names_of_published_checkpoints(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"full": libero.STATE_NAMES}
    limits = {"libero_goal/1": 300}
    info = EnvInfo("LIBERO", libero.ACTION_DIM, states, "full", libero.CAMERAS, limits, 50, 50, 20.0, True)
    monkeypatch.setattr(observed, "expand", lambda names: ("libero_goal/1",))
    monkeypatch.setattr(observed, "describe", lambda tasks: info)
    found = fitted(names, 8, 7, camera_size=224)
    wrist = {name: "wrist" in name or name.endswith("2") for name in names}
    assert found.rename == tuple((libero.CAMERAS[wrist[name]], name) for name in names)
    assert found.max_steps == (300,) and found.options.camera_size == 224
    assert found.options.initial == "official" and found.info.num_initial_states == 50
    sampled = fitted(names, 8, 7, camera_size=224, initial="sampled")
    assert sampled.options.initial == "sampled" and sampled.info.num_initial_states is None
    with pytest.raises(ChunkRLError, match=r"camera 'top'.*LIBERO has \['observation.images.image', "):
        fitted((*names, "top"), 8, 7, camera_size=224)


def test_renamed_observations() -> None:
    seen: list[Observation] = []

    def actor(observation: Observation, generators: Any) -> torch.Tensor:
        seen.append(observation)
        return torch.zeros(1, 1, 1)

    images = {
        name: torch.full((1, 3, 2, 2), i, dtype=torch.uint8) for i, name in enumerate(("outer", "inner"))
    }
    renamed(actor, (("inner", "wrist"),))(Observation(images=images, task=("t",)), [])
    assert list(seen[0].images) == ["wrist"] and int(seen[0].images["wrist"][0, 0, 0, 0]) == 1


def test_official_initial_states_are_numbered_and_their_noise_differs_by_task() -> None:
    settings = replace(SETTINGS, envs=("libero_goal/0", "libero_goal/1"), num_episodes=3)
    episodes = plan_episodes(settings, 50)
    assert [(e.env[-1], e.seed) for e in episodes] == [(t, s) for t in "01" for s in range(3)]
    assert len({e.noise_seed for e in episodes}) == 6
    assert episodes != plan_episodes(replace(settings, seed=1), 50)
    with pytest.raises(ChunkRLError, match="at most 50"):
        plan_episodes(replace(settings, num_episodes=51), 50)
