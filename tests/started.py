"""Processes that a test has started: `conftest.py` ends those that it leaves, however it ends."""

import socket
import subprocess

STARTED: list[subprocess.Popen] = []


def end_all() -> None:
    """Kills them."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def free_address() -> str:
    """An address of this machine at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"
