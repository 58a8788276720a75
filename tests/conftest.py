"""Every test reads data sets through a cache of its own session, with one thread, and ends."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from started import end_all
from waiting import at_most

# What an example takes says how busy the machine is.
hypothesis.settings.register_profile("chunkrl", deadline=None)
hypothesis.settings.load_profile("chunkrl")

LIMIT_S = 600.0
SLOW_LIMIT_S = 7200.0


@pytest.fixture(autouse=True, scope="session")
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup: what tests start is told nevertheless
        signal.signal(signal.SIGHUP, lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHUNKRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        # What was written survives a killed process without it; no test cuts the power, and waiting for the disk is a
        # tenth of the time of tests that write data sets.
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture(autouse=True)
def _ends(request: pytest.FixtureRequest) -> Iterator[None]:
    fast = not any(request.node.get_closest_marker(mark) for mark in ("slow", "gpu", "lerobot", "libero"))
    with at_most(LIMIT_S if fast else SLOW_LIMIT_S):
        yield
