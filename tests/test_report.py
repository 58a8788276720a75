"""The report's records, results.json, the page (parsed and reconciled with its numbers) and its videos."""

import io
import json
import math
import re
import xml.etree.ElementTree as ET

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, check_loads_nothing

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation import video
from chunkrl.evaluation.results import ALL_TASKS, ArmDifference, ArmResult, compare_arms
from chunkrl.evaluation.results_file import results_json, write_results
from chunkrl.report import charts
from chunkrl.report.comparison import render_report
from chunkrl.report.numbers import compact, shorten, signed_points
from chunkrl.report.records import ClipPair, Curve, EpisodeTrace, Segment
from chunkrl.report.svg import Range, nice_ticks, span
from chunkrl.statistics import Interval, paired_difference, wilson_interval


def success(num_success, num_episodes=20):
    return np.arange(num_episodes) < num_success


@pytest.fixture
def arms():
    steps = np.arange(20) + 31  # successes come first: of k, the median is 30 + (k + 1) / 2
    return [
        ArmResult(task, arm, success(k), seed=3, num_steps=steps, fps=20.0)
        for task, counts in (("push-v3", (8, 15, 18)), ("pick-place-v3", (4, 16, 15)))
        for arm, k in zip(("behaviour_cloning", "success_cloning", "chunk_rl"), counts, strict=True)
    ]


@pytest.fixture
def differences(arms):
    return compare_arms(arms, "chunk_rl", ["behaviour_cloning", "success_cloning"])


class TestComparison:
    def test_one_difference_a_task_and_baseline_then_the_mean(self, arms, differences):
        assert [(d.task, d.baseline, round(d.difference, 9)) for d in differences] == [
            ("push-v3", "behaviour_cloning", 0.5),
            ("push-v3", "success_cloning", 0.15),
            ("pick-place-v3", "behaviour_cloning", 0.55),
            ("pick-place-v3", "success_cloning", -0.05),
            (ALL_TASKS, "behaviour_cloning", 0.525),
            (ALL_TASKS, "success_cloning", 0.05),
        ]
        pair = paired_difference(arms[2].success, arms[0].success)
        assert (differences[0].interval, differences[0].p_value) == (pair.interval, pair.p_value)
        assert (differences[0].num_pairs, differences[0].only_a, differences[0].only_b) == (20, 10, 0)
        over_all = differences[5]  # 3 and 0 states gained on one task, 0 and 1 lost on the other
        assert (over_all.num_pairs, over_all.only_a, over_all.only_b) == (40, 3, 1)
        assert over_all.p_value == (1 + 4) * 2 / 2**4

    def test_one_task_has_no_mean(self, arms):
        assert {d.task for d in compare_arms(arms[:3], "chunk_rl", ["behaviour_cloning"])} == {"push-v3"}

    def test_refuses_what_does_not_fit(self, arms):
        with pytest.raises(ChunkRLError, match="no results"):
            compare_arms([], "a", ["b"])
        with pytest.raises(ChunkRLError, match="two results for arm 'chunk_rl' on task 'push-v3'"):
            compare_arms([*arms, arms[2]], "chunk_rl", ["behaviour_cloning"])
        with pytest.raises(ChunkRLError, match="'shuffled' has no result on task 'push-v3'"):
            compare_arms(arms, "chunk_rl", ["shuffled"])
        with pytest.raises(ChunkRLError, match="same initial states"):
            compare_arms([*arms, ArmResult("push-v3", "x", success(1, 5))], "x", ["chunk_rl"])

    @pytest.mark.parametrize("values", [[], [[[True]]], [0.5], [math.nan]])
    def test_successes_are_booleans(self, values):
        with pytest.raises(ChunkRLError, match=r"arm 'a' on task 't'"):
            ArmResult("t", "a", np.asarray(values))

    def test_steps_fit_successes(self):
        with pytest.raises(ChunkRLError, match="steps of episodes"):
            ArmResult("t", "a", success(1, 3), num_steps=np.ones(4, dtype=int))


