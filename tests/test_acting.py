"""What a policy is given to act on: the same chunk as through the data path, or refused by name with the cure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, random_episodes, settings, write_dataset
from pi_tiny import observation as pi_observation
from pi_tiny import tiny_policy, tiny_recipe

from chunkrl import ChunkLevelOfflineRL, load_policy
from chunkrl.data.frames import FrameSettings
from chunkrl.data.resize import Resize
from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.integration.lerobot_frames import lerobot_observation
from chunkrl.models.encoders import NetworkConfig
from chunkrl.models.pi.actor import PiActor
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.types import Observation

CAMERA, WRIST = "observation.images.front", "observation.images.wrist"
SEEN = 32
NETWORK = NetworkConfig(hidden_dim=8, num_layers=1, image_channels=(8,), text_dim=4)


class Trained:
    """A policy that sees two cameras, resized from 96 x 96 to 32 x 32, state and task, and its data's episodes."""

    def __init__(self, folder: Path, frames: FrameSettings, size: int = 96) -> None:
        self.episodes = image_episodes(4, size=size)
        data = write_dataset(folder / "data", self.episodes, tasks=("push the cup", "pull the cup"))
        own: dict[str, Any] = {
            "frames": frames,
            "network": NETWORK,
            "objective": "behaviour_cloning",
            "num_updates": 2,
        }
        self.run = ChunkLevelOfflineRL(**settings(data, folder / "run", **own))
        self.run.train()
        self.policy = load_policy(folder / "run" / "policy")
        # what one frame gives through the data path
        self.batch = self.run.dataset.batch(np.array([0])).observation
        network = self.policy.policy
        with torch.no_grad():
            self.chunk = network(self.batch)[0]

    def observed(self, **changes: Any) -> Observation:
        """The first frame as a robot gives it: images [height, width, 3], state [S]."""
        first = self.episodes[0]
        images = {name: first[name][0] for name in (CAMERA, WRIST)}
        return replace(Observation(images, first["observation.state"][0], "push the cup"), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("resized"), FrameSettings(resize=(SEEN, SEEN)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("plain"), FrameSettings(), size=SEEN)


def first_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def flipped(image: np.ndarray) -> np.ndarray:
    """A view with negative strides of the same image, as `frame[..., ::-1]` of OpenCV is one."""
    return np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]


def frozen(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image.flags.writeable = False
    return image


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy, channels last": lambda image: image,
    "numpy, channels first": first_last,
    "torch, channels last": torch.from_numpy,
    "torch, channels first": lambda image: torch.from_numpy(first_last(image)),
    "a view": flipped,
    "read-only": frozen,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["resized", "plain"])
def test_every_form_of_a_picture_gives_the_chunk_of_the_data_path(
    kind: str, form: str, request: pytest.FixtureRequest
) -> None:
    """Also where training resized it: by the function that training used, to the bit."""
    trained: Trained = request.getfixturevalue(kind)
    seen = trained.observed()
    images = {name: FORMS[form](image) for name, image in seen.images.items()}  # type: ignore[arg-type]
    one = trained.policy.act(replace(seen, images=images))
    assert one.shape == (3, 2)
    assert torch.equal(one, trained.chunk)
    batch = {name: torch.as_tensor(np.asarray(image)[None].copy()) for name, image in images.items()}
    several = trained.policy.act(replace(seen, images=batch, state=np.asarray(seen.state)[None]))
    assert torch.equal(several, trained.chunk[None])


@pytest.mark.parametrize(
    "state",
    [
        lambda s: s.astype(np.float64),
        lambda s: s.astype(">f4"),
        lambda s: torch.from_numpy(s.copy()).double(),
        lambda s: np.repeat(s, 2)[::2],
    ],
)
def test_states_of_any_kind_of_number_are_the_same_state(
    plain: Trained, state: Callable[[np.ndarray], Any]
) -> None:
    seen = plain.observed()
    assert torch.equal(plain.policy.act(replace(seen, state=state(seen.state))), plain.chunk)  # type: ignore[arg-type]


