"""Pages in tests: read strictly, their tables by head, and opened in a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID_TAGS = {"meta", "link", "source", "br", "img"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Page(HTMLParser):
    """A strict reader: every tag closed in order; collects tags, attributes, tables and the text that is shown."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._tables: list[list[list[str]]] = []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)
        if tag == "table":
            self._tables.append([])
        elif tag == "tr":
            self._tables[-1].append([])
        elif tag in ("th", "td"):
            self._tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
        if {"th", "td"} & set(self.open):
            self._tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def tables(self) -> list[list[dict[str, str]]]:
        """Every table's rows, each cell under the head that stands above it."""
        return [[dict(zip(head, row, strict=True)) for row in rows] for head, *rows in self._tables]

    def targets(self) -> dict[str, str]:
        """Address within the page -> the tag it leads to; every link must lead somewhere."""
        named = {attrs["id"]: tag for tag, attrs in self.tags if attrs.get("id")}
        links = [str(attrs["href"]) for tag, attrs in self.tags if tag == "a"]
        return {link: named[link.removeprefix("#")] for link in links}


def check_loads_nothing(markup: str) -> None:
    """It asks for nothing, and the one script that may run is its own."""
    assert not re.search(r"https?://|url\(|@import", re.sub(r"<title>.*?</title>", "", markup))
    assert all(found.startswith(("data:", "#")) for found in re.findall(r'(?:src|href)="(.*?)"', markup))
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", markup, re.DOTALL)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', markup)
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src '{_digest(script)}'") and policy.count("sha256-") == 1


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@functools.cache
def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def in_browser(page: Path, script: str = "") -> Page:
    """The page as a browser has it after it was opened from the disk, and `script` was run in it.

    The page's own policy stays in force; the test's script is allowed beside it by its digest.
    """
    program = _browser()
    if program is None:
        pytest.skip(
            f"no browser here ({', '.join(BROWSERS)}): the same is read by a parser in the test beside this"
        )
    opened = page
    if script:
        policy = "script-src 'sha256-"
        markup = page.read_text(encoding="utf-8")
        assert markup.count(policy) == 1
        markup = markup.replace(policy, f"script-src '{_digest(script)}' 'sha256-")
        opened = page.with_name("opened.html")
        opened.write_text(markup.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    profile = page.parent / "profile"
    call = [
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--dump-dom",
    ]
    done = subprocess.run([*call, opened.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return Page(done.stdout)


def click_head(name: str, table: int = 0, times: int = 1) -> str:
    """A script that clicks the head `name` of a table."""
    find = f'[...document.querySelectorAll("table")[{table}].querySelectorAll("th button")]'
    return f"for (let i = 0; i < {times}; i++) {find}.find(b => b.textContent === {name!r}).click();"
