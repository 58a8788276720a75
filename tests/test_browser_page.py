"""`chunkrl label --browser` as a person uses it, in Chromium: cameras in step, keys, phones, two browsers at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs chunkrl[browser]")
pytest.importorskip("uvicorn", reason="needs chunkrl[browser]")
pytest.importorskip("playwright", reason="needs playwright (chunkrl[dev])")

from browser_served import LENGTH, gray, served, write_cameras, write_sets
from chunk_data import open_chunks, random_episodes, write_dataset
from pages import BROWSERS
from playwright.sync_api import sync_playwright
from waiting import until

from chunkrl.data.label_rules import LabelRule
from chunkrl.label.config import LabelCommand
from chunkrl.options import BrowserConfig

LIMIT_MS = 120_000  # far beyond what anything takes: a busy machine is no failure
READY = "body[data-ready=yes]"
BROWSER = BrowserConfig(browser=True)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}): tests/test_browser_server.py asks without one")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], timeout=LIMIT_MS
        )
        yield browser
        browser.close()


@contextmanager
def page_of(chromium: Any, link: str, **settings: Any) -> Iterator[Any]:
    """The page, opened by its link; it loads nothing from elsewhere, and its scripts have no errors."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
    page, faults, asked = context.new_page(), [], []
    page.set_default_timeout(LIMIT_MS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(link)
    page.wait_for_selector(READY, state="attached")
    yield page
    context.close()
    origin = link.split("/?", maxsplit=1)[0]
    assert faults == [] and all(url.startswith((origin, "data:")) for url in asked)


@contextmanager
def two_browsers(chromium: Any, root: Path) -> Iterator[tuple[Any, Any]]:
    """Two pages of one data set that is labelled, which know nothing of each other."""
    with (
        served(LabelCommand(str(root), page=BROWSER)) as link,
        page_of(chromium, link) as one,
        page_of(chromium, link) as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def open_episode(page: Any, number: int) -> None:
    page.evaluate("number => chunkrl.queue.open(number)", number)
    wait_for(page, f"chunkrl.shown.number === {number}")


def settled(page: Any) -> int:
    """Waits until every camera shows the step, and returns it."""
    page.evaluate("chunkrl.player.settled")
    return page.evaluate("chunkrl.player.step")


def brightness(page: Any) -> list[float]:
    """The mean of all pixels of what each camera shows."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#cameras video, #cameras img")].map((shown) => {
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 8;
          const paint = canvas.getContext("2d");
          paint.drawImage(shown, 0, 0, 8, 8);
          const pixels = paint.getImageData(0, 0, 8, 8).data;
          return pixels.filter((_, i) => i % 4 < 3).reduce((a, b) => a + b) / (3 * 64);
        })"""
    )


def shows(page: Any, *brightnesses: int) -> None:
    """Waits until each camera shows that brightness. A search of a video is told as done up to some frames of the
    screen before its picture can be read (1 of 1,500 times on a busy machine)."""
    until(lambda: brightness(page) == pytest.approx(brightnesses, abs=4), seconds=LIMIT_MS / 1000)


def wait_for(page: Any, condition: str) -> None:
    """Until it is true. Playwright's own way evaluates text in the page, whose policy forbids it."""
    page.evaluate(f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }}")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    page.evaluate("chunkrl.edits.last")


def test_all_cameras_show_the_step_that_is_said(chromium: Any, written: Path) -> None:
    """Videos whose episodes share a file, and images: frame for frame."""
    command = LabelCommand(str(written / "video"), others=(str(written / "image"),), page=BROWSER)
    with served(command) as link, page_of(chromium, link) as page:
        for number in (1, 4):
            open_episode(page, number)
            for keys, step in (
                ((), 0),
                (("ArrowRight",), 1),
                (("Shift+ArrowRight", "ArrowLeft"), 10),
                (("End",), LENGTH - 1),
                (("Shift+ArrowLeft",), LENGTH - 11),
                (("Home",), 0),
            ):
                press(page, *keys)
                assert settled(page) == step
                assert page.inner_text("#position").startswith(f"step {step} of 0 to {LENGTH - 1}")
                shows(page, gray(step), gray(step))
            page.select_option("#speed", "4")
            page.keyboard.press("Space")
            wait_for(page, "!chunkrl.player.isPlaying && chunkrl.player.step > 0")
            assert settled(page) == LENGTH - 1  # and not into the episode after it
            shows(page, gray(LENGTH - 1), gray(LENGTH - 1))


