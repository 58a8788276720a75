"""Keys of clients' observations: by name where only one thing can be meant, else as the person said, else refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.serve.keys import KeyMap, plan_keys

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
LIBERO = ("observation.images.image", "observation.images.image2")
PICTURE = np.zeros((4, 4, 3), np.uint8)
STATE = np.arange(3.0)


def keys(cameras: tuple[str, ...] = (FRONT, WRIST), *rename: str, **changes: Any) -> KeyMap:
    fields = {"ignore": (), "task": "", "state_dim": 3, "reads_task": True} | changes
    policy: Any = SimpleNamespace(
        cameras=cameras,
        state_dim=fields["state_dim"],
        action_dim=2,
        takes=SimpleNamespace(reads_task=fields["reads_task"]),
    )
    return plan_keys(policy, rename, fields["ignore"], fields["task"])


def test_the_names_of_openpis_libero_client_are_the_data_sets() -> None:
    wrist = PICTURE + 1
    message = {"observation/image": PICTURE, "observation/wrist_image": wrist, "observation/state": STATE}
    seen = keys(LIBERO).observation(message | {"prompt": "push"})
    assert list(seen.images) == list(LIBERO)
    assert seen.images[LIBERO[0]] is PICTURE and seen.images[LIBERO[1]] is wrist
    assert np.array_equal(seen.state, STATE) and seen.task == "push"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "observation/{}",
        "observation/images/{}",
        "observation/{}_image",
        "images/{}",
        "{}_image",
        "observation.images.{}",
    ],
)
def test_a_camera_goes_by_its_own_names(form: str) -> None:
    message = {form.format("front"): PICTURE, form.format("wrist"): PICTURE, "state": STATE, "task": "push"}
    assert set(keys().observation(message).images) == {FRONT, WRIST}


def test_maps_in_an_observation_are_paths() -> None:
    message = {
        "images": {"front": PICTURE, "wrist": PICTURE},
        "observation": {"state": STATE},
        "prompt": "push",
    }
    assert set(keys().observation(message).images) == {FRONT, WRIST}


def test_the_only_camera_is_openpis_image() -> None:
    message = {"observation/image": PICTURE, "observation/state": STATE, "prompt": "push"}
    assert keys((FRONT,)).observation(message).images == {FRONT: PICTURE}
    with pytest.raises(ObservationError, match=r"'observation/image', which the policy does not take"):
        keys().observation(message)  # which of two?


def test_a_name_of_two_cameras_is_that_of_none() -> None:
    first, second = "observation.images.image", "image"
    assert keys((first, second)).cameras == {first: (first,), second: (second,)}


def test_what_is_renamed_goes_by_no_other_name() -> None:
    found = keys((FRONT, WRIST), f"top={FRONT}", "a=observation.state", "b=observation.state")
    message = {"top": PICTURE, "wrist": PICTURE, "b": np.float32(7), "a": [1, 2], "prompt": "push"}
    assert np.array_equal(found.observation(message).state, [1, 2, 7])  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match=r"lacks \['b'\], parts of the state"):
        found.observation({key: value for key, value in message.items() if key != "b"})
    with pytest.raises(ObservationError, match="'front'"):
        found.observation(message | {"front": PICTURE})


GOOD = {"front": PICTURE, "wrist": PICTURE, "state": STATE, "prompt": "push"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"side": PICTURE},
            r"'side', which the policy does not take.*--rename side=POLICY'S or --ignore side",
        ),
        ({"frnt": PICTURE}, r"did you mean front"),
        ({"images/front": PICTURE}, r"both observation.images.front"),
        ({"front": None}, r"front is NoneType: send one image"),
        ({"front": PICTURE[None]}, r"front is \[1, 4, 4, 3\]: send one image"),
        ({"state": STATE[None]}, r"state is float64 \[1, 3\]: send one state"),
        ({"state": "x"}, "state is str"),
        (
            {"state": STATE[:2]},
            "state: 2 values, and the policy's state has 3: it was trained for another robot",
        ),
        ({"state": ["x", 1]}, "state is .*: send one state"),
        ({"prompt": ""}, "prompt is ''"),
        ({"prompt": 3}, "prompt is 3"),
        ({3: 1}, "the key 3"),
        ({"action_dim": 7}, "takes actions of 7 values .*and the policy's have 2"),
        ({"action_dim": STATE}, "takes actions of"),
    ],
)
def test_what_is_refused(change: dict[Any, Any], told: str) -> None:
    with pytest.raises(ObservationError, match=told):
        keys().observation(GOOD | change)
    assert keys().observation(GOOD | {"action_dim": 2}).task == "push"


@pytest.mark.parametrize("lacking", GOOD)
def test_what_is_missing_is_named(lacking: str) -> None:
    message = {key: value for key, value in GOOD.items() if key != lacking}
    with pytest.raises(ObservationError, match="lacks the policy's"):
        keys().observation(message)


def test_what_a_policy_does_not_need() -> None:
    assert keys((), state_dim=0, reads_task=False).observation({}).state is None
    assert keys((), task="push").observation({"state": STATE}).task == "push"
    assert keys((), task="push").observation({"state": STATE, "prompt": "pull"}).task == "pull"
    left_out = keys((), ignore=("side",), reads_task=False)
    assert left_out.observation({"state": STATE, "side": PICTURE}).images == {}
    with pytest.raises(ObservationError, match="the observation is list"):
        keys().observation([])


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        (("top",), "give CLIENT'S=POLICY'S; the policy's are .*front"),
        (("top=side",), "give CLIENT'S=POLICY'S"),
        ((f"a={FRONT}", f"b={FRONT}"), "each key and each camera once"),
        ((f"a={FRONT}", f"a={WRIST}"), "each key and each camera once"),
    ],
)
def test_renames_that_mean_nothing(rename: tuple[str, ...], told: str) -> None:
    with pytest.raises(ChunkRLError, match=told):
        keys((FRONT, WRIST), *rename)


def test_nothing_is_left() -> None:
    with pytest.raises(ChunkRLError, match=r"no key is left for .*task"):
        keys(ignore=("prompt", "task"))
