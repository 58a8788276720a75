"""The project's words: none that docs/glossary.md does not want, docstrings that name the thing, a true glossary."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_where import SOURCES, names

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = [
    *(
        p for p in sorted(ROOT.glob("docs/**/*.md")) if p.name not in ("results.md", "glossary.md")
    ),  # history, and they
    *(ROOT / name for name in ("README.md", "HYPERPARAMETERS.md", "CONTRIBUTING.md")),
]
PARTS = "second|minute|frame|chunk|fold|episode|update|batch|task|round|camera|process|policy call"
COUNTS = "frames?|steps|samples|images|values|actions|episodes|updates|ticks|observations|transitions|bytes"
# a word, what to write in its place
WORDS = {
    r"\bpictures?\b": "image",
    r"\b(un)?film(s|ed|ing)?\b": "video, or record on video",
    r"\bgo(es|ne|ing)? on with\b|\bwent on with\b": "resume, continue",
    r"\banew\b": "again",
    rf"\b({COUNTS}) an? ({PARTS})\b(?! (of|has|is|are|that|which|with|pass|time|at a)\b)": "per",
    r"\bbeside (the |its )?(training|control loop)\b": "alongside",
    r"\bbehind (a|the|its|their) (success|end|first|last|values|phase)\b": "after",
    r"\bone behind the other\b": "one after the other",
}
# an expression in which a word stays, and why. Names are not looked at: those of online.proto (PictureCodec,
# PackedPicture, `picture`) are on the wire, and keys of files are on disks.
ALLOWED = {
    r"\bgroups? of pictures\b": "the codec's own name of what lies between two key frames",
}


def prose(text: str) -> str:
    """In one line, without what is quoted as code."""
    return re.sub(r"[\s#]+", " ", re.sub(r"`[^`\n]*`", "", text))


def without_values(literal: str) -> str:
    """A string's literal without the fields of an f-string; "" for a name or a key, which has no space."""
    text = literal.strip("rbufRBUF").strip("\"'")
    return re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "", text) if re.search(r"\s", text) else ""


def written(source: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of every comment and string; what stands one after the other is one text."""
    line, told, kind = 0, "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type != kind and told:
            yield line, prose(told)
            told = ""
        kind = token.type
        if kind in (tokenize.COMMENT, tokenize.STRING):
            line = line if told else token.start[0]
            told += token.string if kind == tokenize.COMMENT else without_values(token.string)


def of_page(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of every paragraph, with the comments of code."""
    for paragraph in re.finditer(r"(?:[^\n]+\n?)+", text):
        told = re.sub(r"\]\([^)]*\)", "]", paragraph.group())
        yield text.count("\n", 0, paragraph.start()) + 1, prose(told)


def found(texts: Iterator[tuple[int, str]]) -> list[str]:
    """What stands in `texts` that should not, with the replacement."""
    wrong = []
    for line, told in texts:
        text = re.sub("|".join(ALLOWED), "", told, flags=re.IGNORECASE)
        for word, instead in WORDS.items():
            if match := re.search(word, text, re.IGNORECASE):
                wrong.append(f"{line}: {match.group()!r}: write {instead}")
    return wrong


SOURCE_FILES = [p for p in sorted(SOURCES.rglob("*.py")) if p.name != "online_pb2.py"]


def test_sources_say_the_projects_words() -> None:
    wrong = [
        f"{path.relative_to(SOURCES)}:{told}"
        for path in SOURCE_FILES
        for told in found(written(path.read_text(encoding="utf-8")))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_say_the_projects_words(page: Path) -> None:
    assert not (wrong := found(of_page(page.read_text(encoding="utf-8")))), "\n".join(wrong)


def test_docstrings_name_the_thing() -> None:
    wrong = [
        f"{path.relative_to(SOURCES)}:{number}"
        for path in SOURCE_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r'\s*r?"""(Of|As|Those) ', line)
    ]
    assert not wrong, (
        f'a docstring that begins with "Of", "As" or "Those" says nothing without its name: {wrong}'
    )


@pytest.mark.parametrize(
    "told",
    [
        '"""A picture."""',
        "# films",
        'f"{n} frames a second"',
        'say("20 frames "\n    "a second")',
        "# it goes\n# on with",
        '"stands behind the last action"',
    ],
)
def test_a_word_that_is_not_ours_is_found(told: str) -> None:
    assert len(found(written(told + "\n"))) == 1
    assert not found(written('x["picture"]  # of a group of pictures, `film`\n'))


def test_the_glossary_is_true() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    words = re.findall(r"^\| \*\*([^*]+)\*\* \| .+ \| (.+) \|$", text, re.MULTILINE)
    assert len(words) >= 40
    heads = [word for word, _ in words]
    assert heads == sorted(heads, key=str.lower)
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE_FILES}
    for word, owner in words:
        named = re.findall(r"`([\w/]+\.py):([\w.]+)`", owner)
        assert named, f"{word} has no owner"
        for file, symbol in named:
            assert symbol in names(sources[SOURCES / file].body), f"{word}: {file} has no {symbol}"
    known = {
        node.arg if isinstance(node, ast.arg) else node.id
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.arg | ast.Name)
    }
    assert {head for head in heads if "_" in head} <= known
