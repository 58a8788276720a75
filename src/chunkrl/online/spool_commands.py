"""What becomes of an actor's spool when nobody acts: it is sent to a learner, or stored as a data set."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

from chunkrl.errors import ChunkRLError
from chunkrl.online.actor_command import ActorCommand
from chunkrl.online.learner_link import LearnerLink
from chunkrl.online.recordings import store_recordings
from chunkrl.online.records import Hello
from chunkrl.online.spool import Spool
from chunkrl.online.streams import STREAM_FILE, read_actor_stream
from chunkrl.signals import handled

DATA_FOLDER = "data"
"""In the run folder: what was recorded offline, as a data set."""


def send_spool(command: ActorCommand, spool_dir: Path, resources: contextlib.ExitStack) -> None:
    """What the spool holds, without acting."""
    stream = stream_file(spool_dir)
    actor_id, spec = read_actor_stream(stream)
    spool = resources.enter_context(Spool(spool_dir))
    print(f"{spool.num_waiting} records of {actor_id} wait in {spool_dir}")
    link = LearnerLink(command.connect, Hello(actor_id, spool.spool_id, spec), spool, take=None)
    resources.callback(link.close)
    say_left(finish_sending(link, command.finish_s), command, spool_dir, link)


def store_spool(spool_dir: Path, run_dir: Path) -> None:
    """What the spool holds, as a data set in the run folder; SIGINT and SIGTERM end it, and the next call goes on."""
    stream_file(spool_dir)
    stopped = threading.Event()
    root = run_dir / DATA_FOLDER
    print(f"storing finished episodes in {root} (Control-C: later)", flush=True)
    with handled(stopped.set):
        stored = store_recordings(spool_dir, root, keep=True, stopped=stopped.is_set)
    if stored.num_episodes:
        print(f"data set: {stored.folder}, {stored.num_episodes} episodes, {stored.num_steps} steps")
    else:
        print("no episode was finished and kept: there is no data set")
    if stored.num_set_aside:
        print(f"{stored.num_set_aside} unfinished or damaged episodes are set aside in {root / 'set_aside'}")
    if not stored.is_whole:
        print(
            f"the rest is stored by: chunkrl actor --output-dir {run_dir} --spool {spool_dir} --export-only"
        )


def finish_sending(link: LearnerLink, timeout_s: float) -> int:
    """Waits for the rest to be sent; SIGINT and SIGTERM end the waiting."""
    stopped = threading.Event()
    if left := link.state().num_unsent:
        print(f"sending {left} records to {link.state().address}, at most {timeout_s:g} s (Control-C: later)")
    with handled(stopped.set):
        return link.finish(timeout_s, stopped)


def say_left(left: int, command: ActorCommand, spool_dir: Path, link: LearnerLink | None) -> None:
    """Tells what is left to be sent, and why sending ended."""
    if not left:
        print("all records are with the learner" if link else "no records")
        return
    print(
        f"{left} records are kept in {spool_dir}; the next start with this spool "
        f"{'without --offline ' if command.offline else ''}sends them, or --send-only does"
    )
    if link and (problem := link.state().problem):
        print(f"sending ended: {problem}", file=sys.stderr)


def stream_file(spool_dir: Path) -> Path:
    """What the spool's records are. Raises ChunkRLError where there is no spool."""
    stream = spool_dir / STREAM_FILE
    if not stream.is_file():
        raise ChunkRLError(f"{spool_dir} is no actor's spool (it lacks {STREAM_FILE}): name it with --spool")
    return stream
