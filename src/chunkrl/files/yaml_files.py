"""YAML from files, as JSON with comments: the values that JSON has, and no tags, anchors or dates.

`3e-4` is a number and `no` a text, as YAML 1.2 has them; PyYAML's own rules are those of 1.1, where they are not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from chunkrl.errors import ChunkRLError
from chunkrl.files.json_files import parse_json
from chunkrl.files.regular_files import open_regular

MAX_BYTES = 1 << 20  # of a file that a person wrote

_RESOLVERS = (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Plain values by the core schema of YAML 1.2, each key once, no anchors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Does as PyYAML's; a few anchors can stand for more than memory holds."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"an anchor (*) in line {self.peek_event().start_mark.line + 1}: write it out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Does as PyYAML's; a key that is there twice is an error."""
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} in line {node.start_mark.line + 1} is no text")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} occurs twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def _said(reason: Exception) -> str:
    """What is wrong and where, in one line."""
    if isinstance(reason, yaml.MarkedYAMLError) and (mark := reason.problem_mark) is not None:
        what = ", ".join(part for part in (reason.context, reason.problem) if part)
        return f"{what} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(reason).split())


def read_yaml(path: Path, error: type[ChunkRLError], cure: str) -> dict[str, Any]:
    """What a YAML file holds, which must be keys with values.

    Raises:
        error: the file is missing, no regular file, or not such YAML: names it and what is wrong.
    """
    with open_regular(path, error, cure) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise error(f"{path} is longer than {MAX_BYTES} bytes: {cure}")
    try:
        value = yaml.load(data, _Loader)
        text = json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as reason:
        said = _said(reason)
        raise error(f"{path} is not valid YAML: {said}: {cure}") from reason
    return parse_json(text.encode(), dict, str(path), error, cure)
