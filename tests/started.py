"""Processes that a test has started: `conftest.py` ends those that it leaves, however it ends."""

import subprocess

STARTED: list[subprocess.Popen] = []
