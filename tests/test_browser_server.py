"""`chunkrl label --browser` without a browser: who is let in, what is answered, what is said of bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="needs chunkrl[browser]")
pytest.importorskip("uvicorn", reason="needs chunkrl[browser]")

from browser_served import LENGTH, Browser, served, write_cameras, write_sets
from chunk_data import open_chunks, random_episodes, write_dataset
from started import STARTED

from chunkrl.browser import command as commands
from chunkrl.browser.values import Values, order_key
from chunkrl.browser.workbench import FixedLabels, ShownSet, Workbench
from chunkrl.cli import main
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.label.base import base_labels
from chunkrl.label.config import LabelCommand, ReturnRule
from chunkrl.label.marks import EpisodeMarks
from chunkrl.options import BrowserConfig
from chunkrl.progress import silent

BROWSER = BrowserConfig(browser=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def link(written: Path) -> Iterator[str]:
    page = replace(BROWSER, run=str(written / "run"))
    with served(LabelCommand(str(written / "video"), others=(str(written / "image"),), page=page)) as found:
        yield found


@pytest.fixture
def browser(link: str) -> Browser:
    return Browser(link).enter()


# ---- who is let in


@pytest.mark.parametrize("path", ["/", "/api/page", "/static/page.js", "/video/of/0", "/?token=" + 32 * "a"])
def test_without_the_links_token_there_is_nothing(link: str, path: str) -> None:
    for cookie in ({}, {"cookie": f"chunkrl_{link.split(':')[2].split('/', maxsplit=1)[0]}=guess"}):
        status, headers, content = Browser(link, cookie).ask("GET", path)
        assert status == 403 and b"opens by its link alone" in content
        assert "set-cookie" not in headers and headers["content-security-policy"].startswith(
            "default-src 'none'"
        )


def test_the_link_leads_to_a_page_that_loads_nothing_from_elsewhere(browser: Browser) -> None:
    status, headers, content = browser.ask("GET", "/")
    assert status == 200 and headers["referrer-policy"] == "no-referrer"  # the token stays here
    names = re.findall(r'(?:src|href)="([^"]*)"', content.decode())
    assert all(name.startswith(("/static/", "data:,")) for name in names)
    for name in (*names, *(f"/static/{part}.js" for part in ("player", "queue", "edits"))):
        if name.startswith("/"):
            status, _, text = browser.ask("GET", name)
            assert status == 200 and not re.search(rb"https?://(?!www.w3.org/2000/svg)", text)
    assert browser.ask("GET", "/static/../server.py")[0] == 404


def test_another_hosts_name_is_refused(browser: Browser) -> None:
    status, _, content = browser.ask("GET", "/api/page", host="evil.example")
    assert status == 403 and b"evil.example" in content


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 403),
        ({"content-type": "application/json", "origin": "http://evil.example"}, 403),
        ({"content-type": "text/plain", "origin": ""}, 415),
    ],
)
def test_edits_from_other_pages_are_refused(browser: Browser, headers: dict[str, str], status: int) -> None:
    if headers.get("origin") == "":
        headers = headers | {"origin": browser.link.split("/?")[0]}
    body = json.dumps({"version": 0, "kind": "failure"}).encode()
    assert browser.ask("POST", "/api/episode/0/edit", body, **headers)[0] == status
    assert browser.get("/api/episode/0")["version"] == 0


# ---- what is shown


def test_what_the_page_is_told(browser: Browser, written: Path) -> None:
    page = browser.get("/api/page")
    assert page["editable"] and page["has_values"] and page["num_episodes"] == 5
    assert [one["name"] for one in page["sets"]] == ["video", "image"]
    assert any("has no values of it" in note for note in page["sets"][1]["notes"])
    queue = browser.get("/api/queue?order=doubt")["numbers"]
    # failure with V of .8, then successes with .7 and .9; the other data set has no values
    assert queue == [1, 2, 0, 3, 4]
    assert browser.get("/api/queue?order=number")["numbers"] == [0, 1, 2, 3, 4]
    rows = browser.get("/api/rows?numbers=1,4")
    assert [(row["set"], row["episode"], row["success"]) for row in rows] == [
        ("video", 1, False),
        ("image", 1, False),
    ]
    assert rows[0]["doubt"] == pytest.approx(0.8) and rows[1]["doubt"] is None


def test_an_episode_of_a_shared_file_begins_where_it_stands_there(browser: Browser) -> None:
    one = browser.get("/api/episode/1")
    assert [camera["from"] for camera in one["cameras"]] == [LENGTH / 10] * 2
    assert one["cameras"][0]["video"] != one["cameras"][1]["video"]
    assert "video" not in browser.get("/api/episode/3")["cameras"][0]


def test_videos_are_sent_in_parts(browser: Browser) -> None:
    place = browser.get("/api/episode/0")["cameras"][0]["video"]
    whole = browser.ask("GET", place)[2]
    status, headers, part = browser.ask("GET", place, range="bytes=100-199")
    assert (status, part) == (206, whole[100:200])
    assert headers["content-range"] == f"bytes 100-199/{len(whole)}"


def test_curves_are_the_reports(browser: Browser) -> None:
    charts = browser.get("/api/episode/1/curves")["charts"]
    assert [chart["kind"] for chart in charts] == ["value", "state", "action"]
    assert "frame 3: V" in charts[0]["svg"] and charts[0]["first"] < charts[0]["last"]
    assert [chart["kind"] for chart in browser.get("/api/episode/3/curves")["charts"]] == ["state", "action"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/api/episode/5",
            "/api/episode/5/curves",
            "/frame/KEY/3/2/0",
            f"/frame/KEY/3/0/{LENGTH}",
            "/video/KEY/9",
        ),
        *("/frame/3/0/0", "/video/0", "/frame/other/3/0/0", "/video/other/0"),
        *("/api/rows", "/api/rows?numbers=-1", "/api/queue?order=size", "/static/secret", "/nothing"),
    ],
)
def test_what_is_not_there_is_said(browser: Browser, path: str) -> None:
    key = browser.get("/api/page")["key"]
    assert browser.ask("GET", f"/frame/{key}/3/0/0")[0] == 200
    assert browser.ask("GET", path.replace("KEY", key))[0] == 404


def test_images_that_a_browser_keeps_are_of_these_data(written: Path, tmp_path: Path) -> None:
    """Another page at the same address, within the hour that they are kept, has other places for its own."""
    image, video = (shutil.copytree(written / name, tmp_path / name) for name in ("image", "video"))
    places = list[str]()
    for is_new, (first, *others) in (
        (False, [image]),
        (False, [image, video]),
        (False, [video]),
        (True, [image]),
    ):
        if is_new:  # the same rows, recorded again
            file = next((image / "data").rglob("*.parquet"))
            pq.write_table(pq.read_table(file), file, compression="gzip")
        with served(LabelCommand(str(first), others=tuple(map(str, others)), page=BROWSER)) as link:
            browser = Browser(link).enter()
            places.append(browser.get("/api/episode/0")["cameras"][0]["frames"])
            status, headers, _ = browser.ask("GET", f"{places[-1]}0")
            assert status == 200 and "max-age" in headers["cache-control"]
    assert len(set(places)) == len(places)


# ---- edits


def test_of_two_browsers_the_second_is_told(browser: Browser, link: str) -> None:
    other = Browser(link).enter()
    first = browser.post("/api/episode/3/edit", version=0, by="one", kind="failure")
    assert (first["version"], first["success"], first["can_undo"]) == (1, False, True)
    told = other.post("/api/episode/3/edit", 409, version=0, by="two", kind="exclude")
    assert "changed meanwhile" in told["error"] and "failure" in told["error"]
    assert told["episode"]["version"] == 1 and not told["episode"]["excluded"]
    again = other.post("/api/episode/3/edit", version=1, by="two", kind="exclude")
    assert again["excluded"] and again["success"] is False  # nothing is lost
    assert browser.post("/api/episode/3/undo", version=2)["excluded"] is False
    assert browser.post("/api/episode/3/redo", version=3)["excluded"] is True


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"kind": "failure"}, 400, "which version"),
        ({"version": 0, "kind": "win"}, 400, "kind"),
        ({"version": 0, "kind": "success", "step": LENGTH}, 400, "steps 0 to 19"),
        ({"version": 0, "kind": "failure", "colour": "red"}, 400, "colour"),
        ({"version": 0, "kind": "failure", "by": "x" * 5000}, 400, "at most"),
        ({"version": True, "kind": "failure"}, 400, "which version"),
    ],
)
def test_a_bad_edit_changes_nothing(browser: Browser, body: dict[str, Any], status: int, told: str) -> None:
    assert told in browser.post("/api/episode/4/edit", status, **body)["error"]
    assert browser.get("/api/episode/4")["version"] == 0


def test_an_edit_of_nothing_is_not_there(browser: Browser) -> None:
    assert "9" in browser.post("/api/episode/9/edit", 404, version=0, kind="failure")["error"]
    assert "nothing is called" in browser.post("/api/episode/4/drop", 404, version=0)["error"]
    assert "nothing to undo" in browser.post("/api/episode/4/undo", 400, version=0)["error"]


def test_inspection_takes_no_edits(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benches: list[Workbench] = []
    monkeypatch.setattr(commands, "serve", lambda bench, page: benches.append(bench))
    commands.inspect(InspectCommand(str(written / "image"), page=BROWSER), silent)
    (bench,) = benches
    assert not bench.is_editable and bench.page()["sets"][0]["file"] == ""
    from chunkrl.browser.server import PageServer

    server = PageServer(bench, "127.0.0.1:0")
    server.start()
    try:
        reader = Browser(server.link).enter()
        assert reader.get("/api/page")["editable"] is False
        origin = {"origin": server.link.split("/?")[0], "content-type": "application/json"}
        assert reader.ask("POST", "/api/episode/0/edit", b'{"version": 0}', **origin)[0] == 404
    finally:
        server.stop()


# ---- bad data


@pytest.mark.parametrize("kind", ["video", "image"])
def test_images_that_cannot_be_decoded_are_said_and_the_others_shown(tmp_path: Path, kind: str) -> None:
    root = write_cameras(tmp_path / "data", kind, num_episodes=2)
    front = "observation.images.front"
    if kind == "video":
        (file,) = (root / "videos" / front).rglob("*.mp4")
        content = bytearray(file.read_bytes())
        begin = content.index(b"mdat") + 4
        content[begin : begin + (len(content) - begin) // 4] = bytes((len(content) - begin) // 4)
    else:
        (file,) = (root / "data").rglob("*.parquet")
        content = bytearray(file.read_bytes())
        begin = content.index(b"\x89PNG") + 60
        content[begin] ^= 0xFF
    file.write_bytes(content)
    table = FrameTable.open(root, progress=silent, settings=FrameSettings(cache=False))
    bench = Workbench(
        [ShownSet(table, FixedLabels(table, base_labels(table, LabelRule())), None, "data")], "number"
    )
    with pytest.raises(DatasetError, match=r"episode 0.*observation.images.front"):
        for step in range(LENGTH):
            bench.frame(0, 0, step)
    for number, camera in ((0, 1), (1, 0), (1, 1)):
        if (number, camera) != (1, 0) or kind == "image":
            assert bench.frame(number, camera, LENGTH - 1).startswith(b"\xff\xd8")


def test_values_of_another_data_set_are_refused(written: Path) -> None:
    page = replace(BROWSER, run=str(written / "run"))
    with pytest.raises(DatasetError, match=r"values are of other data \(.*video\).*leave --run out"):
        commands.inspect(InspectCommand(str(written / "image"), page=page), silent)
    with pytest.raises(DatasetError, match=r"holds no values.parquet"):
        commands.inspect(InspectCommand(str(written / "image"), page=replace(page, run=str(written))), silent)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"export": "new"}, "--export comes when episodes are labelled"),
        ({"returns": ReturnRule(n_step=2, values="v.parquet")}, "--n-step is of labels by rule"),
        ({"output": "x.parquet", "others": ("b",)}, "names one file"),
        ({"dataset": ""}, "name a data set"),
        ({"page": BrowserConfig(), "others": ("b",)}, "several data sets at once go with --browser"),
        ({"page": BrowserConfig(run="r")}, "--run goes with --browser"),
        ({"page": BrowserConfig(), "blank": True}, "--blank goes with --browser"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    given = {"dataset": str(tmp_path), "page": BROWSER} | change
    with pytest.raises(ChunkRLError, match=told):
        commands.label(LabelCommand(**given), silent)


def test_one_data_set_twice_and_a_folder_that_cannot_be_written(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is named twice"):
        commands.label(
            LabelCommand(str(written / "image"), others=(str(written / "image"),), page=BROWSER), silent
        )
    root = write_dataset(tmp_path / "data", random_episodes(2))
    (root / "labels").write_text("in the way")
    with pytest.raises(DatasetError, match=r"cannot write in .*--output FILE"):
        commands.label(LabelCommand(str(root), page=BROWSER), silent)


# ---- what comes first


def test_a_label_is_doubted_by_what_values_say_at_the_outcome() -> None:
    values = Values(np.array([0, 1, 4, 2.0]), np.zeros(4), np.array([True, True, True, False]), 0.0, 4.0)
    rows = slice(0, 3)
    assert values.doubt(EpisodeMarks(success=True, success_step=1), rows) == pytest.approx(0.75)
    assert values.doubt(EpisodeMarks(success=False), rows) == 1.0
    assert values.doubt(EpisodeMarks(success=True, success_step=2), rows) == 0.0
    assert values.doubt(EpisodeMarks(), rows) is None
    assert values.doubt(EpisodeMarks(success=False), slice(0, 4)) is None  # the run had not this frame


def test_no_label_first_then_doubt_then_what_a_person_said() -> None:
    failure = EpisodeMarks(success=False)
    shown = [
        (EpisodeMarks(success=False, excluded=True), 1.0),
        (replace(failure, by_hand=True), 1.0),
        (failure, None),
        (failure, 0.2),
        (failure, 0.9),
        (EpisodeMarks(), None),
    ]
    ranked = sorted(range(6), key=lambda number: order_key("doubt", *shown[number]))
    assert ranked == [5, 4, 3, 2, 1, 0]
    assert sorted(range(6), key=lambda number: order_key("unlabelled", *shown[number])) == [5, 0, 1, 2, 3, 4]


# ---- the command


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(4))
    call = [sys.executable, "-m", "chunkrl", "label", str(root), "--browser", "--no-open"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    STARTED.append(process)
    assert process.stdout is not None
    found = next(line for line in iter(process.stdout.readline, "") if line.startswith("open "))
    browser = Browser(found.removeprefix("open ").strip()).enter()
    browser.post("/api/episode/1/edit", version=0, kind="success")
    browser.post("/api/episode/3/edit", version=0, kind="exclude")
    process.kill()
    process.wait()
    chunks = open_chunks(root)
    assert chunks.table.episode_ids.tolist() == [0, 1, 2] and chunks.frame_labels.success.all()
    with served(LabelCommand(str(root), page=BROWSER)) as again:
        assert Browser(again).enter().get("/api/episode/1")["can_undo"]


def test_help_names_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("label", "inspect"):
        main([name, "--help"])
        assert "--browser" in capsys.readouterr().out