class TestResultsJson:
    def test_layout_and_values(self, arms, differences):
        results = results_json(arms, differences)
        assert list(results["tasks"]) == ["push-v3", "pick-place-v3"]
        push = results["tasks"]["push-v3"]
        wilson = wilson_interval(18, 20)
        expected = {
            "success": 0.9,
            "interval": [wilson.low, wilson.high],
            "num_episodes": 20,
            "seed": 3,
            "median_steps_to_success": 39.5,
            "successes_per_1000_steps": 1000 * 18 / 810,
            "successes_per_hour": 20 * 3.6 * 1000 * 18 / 810,
        }
        assert push["arms"]["chunk_rl"].items() >= expected.items()
        low, high = push["arms"]["chunk_rl"]["median_steps_to_success_interval"]
        assert 31 < low < 39.5 < high < 48
        # both solve the same states in the same steps, and the baseline fails on ten states that it alone fails
        speed = push["speed"]["behaviour_cloning"]
        assert speed["steps_where_both"] == {"difference": 0.0, "interval": [0.0, 0.0]}
        assert speed["median_steps"]["difference"] == 39.5 - 34.5
        assert speed["per_1000_steps"]["difference"] == pytest.approx(1000 * 10 / 810)
        assert speed["per_hour"]["interval"] == pytest.approx(
            [72 * x for x in speed["per_1000_steps"]["interval"]]
        )
        assert push["difference"] == pytest.approx({"behaviour_cloning": 0.5, "success_cloning": 0.15})
        for baseline, (low, high) in push["difference_interval"].items():
            assert -1 <= low <= push["difference"][baseline] <= high <= 1
        mean = results["mean_over_tasks"]
        assert mean["difference"] == pytest.approx({"behaviour_cloning": 0.525, "success_cloning": 0.05})
        wilson = wilson_interval(33, 40)
        expected = {
            "success": 33 / 40,
            "interval": [wilson.low, wilson.high],
            "num_episodes": 40,
            "seed": None,
            "median_steps_to_success": 39.0,  # of 31 to 48 and 31 to 45
            "successes_per_1000_steps": 1000 * 33 / 1620,
        }
        assert mean["arms"]["chunk_rl"].items() >= expected.items()
        tests = [
            (push, "behaviour_cloning", 20, 10, 0, 2 / 2**10),
            (mean, "success_cloning", 40, 3, 1, 10 / 2**4),
        ]
        for place, baseline, *numbers in tests:
            assert [place[n][baseline] for n in ("num_pairs", "only_a", "only_b", "p_value")] == numbers

    def test_no_mean_of_tasks_with_other_numbers_of_states(self):
        # nor steps, which are not known here
        uneven = [ArmResult(t, a, success(2, n)) for t, n in (("s", 4), ("t", 8)) for a in ("new", "old")]
        results = results_json(uneven, compare_arms(uneven, "new", ["old"]))
        assert results["mean_over_tasks"]["arms"] == {}
        assert results["mean_over_tasks"]["num_pairs"] == {"old": 12}
        assert results["tasks"]["s"]["arms"]["new"]["successes_per_1000_steps"] is None

    def test_written_whole_and_read_back(self, tmp_path, arms, differences):
        path = tmp_path / "runs" / "demo" / "results.json"
        write_results(path, arms, differences)
        assert json.loads(path.read_text(encoding="utf-8")) == results_json(arms, differences)
        assert [p.name for p in path.parent.iterdir()] == ["results.json"]

    def test_refuses_what_it_cannot_state(self, arms):
        def difference(**changes):
            values = {"task": "push-v3", "arm": "a", "baseline": "b", "difference": 0.1, "num_pairs": 1}
            return ArmDifference(**{**values, "interval": Interval(0, 0.2), **changes})

        with pytest.raises(ChunkRLError, match="one arm's differences"):
            results_json(arms, [difference(), difference(arm="c")])
        with pytest.raises(ChunkRLError, match=r"without results.*elsewhere"):
            results_json(arms, [difference(task="elsewhere")])
        with pytest.raises(ChunkRLError, match="not finite"):
            results_json(arms, [difference(difference=math.nan)])


def render(path, arms, differences, **parts):
    render_report(path, title="A title", arms=arms, differences=differences, **parts)
    return Page(path.read_text(encoding="utf-8"))


def trace(length=6, **changes):
    values = {"task": "push-v3", "title": "episode 4", "success": True, "value": np.linspace(0, 1, length)}
    return EpisodeTrace(**{**values, "advantage": np.linspace(-1, 1, length), **changes})


