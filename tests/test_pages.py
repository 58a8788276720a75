"""Pages as their readers use them: cells under their heads, links, sorting, phones, axes; in a browser too."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluations import SETTINGS, evaluation
from hypothesis import given
from hypothesis import strategies as st
from pages import Page as Read
from pages import check_loads_nothing, click_head, in_browser

from chunkrl.evaluation.evaluation_result import Evaluation, Video
from chunkrl.evaluation.results import ArmResult, compare_arms
from chunkrl.report import charts
from chunkrl.report.comparison import render_report
from chunkrl.report.evaluation import write_page
from chunkrl.report.numbers import compact, signed_points, tick_labels
from chunkrl.report.page import Card, Page, Section
from chunkrl.report.records import Curve
from chunkrl.report.svg import Range, nice_ticks, y_axis
from chunkrl.report.tables import Cell, Table
from chunkrl.statistics import Interval

# 3 of 4 and 1 of 4; successes have 11 steps, failures 10; Wilson's intervals at 95 %. Of a resample of 4 at least 1
# and at most 4 succeed (at most 3 and at least 0), of 8 with rate 1/2 from 1 to 7: 7 successes of 87 steps are 80.5
NUMBERS = [
    {
        "task": "push-v3",
        "successes": "3",
        "episodes": "4",
        "success": "75 %",
        "95 % interval": "30.1 to 95.4 %",
        "median steps to success": "11 [11, 11]",
        "successes per 1,000 steps": "69.8 [24.4, 90.9]",
        "successes per hour": "2,512 [878, 3,273]",
        "simulators lost": "0",
    },
    {
        "task": "reach-v3",
        "successes": "1",
        "episodes": "4",
        "success": "25 %",
        "95 % interval": "4.6 to 69.9 %",
        "median steps to success": "11 [11, 11]",
        "successes per 1,000 steps": "24.4 [0.0, 69.8]",
        "successes per hour": "878 [0.0, 2,512]",
        "simulators lost": "0",
    },
    {
        "task": "all tasks",
        "successes": "4",
        "episodes": "8",
        "success": "50 %",
        "95 % interval": "21.5 to 78.5 %",
        "median steps to success": "11 [11, 11]",
        "successes per 1,000 steps": "47.6 [12.3, 80.5]",
        "successes per hour": "1,714 [444, 2,897]",
        "simulators lost": "0",
    },
]


@pytest.fixture
def found() -> Evaluation:
    return evaluation((1, 0, 1, 1), (0, 0, 1, 0), fps=10.0)


def test_every_number_of_an_evaluation_stands_under_its_head(tmp_path: Path, found: Evaluation) -> None:
    assert Read(write_page(tmp_path, found).read_text()).tables == [NUMBERS]


def test_the_same_in_a_browser(tmp_path: Path, found: Evaluation) -> None:
    assert in_browser(write_page(tmp_path, found)).tables == [NUMBERS]


def test_a_row_with_other_columns_is_no_row() -> None:
    with pytest.raises(ValueError, match="has the columns"):
        Table([{"task": "a", "success": "1"}, {"success": "1", "task": "a"}])


def test_numbers_and_differences_of_a_comparison_stand_under_their_heads(tmp_path: Path) -> None:
    arms = [
        ArmResult(task, arm, np.arange(4) < num, seed=5)
        for task, nums in (("push", (4, 1)), ("pull", (2, 2)))
        for arm, num in zip(("new", "old"), nums, strict=True)
    ]
    path = tmp_path / "r.html"
    render_report(path, title="t", arms=arms, differences=compare_arms(arms, "new", ["old"]))
    numbers, differences = Read(path.read_text()).tables
    told = ("task", "policy", "successes", "episodes", "success", "training seed")
    assert [tuple(row[name] for name in told) for row in numbers] == [
        ("push", "new", "4", "4", "100 %", "5"),
        ("push", "old", "1", "4", "25 %", "5"),
        ("pull", "new", "2", "4", "50 %", "5"),
        ("pull", "old", "2", "4", "50 %", "5"),
        ("mean over tasks", "new", "6", "8", "75 %", ""),
        ("mean over tasks", "old", "3", "8", "37.5 %", ""),
    ]
    told = ("task", "new over", "points", "states", "it alone", "the other alone", "McNemar")
    assert [tuple(row[name] for name in told) for row in differences] == [
        ("push", "old", "+75", "4", "3", "0", "p = 0.25"),
        ("pull", "old", "0", "4", "0", "0", "p = 1"),
        ("mean over tasks", "old", "+37.5", "8", "3", "0", "p = 0.25"),
    ]


def test_a_compared_task_leads_to_its_states(tmp_path: Path) -> None:
    seeds = np.array([[1, 1, 0], [1, 0, 0]], bool)  # two training seeds, three states
    arms = [ArmResult("push", "new", seeds), ArmResult("push", "old", ~seeds)]
    path = tmp_path / "r.html"
    render_report(path, title="t", arms=arms, differences=compare_arms(arms, "new", ["old"]))
    page = Read(path.read_text())
    assert page.targets() == {"#states-0": "div"}
    squares = [attrs["class"] for tag, attrs in page.tags if tag == "rect" and attrs.get("width") == "17.8"]
    assert squares == ["bar good", "bar open", "bar bad", "bar bad", "bar open", "bar good"]
    assert "new, initial state 2 of 3: 1 of 2 training seeds succeed" in path.read_text()


def many_columns() -> str:
    """A page with a table far wider than a telephone."""
    rows = [
        {
            "name": name,
            "share": Cell(f"{share} of it", share),
            **{f"column number {i}": "text" for i in range(20)},
        }
        for name, share in (("nine", 9), ("twelve", 12), ("minus", -3))
    ]
    rows.append({**rows[0], "name": "nothing", "share": Cell("")})
    drawn = Table(rows, [{**rows[0], "name": "sum", "share": Cell("18", 18)}])
    return Page("t", [], [Section("", "", [Card("all", [drawn])])]).render()


@pytest.mark.parametrize(
    ("head", "times", "order"),
    [
        ("share", 1, ["minus", "nine", "twelve", "nothing", "sum"]),  # by number; what says nothing is last
        ("share", 2, ["twelve", "nine", "minus", "nothing", "sum"]),
        ("name", 1, ["minus", "nine", "nothing", "twelve", "sum"]),
    ],
)
def test_a_click_on_a_head_sorts_the_rows(tmp_path: Path, head: str, times: int, order: list[str]) -> None:
    page = tmp_path / "page.html"
    page.write_text(many_columns(), encoding="utf-8")
    opened = in_browser(page, click_head(head, times=times))
    assert [row["name"] for row in opened.tables[0]] == order
    assert len({tuple(row.items()) for row in opened.tables[0]}) == 5  # whole rows moved
    sorted_by = [attrs for tag, attrs in opened.tags if tag == "th" and attrs.get("aria-sort")]
    assert [attrs["aria-sort"] for attrs in sorted_by] == [("", "ascending", "descending")[times]]


def test_what_a_table_is_sorted_by_is_written_beside_it() -> None:
    """Where there is no browser: the numbers that the script reads."""
    check_loads_nothing(many_columns())
    assert re.findall(r'<td class="number" data-order="(.*?)">(.*?)</td>', many_columns()) == [
        ("9.0", "9 of it"),
        ("12.0", "12 of it"),
        ("-3.0", "-3 of it"),
        ("18.0", "18"),
    ]
    page = Read(many_columns())
    assert page.tables[0][-1]["name"] == "sum" and "tfoot" in {tag for tag, _ in page.tags}


def test_wide_tables_scroll_in_their_own_box(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(many_columns(), encoding="utf-8")
    measure = """
    const [all, box] = [document.documentElement, document.querySelector(".scroll")];
    document.body.dataset.page = all.scrollWidth - all.clientWidth;
    document.body.dataset.box = box.scrollWidth - box.clientWidth;
    """
    (body,) = [attrs for tag, attrs in in_browser(page, measure).tags if tag == "body"]
    assert int(body["data-page"] or -1) == 0
    assert int(body["data-box"] or -1) > 300


def test_every_table_has_its_box() -> None:
    """Where there is no browser."""
    found = re.findall(r'<div class="scroll" tabindex="0"[^>]*><table>', many_columns())
    assert len(found) == many_columns().count("<table>") == 1
    assert ".scroll { overflow-x: auto;" in many_columns()


def test_a_task_leads_to_its_states_and_an_episode_to_its_video(tmp_path: Path, found: Evaluation) -> None:
    (tmp_path / "videos").mkdir()
    seeds = [found.episodes["push-v3"][1].seed, found.episodes["reach-v3"][0].seed]
    videos = tuple(
        Video(env, seed, False, f"videos/{i}.mp4", True)
        for i, (env, seed) in enumerate(zip(found.settings.envs, seeds, strict=True))
    )
    for video in videos:
        (tmp_path / video.file).write_bytes(b"video")
    path = write_page(tmp_path, replace(found, videos=videos))
    check_loads_nothing(path.read_text())
    page = Read(path.read_text())
    assert page.targets() == {
        "#states-0": "div",
        "#states-1": "div",
        f"#video-0-{seeds[0]}": "div",
        f"#video-1-{seeds[1]}": "div",
    }
    # each task by its bar and by its row in the table; each video by its square
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert Counter(links) == Counter(
        ["#states-0", "#states-1"] * 2 + [f"#video-{i}-{s}" for i, s in enumerate(seeds)]
    )
    marked = [
        attrs["class"] for tag, attrs in page.tags if tag == "rect" and "has-video" in (attrs["class"] or "")
    ]
    assert marked == ["bar bad has-video"] * 2
    assert Read(write_page(tmp_path, found).read_text()).targets().keys() == {"#states-0", "#states-1"}


def test_a_task_with_a_strange_name_is_still_found(tmp_path: Path) -> None:
    strange = evaluation(
        (1, 0), settings=replace(SETTINGS, envs=('a"> <script>b</script>#&',), max_steps=(5,))
    )
    path = write_page(tmp_path, strange)
    check_loads_nothing(path.read_text())
    assert Read(path.read_text()).targets() == {"#states-0": "div"}


@given(st.floats(-1e12, 1e12), st.floats(-12, 12), st.integers(2, 8), st.booleans())
def test_no_two_ticks_of_an_axis_are_labelled_alike(
    low: float, exponent: float, num: int, whole: bool
) -> None:
    axis = Range(low, low + 10.0**exponent)
    if axis.low == axis.high:
        return
    ticks = nice_ticks(axis, num, whole)
    assert len(set(ticks)) == len(ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)
    if whole:
        assert all(tick == round(tick) for tick in ticks)


@given(st.floats(-1, 1), st.floats(-6, 0), st.integers(2, 8))
def test_no_two_differences_are_labelled_alike(low: float, exponent: float, num: int) -> None:
    ticks = nice_ticks(Range(low, low + 10.0**exponent), num)
    assert len(set(tick_labels(ticks, signed_points))) == len(ticks)


def test_ticks_have_no_more_digits_than_it_takes() -> None:
    assert tick_labels([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert tick_labels([0.9985, 0.999, 0.9995]) == ["0.9985", "0.999", "0.9995"]
    assert tick_labels([1e-4, 1.5e-4, 2e-4]) == ["1.0e-04", "1.5e-04", "2.0e-04"]
    assert tick_labels([-0.001, -0.0005, 0.0], signed_points) == ["−0.10", "−0.05", "0"]
    assert compact(999.7) == "1k"
    assert nice_ticks(Range(0, 1.04), 4, whole=True) == [0, 1]  # of what is counted


def labels(drawn: str) -> list[str]:
    """Of the axes of a chart; the title of an axis is no number."""
    texts = re.findall(r"<text[^>]*class=\"tick\"[^>]*>(.*?)</text>", drawn)
    return [text for text in texts if re.match(r"[−+-]?\d", text)]


def test_axes_of_charts_have_different_labels() -> None:
    curve = Curve("v", np.arange(3) + 1_000_000, np.array([0.99981, 0.99983, 0.99986]))
    across = charts.curve_chart([curve], "s")
    assert len(labels(across)) == len(set(labels(across))) > 5
    upright = y_axis(Range(0.99981, 0.99986), 0, 100, 300)
    assert len(set(labels(upright))) == len(labels(upright)) > 2
    row = charts.Row("a", 0.0002, Interval(0.0001, 0.0004), "", detail="")
    difference = charts.difference_chart([row], Range(-0.0003, 0.0005), "s")
    assert len(set(labels(difference))) == len(labels(difference)) > 2
    assert math.isclose(max(nice_ticks(Range(0, 3e-13), 3)), 3e-13)  # not rounded to nothing
