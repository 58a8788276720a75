"""How an extra is installed into this environment, as chunkrl itself was: from a checkout or a repository."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from chunkrl.errors import ChunkRLError
from chunkrl.files.json_files import parse_json


class MissingExtraError(ChunkRLError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs '{package}', which is not installed: {install_command(extra)}")


def install_command(extra: str, record: str | None = None) -> str:
    """The command that works here, run from the current folder.

    extra: its name, or several joined by commas; "" for chunkrl alone. record: the text of pip's direct_url.json;
    default: of what is installed.
    """
    named = f"[{extra}]" if extra else ""
    found = ((_record() if record is None else record) or "{}").encode()
    origin = parse_json(
        found, dict, "direct_url.json of chunkrl's installation", ChunkRLError, "install it again"
    )
    url = origin.get("url", "")
    if url.startswith("file:"):
        checkout = Path(unquote(urlsplit(url).path))
        if (checkout / "pyproject.toml").is_file():
            return _from_checkout(checkout, named, origin.get("dir_info", {}).get("editable", False))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"pip install 'chunkrl{named} @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    return f"pip install '.{named}' in a checkout of chunkrl"


def _record() -> str | None:
    try:
        return distribution("chunkrl").read_text("direct_url.json")
    except PackageNotFoundError:  # run from sources that nobody installed
        return None


def _from_checkout(checkout: Path, named: str, editable: bool) -> str:
    is_here = checkout == Path.cwd()
    place, constraints = ("." if is_here else checkout), Path("constraints.txt")
    if not is_here:
        constraints = checkout / constraints
    words = [
        "pip install",
        *(["-c", str(constraints)] if constraints.is_file() else []),
        *(["-e"] if editable else []),
    ]
    return f"{' '.join(words)} '{place}{named}'"