class TestPage:
    def test_says_the_numbers(self, tmp_path, arms, differences):
        page = render(
            tmp_path / "report.html",
            arms,
            differences,
            facts={"objective": "advantage weights"},
            notes=["One seed only."],
        )
        mean = differences[4]
        low, high = signed_points(mean.interval.low), signed_points(mean.interval.high)
        assert "+52.5 points chunk rl over behaviour cloning" in page.text
        assert (
            f"82.5 % against 30 % success, mean of 2 tasks. 95 % interval {low} to {high}; all above 0."
            in page.text
        )
        assert "18/20 · 90 % [70, 97]" in page.text
        assert "p = 0.002 (10 : 0)" in page.text  # 10 against 0 discordant pairs: 2 / 1024
        assert "p = 0.62 (3 : 1)" in page.text  # over all tasks: 2 (1 + 4) / 2^4
        assert "33/40 · 82.5 %" in page.text
        assert "objective advantage weights" in page.text
        assert "One seed only." in page.text
        head = "median steps to success successes per 1,000 steps successes per hour"
        assert head in page.text and "69.9 to 97.2 % 3 39.5 [36, 43] 22.2 [" in page.text
        assert "Fewer steps and more successes are faster" in page.text
        assert "push-v3 behaviour cloning 0 [0, 0] +5 [" in page.text

    def test_one_task_leads_with_that_task(self, tmp_path, arms):
        page = render(tmp_path / "r.html", arms[:3], compare_arms(arms[:3], "chunk_rl", ["success_cloning"]))
        assert "90 % against 75 % success, push-v3." in page.text

    def test_loads_nothing(self, tmp_path, arms, differences):
        clip = ClipPair("push-v3", "state 3", "cloning", "RL", b"\x00\x01", "video/mp4")
        page = render(tmp_path / "report.html", arms, differences, clips=[clip], traces=[trace()])
        tags = [tag for tag, _ in page.tags]
        assert not {"img", "iframe", "object", "embed"} & set(tags)
        links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "poster", "data")]
        assert [v for v in links if v and not v.startswith("#")] == ["data:,", "data:video/mp4;base64,AAE="]
        assert page.targets().keys() == {"#states-0", "#states-1"}
        check_loads_nothing((tmp_path / "report.html").read_text(encoding="utf-8"))

    def test_text_from_outside_is_escaped(self, tmp_path):
        evil = '<b onclick="x">&\'"'
        arms = [ArmResult(evil, evil, success(3)), ArmResult(evil, "b", success(2))]
        page = render(
            tmp_path / "report.html",
            arms,
            compare_arms(arms, evil, ["b"]),
            curves=[Curve(evil, np.arange(3), np.arange(3), panel=evil, x_label=evil)],
            traces=[trace(task=evil, title=evil, notes=evil, segments=(Segment(0, 3, evil),))],
            clips=[ClipPair(evil, evil, evil, evil, b"", evil)],
            facts={evil: evil},
            notes=[evil],
        )
        assert not any("onclick" in attributes for _, attributes in page.tags)
        assert page.text.count(evil) > 10

    def test_every_chart_is_named_and_well_formed(self, tmp_path, arms, differences):
        curves = [
            Curve("training", [0, 1, 2, 3], [0.1, 0.2, 0.4, 0.7]),
            Curve("held-out", np.arange(4), -np.arange(4)),
        ]
        path = tmp_path / "report.html"
        page = render(path, arms, differences, curves=curves, traces=[trace(), trace(success=False)])
        charts = [attributes for tag, attributes in page.tags if tag == "svg"]
        assert len(charts) == 3 + 3 + 2 + 1 + 2 * 3  # of 3 policies, the states of 2 tasks
        assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in charts)
        for chart in re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), re.DOTALL):
            ET.fromstring(chart)
            assert "nan" not in chart.lower()

    def test_a_failed_write_leaves_the_old_page(self, tmp_path, arms, differences):
        path = tmp_path / "report.html"
        path.write_text("old", encoding="utf-8")
        with pytest.raises(ChunkRLError, match="needs a comparison"):
            render(path, arms, [])
        with pytest.raises(UnicodeEncodeError):
            render(path, arms, differences, notes=["\ud800"])
        assert path.read_text(encoding="utf-8") == "old"


def bar_widths(chart, kind):
    rects = ET.fromstring(chart).iter("rect")
    return [float(r.get("width", "nan")) for r in rects if (r.get("class") or "").startswith(kind)]


