"""RA-BC of the benchmarks, in closed form on LeRobot's rule."""

from __future__ import annotations

import numpy as np

from benchmarks.rabc import rabc_weights


def test_weights_follow_the_rise_of_progress() -> None:
    progress = np.array([0.0, 0.1, 0.2, 0.1, 0.5, 0.505, 0.51, 0.51])
    episode = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = rabc_weights(progress, episode, horizon=2, kappa=0.05)
    # rises over two steps, held at the episode's last frame: .2, 0, -.1, 0, .01, .005, 0, 0
    delta = np.array([0.2, 0.0, -0.1, 0.0, 0.01, 0.005, 0.0, 0.0])
    ramp = (delta - (delta.mean() - 2 * delta.std())) / (4 * delta.std() + 1e-8)
    expected = np.where(delta < 0, 0, np.where(delta > 0.05, 1, ramp))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
