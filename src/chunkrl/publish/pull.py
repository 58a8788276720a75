"""`chunkrl pull`: a policy or a data set from the Hub, verified."""

from __future__ import annotations

from pathlib import Path

from chunkrl.data.formats import describe
from chunkrl.integration.download import fetch_repository
from chunkrl.integration.remote import DownloadError
from chunkrl.manifest import MANIFEST_FILE, whole_files
from chunkrl.models.plugin_files import policy_below
from chunkrl.policies.registry import family_in
from chunkrl.progress import Progress
from chunkrl.publish.config import PullCommand


def pull(command: PullCommand, progress: Progress) -> Path:
    """Fetches the repository, compares it with the Hub's checksums and its own manifest, and says what it is.

    Raises:
        DownloadError: no such repository, no space, a failed connection or checksum. CheckpointError, DatasetError:
            what has arrived is no whole policy or data set.
    """
    if not command.repo_id:
        raise DownloadError("name a repository of the Hub: chunkrl pull account/name")
    target = Path(command.output_dir or command.repo_id.partition("/")[2]).expanduser()
    if command.what == "dataset":
        fetch_repository(command.repo_id, command.revision, target, progress, kind="dataset")
        found = describe(target)
        print(
            f"data set of {len(found.episodes)} episodes, {found.num_frames} frames: chunkrl inspect {target}"
        )
        return target
    fetch_repository(command.repo_id, command.revision, target, progress)
    folder = policy_below(target)
    names = whole_files(folder) if (folder / MANIFEST_FILE).is_file() else []
    family = family_in(folder)
    if names or family.is_own(folder):
        print(f"{family.name} policy, as it was written ({len(names or whole_files(folder))} files)")
    else:
        print(f"{family.name} policy that chunkrl did not write: what it holds is said by chunkrl convert")
    print(f'chunkrl.load_policy("{target}") loads it')
    return target
