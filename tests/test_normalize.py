"""Statistics and normalisation against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lerobot_folder import write_lerobot_folder

from chunkrl.data import normalize
from chunkrl.data.frames import FrameTable
from chunkrl.data.normalize import MODES, Normalizer, Statistics, compute_statistics, merge
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

_matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.floats(-1000, 1000, width=32),
)


def test_statistics_of_a_ramp():
    ramp = np.arange(101, dtype=np.float32)[:, None] * np.array([1.0, -2.0], np.float32)
    s = compute_statistics(ramp)
    assert s.count == 101
    np.testing.assert_array_equal(s.mean, [50, -100])
    np.testing.assert_allclose(s.std, np.sqrt((101**2 - 1) / 12) * np.array([1, 2]), rtol=1e-6)
    np.testing.assert_array_equal([s.min, s.max], [[0, -200], [100, 0]])
    np.testing.assert_allclose([s.q01, s.q99], [[1, -198], [99, -2]], rtol=1e-6)


@given(_matrices, st.integers(1, 50))
def test_chunked_pass_equals_numpy(array, chunk_rows):
    s = compute_statistics(array, chunk_rows)
    wide = array.astype(np.float64)
    np.testing.assert_allclose(s.mean, wide.mean(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(s.std, wide.std(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal([s.min, s.max], [array.min(axis=0), array.max(axis=0)])
    np.testing.assert_allclose([s.q01, s.q99], np.quantile(wide, (0.01, 0.99), axis=0), rtol=1e-5, atol=1e-4)


@given(_matrices, st.integers(1, 39))
def test_merge_is_the_whole_but_for_quantiles(array, cut):
    cut = min(cut, len(array))
    if cut == len(array):
        array = np.concatenate([array, array[:1]])
    whole = compute_statistics(array)
    merged = merge(compute_statistics(array[:cut]), compute_statistics(array[cut:]))
    assert merged.count == whole.count
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-4, atol=2e-3)
    assert (merged.q01 >= merged.min - 1e-3).all()
    assert (merged.q99 <= merged.max + 1e-3).all()


def test_merge_weighs_quantiles_by_count():
    a = compute_statistics(np.zeros((1, 1), np.float32))
    b = compute_statistics(np.full((3, 1), 4, np.float32))
    assert merge(a, b).q99 == pytest.approx(3)
    with pytest.raises(DatasetError, match="1 and 2 dimensions"):
        merge(a, compute_statistics(np.zeros((1, 2), np.float32)))


@given(_matrices)
def test_saved_statistics_come_back_to_the_bit(tmp_path_factory, array):
    file = tmp_path_factory.mktemp("statistics") / "action.json"
    statistics = compute_statistics(array)
    statistics.save(file)
    again = Statistics.load(file)
    assert again.count == statistics.count
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        value = getattr(again, name)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, getattr(statistics, name))
    merged = merge(again, Statistics.load(file))
    np.testing.assert_allclose(merged.mean, statistics.mean, rtol=1e-6)


def test_a_table_computes_its_statistics_once(tmp_path, monkeypatch):
    root = write_lerobot_folder(tmp_path / "set").root
    table = FrameTable.open(root, cache_dir=tmp_path / "cache", progress=silent)
    first = table.statistics(table.description.action_keys)
    np.testing.assert_array_equal(first.mean, compute_statistics(table.action).mean)
    monkeypatch.setattr(normalize, "compute_statistics", None)
    again = FrameTable.open(root, cache_dir=tmp_path / "cache", progress=silent)
    np.testing.assert_array_equal(again.statistics(again.description.action_keys).q99, first.q99)


@pytest.mark.parametrize("content", ["", "{}", '{"count": 3, "mean": [1]}', "[1]"])
def test_damaged_statistics_are_refused(tmp_path, content):
    (tmp_path / "action.json").write_text(content)
    with pytest.raises(DatasetError, match="delete it and compute"):
        Statistics.load(tmp_path / "action.json")


def test_rows_as_indices_and_as_mask():
    array = np.arange(20, dtype=np.float32)[:, None]
    by_index = compute_statistics(array, chunk_rows=3, rows=np.array([1, 5, 9]))
    by_mask = compute_statistics(array, chunk_rows=3, rows=np.isin(np.arange(20), [1, 5, 9]))
    assert by_index.count == by_mask.count == 3
    assert by_index.mean == by_mask.mean == 5


def test_quantiles_of_many_rows_come_from_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr(normalize, "QUANTILE_ROWS", 100)
    array = np.random.default_rng(0).permutation(10_001).astype(np.float32)[:, None]
    s = compute_statistics(array, chunk_rows=33)
    sample = array[::101]
    np.testing.assert_allclose([s.q01, s.q99], np.quantile(sample, (0.01, 0.99), axis=0), rtol=1e-6)
    assert (s.min, s.max) == (0, 10_000)


def test_bad_rows_are_named():
    array = np.zeros((10, 2), np.float32)
    array[7, 1] = np.nan
    with pytest.raises(DatasetError, match="row 7, dimension 1"):
        compute_statistics(array, chunk_rows=3)
    with pytest.raises(DatasetError, match="row 7"):
        compute_statistics(array, chunk_rows=3, rows=np.array([0, 1, 2, 3, 7]))
    with pytest.raises(DatasetError, match="no rows"):
        compute_statistics(array, rows=np.array([], np.int64))


def _statistics(**values) -> Statistics:
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    return Statistics(**arrays, count=10)


MOVING = _statistics(mean=[1, 0], std=[2, 4], min=[-3, -8], max=[5, 8], q01=[-1, -6], q99=[3, 2])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean_std", [1, 0.5]), ("min_max", [0.5, 0.25]), ("quantile", [1, 1]), ("identity", [3, 2])],
)
def test_modes(mode, expected):
    result = Normalizer(MOVING, mode).normalize(torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float32))


@given(_matrices, st.sampled_from(MODES))
def test_inverse_undoes_normalize(array, mode):
    normalizer = Normalizer(compute_statistics(array), mode)
    x = torch.from_numpy(array)
    torch.testing.assert_close(normalizer.inverse(normalizer.normalize(x)), x, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
@pytest.mark.parametrize("jitter", [0.0, 1e-7])
def test_a_constant_dimension_is_zero_and_stays_in_proportion(mode, jitter):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(500, 3)).astype(np.float32)
    array[:, 1] = 123.4 + jitter * rng.normal(size=500)
    normalizer = Normalizer(compute_statistics(array), mode)
    result = normalizer.normalize(torch.from_numpy(array))[:, 1]
    assert result.abs().max() < 1e-4
    if jitter == 0:
        assert (result == 0).all()
    moved = normalizer.normalize(torch.tensor([0.0, 124.4, 0.0]))[1]
    assert 0.1 < moved < 2  # one unit, divided by the spread of the others
    assert Normalizer(compute_statistics(array[:, 1:2]), mode).scale == 1


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_a_spread_that_float32_cannot_hold_is_constant(mode):
    normalizer = Normalizer(compute_statistics(np.array([[1e-45], [0.0]], np.float32)), mode)
    assert normalizer.scale == 1
    assert torch.equal(normalizer.normalize(torch.zeros(1, 1)), torch.zeros(1, 1))


def test_small_units_are_not_constant():
    array = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32) * np.float32(1e-5)
    result = Normalizer(compute_statistics(array)).normalize(torch.from_numpy(array))
    torch.testing.assert_close(result.std(dim=0), torch.ones(3), rtol=1e-2, atol=0)


def test_a_rare_event_keeps_its_range_in_quantile_mode():
    array = np.tile(np.linspace(-1, 1, 1000, dtype=np.float32)[:, None], (1, 2))
    array[:, 1] = -1
    array[500:503, 1] = 1
    normalizer = Normalizer(compute_statistics(array), "quantile")
    result = normalizer.normalize(torch.tensor([[0.0, -1.0], [0.0, 1.0]]))[:, 1]
    torch.testing.assert_close(result, torch.tensor([-1.0, 1.0]))


def test_buffers_travel_in_the_state_dict():
    trained = Normalizer(MOVING)
    fresh = Normalizer.identity(2)
    x = torch.tensor([[3.0, 2.0]])
    torch.testing.assert_close(fresh.normalize(x), x)
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh.normalize(x), trained.normalize(x))
    assert set(trained.state_dict()) == {"shift", "scale"}
    with pytest.raises(RuntimeError, match="size mismatch"):
        Normalizer.identity(3).load_state_dict(trained.state_dict())


def test_an_unknown_mode_is_refused():
    with pytest.raises(DatasetError, match="use one of mean_std"):
        Normalizer(MOVING, "zscore")  # pyright: ignore[reportArgumentType]