class TestPlots:
    def test_bars_are_proportional(self):
        rows = [charts.Row("a", rate, Interval(0, 1), "") for rate in (0.0, 0.25, 1.0)]
        assert bar_widths(charts.bar_chart(rows, "s"), "bar") == [0, charts.WIDTH / 4, charts.WIDTH]

    def test_differences_are_coloured_by_what_the_interval_excludes(self):
        rows = [
            charts.Row("a", 0.1, Interval(*ends), "") for ends in ((0.05, 0.2), (-0.1, 0.2), (-0.3, -0.1))
        ]
        circles = ET.fromstring(charts.difference_chart(rows, Range(-0.5, 0.5), "s")).iter("circle")
        found = [(c.get("class"), c.get("cx")) for c in circles]
        assert [name for name, _ in found] == ["dot good", "dot open", "dot bad"]
        assert float(found[0][1] or "nan") == pytest.approx(8 + 0.6 * (charts.NARROW - 16), abs=0.01)

    def test_a_curve_breaks_where_it_is_not_finite(self):
        curve = Curve("v", np.arange(5), np.array([0, 1, math.nan, 3, math.inf]))
        path = next(
            p
            for p in ET.fromstring(charts.curve_chart([curve], "s")).iter("path")
            if p.get("class") == "line s0"
        )
        assert (path.get("d") or "").count("M") == 2
        assert (path.get("d") or "").count("L") == 1

    def test_a_long_curve_is_drawn_as_means(self):
        # 2,400 alternating 0 and 2 in 240 stretches of ten: a straight line at their mean 1.
        curve = Curve("v", np.arange(2400), np.tile([0.0, 2.0], 1200))
        path = next(
            p
            for p in ET.fromstring(charts.curve_chart([curve], "s")).iter("path")
            if p.get("class") == "line s0"
        )
        heights = {point.split()[1] for point in re.split("[ML]", path.get("d") or "")[1:]}
        assert len(heights) == 1

    @pytest.mark.parametrize("y", [[1.0], [math.nan, math.nan], [0.0, 0.0], [1e-300, 2e-300], [-1e30, 1e30]])
    def test_odd_curves_are_drawn(self, y):
        ET.fromstring(charts.curve_chart([Curve("v", np.arange(len(y)), np.array(y))], "s"))

    def test_advantages_stand_on_their_side_of_zero(self):
        drawn = trace(4, advantage=np.array([1.0, -1.0, 0.0, math.nan]))
        chart = ET.fromstring(charts.trace_chart(drawn, 8, Range(0, 1), Range(-1, 1), "s"))
        bars = {
            p.get("class"): p.get("d") or "" for p in chart.iter("path") if "bars" in (p.get("class") or "")
        }
        ends = {name: [float(v) for v in re.findall(r"[ V]([\d.]+)", d)] for name, d in bars.items()}
        assert list(ends) == ["bars good", "bars bad"]
        zero, top = ends["bars good"]
        assert top < zero == ends["bars bad"][0] < ends["bars bad"][1]
        assert len([r for r in chart.iter("rect") if r.get("class") == "hint"]) == 3

    def test_traces_of_one_task_share_axes(self, tmp_path, arms, differences):
        traces = [trace(5), trace(10, success=False, segments=(Segment(0, 10, "expert"),))]
        render(tmp_path / "r.html", arms, differences, traces=traces)
        widths = re.findall(
            r'width="([\d.]+)"[^>]*class="hint"', (tmp_path / "r.html").read_text(encoding="utf-8")
        )
        assert len(widths) == 15
        assert len(set(widths)) == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"value": np.zeros(3)}, "3 values but 6 advantages"),
            ({"value": np.full(6, math.inf)}, "infinite"),
            ({"value": np.full(6, math.nan)}, "no number"),
            ({"segments": (Segment(2, 9, "expert"),)}, "outside its 6 frames"),
            ({"value": np.zeros((6, 1))}, "shape"),
        ],
    )
    def test_refuses_bad_traces(self, changes, message):
        with pytest.raises(ChunkRLError, match=message):
            trace(**changes)

    def test_refuses_bad_curves(self):
        with pytest.raises(ChunkRLError, match="curve 'v'"):
            Curve("v", np.arange(2), np.arange(3))
        with pytest.raises(ChunkRLError, match="x finite"):
            Curve("v", np.array([math.nan]), np.array([1.0]))

    @given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 8))
    def test_ticks_are_evenly_spaced_inside(self, low, width, num):
        axis = Range(low, low + width)
        ticks = nice_ticks(axis, num)
        assert 1 <= len(ticks) <= num + 1
        steps = np.diff(ticks)
        assert np.allclose(steps, steps[:1].mean() if len(steps) else 0)
        assert all(axis.low - 1e-6 * width <= tick <= axis.high + 1e-6 * width for tick in ticks)

    def test_number_formats(self):
        assert [compact(v) for v in (0, 0.25, -1500, 2e6, 3e9, 1e-4)] == [
            "0",
            "0.25",
            "−1.5k",
            "2M",
            "3e+09",
            "1e-04",
        ]
        assert [signed_points(v) for v in (0.12, -0.0312, 0.0004, -0.0004)] == ["+12", "−3.1", "0", "0"]
        assert [shorten("cloning", n) for n in (7, 6)] == ["cloning", "cloni…"]
        assert span([2.0, 2.0]) == Range(1, 3)
        assert span([0, 1], pad=0.1, include=-1) == Range(-1.2, 1.2)