def test_keys_label_and_take_back(chromium: Any, written: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(written / "video", root)
    page_settings = replace(BROWSER, run=str(written / "run"))
    with served(LabelCommand(str(root), page=page_settings)) as link, page_of(chromium, link) as page:
        assert page.inner_text("#title") == "data, episode 1"  # the values doubt its failure most
        wait_for(page, "document.querySelectorAll('#charts .value path.cursor').length === 1")
        press(page, "ArrowRight", "ArrowRight", "g", "ArrowRight", "h", "ArrowRight", "ArrowRight", "h")
        shown = page.evaluate("({...chunkrl.shown})")
        assert (shown["subgoals"], shown["human"]) == ([2], [[3, 5]])
        assert page.locator("#marks .subgoal").count() == 1
        press(page, "Shift+S")
        assert "success at step 5" in page.inner_text("#state") and "by hand" in page.inner_text("#state")
        found = open_chunks(root).frame_labels
        assert found.success.tolist() == [True, True, True] and found.human.sum() == 3
        page.keyboard.press("n")
        wait_for(page, "chunkrl.shown.number === 2")
        press(page, "x")
        assert "excluded" in page.inner_text("#state")
        press(page, "u")
        assert "excluded" not in page.inner_text("#state")
        press(page, "Control+z")  # of the episode before: it is shown
        wait_for(page, "chunkrl.shown.number === 1 && chunkrl.shown.success === false")
        press(page, "r")
        assert page.evaluate("chunkrl.shown.success_step") == 5
        page.reload()
        page.wait_for_selector(READY, state="attached")
        wait_for(page, "chunkrl.shown.number === 1 && chunkrl.shown.success_step === 5")
        press(page, "f", "u")  # what this tab did is known after a reload
        assert page.evaluate("chunkrl.shown.success_step") == 5
    assert open_chunks(root).frame_labels.success.tolist() == [True, True, True]


@pytest.mark.slow
def test_every_key_has_its_line_and_its_button(chromium: Any, written: Path) -> None:
    with served(LabelCommand(str(written / "image"), page=BROWSER)) as link, page_of(chromium, link) as page:
        page.keyboard.press("?")
        keys = page.locator("#keys kbd").all_inner_texts()
        assert {"s", "Shift S", "f", "g", "h", "x", "u", "r", "Space", "←", "→", "n", "p"} <= set(keys)
        page.click("#exclude")
        wait_for(page, "chunkrl.shown.excluded")
        assert page.inner_text("#exclude") == "Include"
        page.click("#undo")
        wait_for(page, "!chunkrl.shown.excluded")
        page.check("#advance")
        before = page.evaluate("chunkrl.shown.number")
        page.click("#failure")
        wait_for(page, f"chunkrl.shown.number !== {before}")
        page.click("#undo")
        wait_for(page, f"chunkrl.shown.number === {before}")


@pytest.mark.slow
def test_of_two_browsers_the_second_is_told_and_sees_what_changed(chromium: Any, tmp_path: Path) -> None:
    with two_browsers(chromium, write_dataset(tmp_path / "data", random_episodes(3))) as (one, two):
        open_episode(one, 1)
        open_episode(two, 1)
        press(one, "s")
        press(two, "x")
        assert "changed meanwhile" in two.inner_text("#message")
        assert "success" in two.inner_text("#state") and "excluded" not in two.inner_text("#state")
        press(two, "x")
        assert two.evaluate("chunkrl.shown.excluded && chunkrl.shown.success")


@pytest.mark.slow
def test_undo_leaves_what_another_browser_did_later(chromium: Any, tmp_path: Path) -> None:
    with two_browsers(chromium, write_dataset(tmp_path / "data", random_episodes(3))) as (one, two):
        open_episode(one, 1)
        press(one, "s")
        open_episode(one, 0)
        press(one, "x")
        open_episode(two, 1)
        press(two, "x")
        open_episode(one, 1)  # sees the other's edit, which is on top of its own
        press(one, "u")
        wait_for(one, "chunkrl.shown.number === 0 && !chunkrl.shown.excluded")
        press(one, "u")
        open_episode(two, 1)
        assert two.evaluate("chunkrl.shown.excluded && chunkrl.shown.success")


def test_a_phone_in_the_dark(chromium: Any, written: Path, tmp_path: Path) -> None:
    """Nothing is wider than the screen, buttons are as large as a thumb, and colours are dark."""
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}
    page_settings = replace(BROWSER, run=str(written / "run"))
    root = tmp_path / "data"
    shutil.copytree(written / "video", root)
    with (
        served(LabelCommand(str(root), page=page_settings)) as link,
        page_of(chromium, link, **phone, is_mobile=True) as page,
    ):
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        sizes = page.evaluate(
            "[...document.querySelectorAll('article button')].map(b => b.getBoundingClientRect())"
            ".map(box => [box.width, box.height])"
        )
        assert len(sizes) > 10 and all(width >= 44 and height >= 44 for width, height in sizes)
        shades = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert max(shades) < 60
        assert page.evaluate(
            "document.querySelector('article').getBoundingClientRect().top"
            " < document.querySelector('aside').getBoundingClientRect().top"
        )
        page.tap("#success")
        wait_for(page, "chunkrl.shown.success")