def test_a_batch_is_its_rows(resized: Trained) -> None:
    rows = [
        Observation(
            {name: episode[name][2] for name in (CAMERA, WRIST)}, episode["observation.state"][2], task
        )
        for episode, task in zip(
            resized.episodes[:3], ("push the cup", "pull the cup", "push the cup"), strict=True
        )
    ]
    together = Observation(
        {name: np.stack([row.images[name] for row in rows]) for name in (CAMERA, WRIST)},  # type: ignore[arg-type]
        np.stack([row.state for row in rows]),  # type: ignore[arg-type]
        tuple(row.task for row in rows),  # type: ignore[arg-type]
    )
    chunks = resized.policy.act(together)
    assert chunks.shape == (3, 3, 2)
    for row, chunk in zip(rows, chunks, strict=True):
        torch.testing.assert_close(resized.policy.act(row), chunk)
    generators = [torch.Generator().manual_seed(0)]
    sample = resized.policy.act(rows[0], generators, "sample")
    assert sample.shape == (3, 2) and not torch.equal(sample, chunks[0])


def grey(image: np.ndarray) -> np.ndarray:
    return image.mean(-1).astype(np.uint8)


def images_of(change: Callable[[np.ndarray], Any]) -> Callable[[Observation], Observation]:
    return lambda seen: replace(seen, images={**seen.images, CAMERA: change(seen.images[CAMERA])})  # type: ignore[arg-type]


def state_of(change: Callable[[np.ndarray], Any]) -> Callable[[Observation], Observation]:
    return lambda seen: replace(seen, state=change(np.array(seen.state)))