def solid(length, colour, height=40, width=60):
    return np.full((length, height, width, 3), colour, dtype=np.uint8)


def decode(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream.average_rate


class TestVideo:
    @pytest.mark.parametrize("encoder", video._ENCODERS, ids=lambda e: e[0])
    def test_sides_freeze_and_borders(self, monkeypatch, encoder):
        if encoder[0] not in av.codecs_available:
            pytest.skip(f"this PyAV has no {encoder[0]}")
        monkeypatch.setattr(video, "_ENCODERS", (encoder,))
        left, right = solid(4, (200, 40, 40)), solid(8, (40, 40, 200))
        left[3] = (200, 200, 40)
        data, mime = video.side_by_side(left, right, ("cloning", "RL"), 10, success=(False, True))
        assert mime == encoder[2]
        frames, rate = decode(data)
        assert rate == 10
        assert len(frames) == 8 + 15  # the longer side, then 1.5 s
        height, width = frames[0].shape[:2]
        assert (height % 2, width % 2) == (0, 0)
        centre, quarter = height // 2 + 15, width // 4

        def near(pixel, colour):
            return np.abs(pixel.astype(int) - colour).max() < 40

        assert near(frames[0][centre, quarter], (200, 40, 40))
        assert near(frames[0][centre, 3 * quarter], (40, 40, 200))
        assert near(frames[-1][centre, quarter], (200, 200, 40))  # frozen on its last frame
        edge = height - 3  # inside the bottom border
        assert near(frames[1][edge, quarter], (200, 40, 40))
        assert near(frames[5][edge, quarter], video.FAILURE)
        assert near(frames[5][edge, 3 * quarter], (40, 40, 200))
        assert near(frames[-1][edge, 3 * quarter], video.SUCCESS)

    def test_labels_are_drawn_and_fit(self):
        short, long, none = (video.header(label, 280, False, True) for label in ("cloning", "x" * 200, ""))
        assert (short != none).any()
        assert (long[:, -70:] == none[:, -70:]).all()  # the room for the outcome stays free
        outcomes = [video.header("", 280, True, ok) for ok in (False, True)]
        assert (outcomes[0] != outcomes[1]).any()

    def test_odd_sizes_and_fractional_rates(self):
        frames, rate = decode(
            video.side_by_side(
                solid(2, 90, 301, 301), solid(1, 90, 301, 301), ("a", "b"), 12.5, success=(True, True)
            )[0]
        )
        assert float(rate) == 12.5
        assert frames[0].shape == (330, 608, 3)

    def test_frames_given_are_not_touched(self):
        left = solid(1, 7)
        video.side_by_side(left, left, ("a", "b"), 10, success=(True, False))
        assert (left == 7).all()

    @pytest.mark.parametrize(
        ("left", "right", "fps", "message"),
        [
            (solid(0, 0), solid(1, 0), 10, "left video"),
            (solid(1, 0), solid(1, 0).astype(np.float32), 10, "right video.*float32"),
            (solid(1, 0), solid(1, 0)[0], 10, "right video"),
            (solid(1, 0), solid(1, 0, height=41), 10, "one size"),
            (solid(1, 0), solid(1, 0), 0, "fps"),
        ],
    )
    def test_refuses(self, left, right, fps, message):
        with pytest.raises(ChunkRLError, match=message):
            video.side_by_side(left, right, ("a", "b"), fps, success=(True, True))

    def test_no_encoder_is_said(self, monkeypatch):
        monkeypatch.setattr(video, "_ENCODERS", ())
        with pytest.raises(ChunkRLError, match=r"H\.264.*pip install"):
            video.side_by_side(solid(1, 0), solid(1, 0), ("a", "b"), 10, success=(True, True))