@pytest.mark.slow
def test_a_video_that_cannot_be_shown_says_so_and_the_others_play(chromium: Any, tmp_path: Path) -> None:
    root = write_cameras(tmp_path / "data", "video", num_episodes=2)
    (file,) = (root / "videos" / "observation.images.front").rglob("*.mp4")
    file.write_bytes(file.read_bytes()[:600])
    with served(LabelCommand(str(root), page=BROWSER)) as link, page_of(chromium, link) as page:
        page.wait_for_selector("#cameras .fault")
        told = page.inner_text("#cameras .fault")
        assert "cannot be shown" in told and "observation.images.front" in told
        press(page, "ArrowRight")
        assert settled(page) == 1
        shows(page, gray(1))  # the other camera goes on
        press(page, "f")
        assert page.evaluate("chunkrl.shown.success") is False


@pytest.mark.slow
def test_many_episodes_are_listed_as_they_are_seen(chromium: Any, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(300, lengths=(2, 4)))
    settings = replace(BROWSER, order="number")
    with served(LabelCommand(str(root), page=settings)) as link, page_of(chromium, link) as page:
        wait_for(page, "document.querySelectorAll('#queue .row').length > 5")
        assert page.locator("#queue .row").count() < 60
        assert page.evaluate("chunkrl.queue.known.size") <= 100
        page.evaluate("chunkrl.queue.box.scrollTop = 1e6")
        page.get_by_text("data 299", exact=True).click()
        wait_for(page, "chunkrl.shown.number === 299")
        wait_for(
            page, "document.querySelectorAll('#charts .state svg').length === 1"
        )  # no cameras: its curves
        press(page, "p")
        wait_for(page, "chunkrl.shown.number === 298")


@pytest.mark.slow
def test_blank_labels_begin_empty(chromium: Any, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(2))
    command = LabelCommand(str(root), page=BROWSER, blank=True)
    with served(command) as link, page_of(chromium, link) as page:
        assert "no label" in page.inner_text("#state")
        press(page, "s")
        assert "success" in page.inner_text("#state")
    labels = LabelRule(labels="labels/by_hand.parquet")
    assert open_chunks(root, labels=labels).table.num_episodes == 1