def broken(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda state: np.where(np.arange(len(state)) == 1, value, state)


WRONG: dict[str, tuple[Callable[[Observation], Any], str]] = {
    "floats of 0 to 1": (
        images_of(lambda i: (i / 255).astype(np.float32)),
        r"front'.*float32 .*values 0 to 1, .*learned from uint8: give uint8",
    ),
    "floats of 0 to 255": (
        images_of(lambda i: torch.from_numpy(i).float()),
        r"front'.*float32 .*to 255.*give uint8",
    ),
    "integers": (images_of(lambda i: i.astype(np.int64)), "front'.*int64.*give uint8"),
    "signed bytes": (images_of(lambda i: i.astype(np.int8)), "front'.*int8.*give uint8"),
    "flags": (images_of(lambda i: i > 127), "front'.*bool.*give uint8"),
    "a list": (images_of(lambda i: i.tolist()), "front'.*is list: give a numpy array or a torch tensor"),
    "no channels": (images_of(grey), r"front'.*\[\d+, \d+\]: give uint8"),
    "alpha": (
        images_of(lambda i: np.concatenate([i, i[..., :1]], -1)),
        "front'.*neither first nor last are 3",
    ),
    "no layout": (images_of(lambda i: i[:3]), "front'.*could be the channels"),
    "a video": (images_of(lambda i: i[None, None]), r"front'.*\[1, 1, \d+, \d+, 3\]"),
    "nothing": (images_of(lambda i: i[:0]), "front'"),
    "another shape": (
        images_of(lambda i: i[: len(i) // 2]),
        "front'.*bars that were not there. Set the camera",
    ),
    "too small": (images_of(lambda i: i[:16, :16]), "front'.*16 x 16 pixels.*show less than it learned from"),
    "a camera less": (
        lambda seen: replace(seen, images={CAMERA: seen.images[CAMERA]}),
        rf"missing \['{WRIST}'\], unknown \[\]; give exactly",
    ),
    "a camera more": (
        lambda seen: replace(seen, images={**seen.images, "side": seen.images[CAMERA]}),
        r"missing \[\], unknown \['side'\]",
    ),
    "another name": (
        lambda seen: replace(seen, images={"front": seen.images[CAMERA], WRIST: seen.images[WRIST]}),
        rf"missing \['{CAMERA}'\], unknown \['front'\]",
    ),
    "an image alone": (
        lambda seen: replace(seen, images=seen.images[CAMERA]),
        "images is ndarray: give a dict",
    ),
    "no state": (
        lambda seen: replace(seen, state=None),
        "needs a state of 3 values and the observation has none",
    ),
    "a longer state": (
        state_of(lambda s: np.append(s, 0)),
        r"needs a state of 3 values; got the shape \[4\]",
    ),
    "a scalar": (state_of(lambda s: s[0]), "the state is float32: give|the state is"),
    "many axes": (state_of(lambda s: s[None, None]), r"got the shape \[1, 1, 3\]"),
    "flags for a state": (state_of(lambda s: s > 0), "the state is bool: give numbers"),
    "texts": (state_of(lambda s: s.astype(str)), "the state is of <U"),
    "not a number": (state_of(broken(np.nan)), r"NaN or infinity \(value 1\): a sensor"),
    "infinity": (state_of(broken(np.inf)), r"NaN or infinity \(value 1\)"),
    "beyond float32": (
        state_of(lambda s: broken(1e300)(s.astype(np.float64))),
        r"NaN or infinity \(value 1\)",
    ),
    "no task": (lambda seen: replace(seen, task=""), "task of row 0 is empty, and the policy reads it"),
    "blanks": (lambda seen: replace(seen, task=" \n"), "task of row 0 is empty"),
    "no text": (lambda seen: replace(seen, task=None), "the task is NoneType: give a text"),
    "numbers for tasks": (lambda seen: replace(seen, task=(3,)), "do not belong together|give a text"),
    "a batch of states": (state_of(lambda s: s[None]), r"front' one, .*the state a batch of 1"),
    "tasks of a batch": (lambda seen: replace(seen, task=("a", "b")), "the task a batch of 2"),
    "a dictionary": (lambda seen: dict(seen.images), "the observation is dict: give a chunkrl.Observation"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["resized", "plain"])
def test_what_the_policy_did_not_learn_from_is_refused(
    kind: str, wrong: str, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(kind)
    change, message = WRONG[wrong]
    with pytest.raises(ObservationError, match=f"(?s){message}"):
        trained.policy.act(change(trained.observed()))


def test_a_row_of_a_batch_is_named(plain: Trained) -> None:
    seen = plain.batch
    assert seen.state is not None
    twice = Observation(
        {name: image.repeat(2, 1, 1, 1) for name, image in seen.images.items()}, seen.state.repeat(2, 1)
    )
    assert plain.policy.act(replace(twice, task="push the cup")).shape == (2, 3, 2)  # one text for all
    with pytest.raises(ObservationError, match="task of row 1 is empty"):
        plain.policy.act(replace(twice, task=("push the cup", "")))
    assert twice.state is not None
    twice.state[1, 2] = torch.nan
    with pytest.raises(ObservationError, match="value 2 of row 1"):
        plain.policy.act(replace(twice, task="push the cup"))
    with pytest.raises(ObservationError, match="a batch of 0 rows"):
        plain.policy.act(twice.map(lambda tensor: tensor[:0]))
    with pytest.raises(ObservationError, match=r"front' a batch of 1, .*the state a batch of 2"):
        plain.policy.act(replace(twice, images=seen.images, state=torch.zeros(2, 3)))
    for mode, more in (("best", {}), ("sample", {}), ("mode", {"num_candidates": 0})):
        with pytest.raises(ChunkRLError, match=r"mode is|a generator for each of 1|num_candidates is 0"):
            plain.policy.act(seen, mode=mode, **more)  # type: ignore[arg-type]


def test_larger_pictures_of_the_same_shape_are_resized_and_it_is_said(
    plain: Trained, resized: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    for trained, size in ((plain, 96), (resized, 64)):
        large = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        with caplog.at_level(logging.WARNING):
            found = [
                trained.policy.act(images_of(lambda _, p=large: p)(trained.observed())) for _ in range(2)
            ]
        small = images_of(lambda _, p=large: Resize(SEEN, SEEN)(p))(trained.observed())
        assert torch.equal(found[0], trained.policy.act(small)) and torch.equal(*found)
        assert [record.message for record in caplog.records if f"{size} x {size}" in record.message] == [
            f"camera '{CAMERA}': images are {size} x {size} pixels, the policy learned from 32 x 32 pixels, "
            f"recorded as {'32 x 32' if trained is plain else '96 x 96'} pixels: they are resized. The recorded size "
            "is safer"
        ]


def test_policies_of_earlier_releases_take_their_own_size_alone(plain: Trained) -> None:
    assert isinstance(plain.policy, ChunkPolicy)
    without = ChunkPolicy(replace(plain.policy.spec, recorded_sizes=()), plain.policy.policy, None)
    assert torch.equal(without.act(plain.observed()), plain.chunk)
    with pytest.raises(ObservationError, match=r"does not say how they were resized.*: give that size"):
        without.act(images_of(lambda i: np.repeat(np.repeat(i, 3, 0), 3, 1))(plain.observed()))


def test_a_policy_that_reads_no_task_needs_none(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", random_episodes(4))
    run = ChunkLevelOfflineRL(
        **settings(data, tmp_path / "run", objective="behaviour_cloning", num_updates=1)
    )
    policy = run.train()
    state = np.zeros(3, np.float32)
    assert torch.equal(policy.act(Observation(state=state)), policy.act(Observation(state=state[None]))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["resized", "plain"])
def test_lerobots_frames_give_the_same_chunk(kind: str, request: pytest.FixtureRequest) -> None:
    """Its data sets give float images [3, height, width] in [0, 1]: k / 255 of each grey level k."""
    trained: Trained = request.getfixturevalue(kind)
    first = trained.episodes[0]
    frame: dict[str, Any] = {
        name: torch.from_numpy(first_last(first[name][0])).float() / 255 for name in (CAMERA, WRIST)
    }
    frame |= {"observation.state": torch.from_numpy(first["observation.state"][0]), "task": "push the cup"}
    frame |= {"action": torch.zeros(2), "index": torch.tensor(0)}
    cameras = trained.policy.cameras
    assert torch.equal(trained.policy.act(lerobot_observation(frame, cameras)), trained.chunk)
    batch = {
        name: value[None] if isinstance(value, torch.Tensor) else [value] for name, value in frame.items()
    }
    assert torch.equal(trained.policy.act(lerobot_observation(batch, cameras)), trained.chunk[None])
    renamed = {"state" if name == "observation.state" else name: value for name, value in frame.items()}
    for other in (renamed, frame | {CAMERA: frame[CAMERA].half()}):
        assert torch.equal(trained.policy.act(lerobot_observation(other, cameras)), trained.chunk)
    parts = frame | {"arm": frame["observation.state"][:2], "hand": frame["observation.state"][2:]}
    joined = lerobot_observation(parts, cameras, ("arm", "hand"))
    assert torch.equal(trained.policy.act(joined), trained.chunk)
    for wrong, message in (
        ({CAMERA: frame[CAMERA] * 255}, "values 0 to 255; LeRobot's floats lie in"),
        ({CAMERA: frame[CAMERA] * 2 - 1}, "values -1 to 1; LeRobot's floats lie in"),
        ({CAMERA: frame[CAMERA] * torch.nan}, "values nan to nan"),
        ({CAMERA: frame[CAMERA].bfloat16()}, "bfloat16 does not tell 256 grey levels apart"),
        ({"state": frame["observation.state"]}, "observation.state and state could both be the state"),
    ):
        with pytest.raises(ObservationError, match=message):
            lerobot_observation(frame | wrong, cameras)
    with pytest.raises(ObservationError, match=r"the frame has no .*side"):
        lerobot_observation(frame, (*cameras, "side"))
    with pytest.raises(ObservationError, match=r"the frame has no .*arm"):
        lerobot_observation(frame, cameras, ("arm",))


def test_data_sets_recorded_in_two_sizes_are_both_known(tmp_path: Path) -> None:
    episodes = {size: image_episodes(2, size=size) for size in (96, 64)}
    roots = [write_dataset(tmp_path / str(size), own, tasks=("push",)) for size, own in episodes.items()]
    own: dict[str, Any] = {"frames": FrameSettings(resize=(SEEN, SEEN)), "network": NETWORK, "num_updates": 1}
    own |= {"objective": "behaviour_cloning", "additional_offline_dataset_paths": (str(roots[1]),)}
    run = ChunkLevelOfflineRL(**settings(roots[0], tmp_path / "run", **own))
    policy = run.train()
    assert isinstance(policy, ChunkPolicy) and policy.recorded_sizes == (((96, 96), (64, 64)),) * 2
    for size, dataset in zip(episodes, run.dataset.datasets, strict=True):
        first = episodes[size][0]
        seen = Observation(
            {name: first[name][0] for name in (CAMERA, WRIST)}, first["observation.state"][0], "push"
        )
        by_data = dataset.batch(np.array([0])).observation
        assert torch.equal(policy.act(seen), policy.act(by_data)[0])


# ---- pi policies: the same check


def pi_row(row: int = 0) -> Observation:
    batch = pi_observation()
    part = batch.map(lambda tensor: tensor[row])
    return replace(part, task=batch.task[row])


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_a_pi_policy_takes_the_same_forms(kind: Any) -> None:
    actor = PiActor(tiny_policy(kind))
    batch = pi_observation()
    chunks = actor.act(batch)
    assert chunks.shape == (2, 10, 7)
    one = pi_row()
    torch.testing.assert_close(actor.act(one), chunks[0])
    numpy = one.map(lambda tensor: tensor.numpy())  # type: ignore[arg-type,return-value]
    last = replace(numpy, images={name: image.transpose(1, 2, 0) for name, image in numpy.images.items()})  # type: ignore[attr-defined]
    assert torch.equal(actor.act(numpy), actor.act(one)) and torch.equal(actor.act(last), actor.act(one))
    frame = {name: image.float() / 255 for name, image in one.images.items()}
    frame |= {"observation.state": one.state, "task": one.task}  # type: ignore[dict-item]
    assert torch.equal(actor.act(lerobot_observation(frame, actor.cameras)), actor.act(one))


def test_a_pi_policy_is_asked_for_what_it_was_trained_with() -> None:
    texts = ("Advantage: negative", "Advantage: positive")
    recipe = tiny_recipe("pi05", condition=texts[-1], conditions=texts, guidance=1.5)
    actor = PiActor(tiny_policy("pi05", recipe))
    assert (actor.condition, actor.guidance, actor.flow_steps) == (texts[-1], 1.5, 10)
    assert actor.guidance_from == ""
    good = actor.act(pi_row())
    actor.ask(texts[0], guidance=2, flow_steps=3)
    assert (actor.condition, actor.guidance, actor.flow_steps) == (texts[0], 2, 3)
    assert not torch.equal(actor.act(pi_row()), good)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"condition": "Advantage: neutral"}, "is not what"),
        ({"condition": "", "guidance": 2.0}, "leads towards a condition"),
        ({"guidance": -1.0}, "must not be negative"),
        ({"condition": texts[1], "guidance_from": "Advantage: neutral"}, "guidance_from .* is not what"),
        ({"condition": texts[1], "guidance_from": texts[1]}, "changes nothing, since that is what"),
        (
            {"condition": texts[1], "guidance_from": texts[0], "guidance": 1.0},
            "changes nothing, since guidance is 1",
        ),
    )
    for wrong, message in cases:
        with pytest.raises(ChunkRLError, match=message):
            actor.ask(**wrong)
        assert actor.condition == texts[0]
    actor.ask(guidance_from=texts[0])
    assert actor.guidance_from == texts[0]
    assert not torch.equal(actor.act(pi_row()), good)
    settings = replace(recipe.settings, guidance_from=texts[0])
    saved = PiActor(tiny_policy("pi05", replace(recipe, settings=settings)))
    assert saved.guidance_from == texts[0] and torch.equal(saved.act(pi_row()), actor.act(pi_row()))
    saved.ask(guidance_from="")
    assert saved.guidance_from == "" and torch.equal(saved.act(pi_row()), good)
    saved.ask(guidance=1)
    assert saved.guidance_from is None
    actor.ask("")
    assert not torch.equal(actor.act(pi_row()), good)
    actor.ask()
    assert torch.equal(actor.act(pi_row()), good)
    with pytest.raises(
        ChunkRLError, match=r"'Advantage: 4' is not what .* \(with 'Advantage: negative', '.*pos"
    ):
        PiActor(actor.policy, condition="Advantage: 4")


PI_WRONG: Sequence[tuple[Callable[[Observation], Observation], str]] = (
    (
        lambda o: replace(o, images={n: i.float() / 255 for n, i in o.images.items()}),
        "values 0 to 1.*give uint8",
    ),
    (lambda o: replace(o, images={n: i[:2] for n, i in o.images.items()}), "neither first nor last are 3"),
    (lambda o: replace(o, images={"front": o.images["front"]}), r"missing \['wrist'\]"),
    (lambda o: replace(o, task=""), "task of row 0 is empty"),
    (lambda o: replace(o, state=None), "needs a state of 8 values"),
    (lambda o: replace(o, state=torch.zeros(7)), r"got the shape \[7\]"),
    (lambda o: replace(o, state=torch.full((8,), torch.inf)), "NaN or infinity"),
)


@pytest.mark.parametrize("number", range(len(PI_WRONG)))
def test_what_a_pi_policy_did_not_learn_from_is_refused(number: int) -> None:
    change, message = PI_WRONG[number]
    with pytest.raises(ObservationError, match=message):
        PiActor(tiny_policy("pi05")).act(change(pi_row()))


def test_a_pi_policy_resizes_as_its_data_were() -> None:
    """Trained on images that the data path made 28 x 28 of any, and its model 56 x 56 of those."""
    actor = PiActor(tiny_policy("pi05", tiny_recipe("pi05", data_resize=Resize(28, 28))))
    plain = PiActor(tiny_policy("pi05"))
    recorded = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    seen = replace(pi_row(), images=dict.fromkeys(("front", "wrist"), recorded))  # type: ignore[arg-type]
    by_data = replace(seen, images=dict.fromkeys(("front", "wrist"), Resize(28, 28)(recorded)))  # type: ignore[arg-type]
    assert torch.equal(actor.act(seen), plain.act(by_data))
    assert not torch.equal(actor.act(seen), plain.act(seen))
