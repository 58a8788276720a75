"""Size and time of lossless codecs for an actor's images.

python -m benchmarks.picture_codecs      # seconds; prints Markdown
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable

import numpy as np
from isal import isal_zlib
from PIL import Image

from chunkrl.envs.metaworld import ACTION_DIM, CAMERA, MetaWorldEnv
from chunkrl.online.link.images import pack

SIZE, NUM_FRAMES, NOISE = 224, 12, 2.5


def frames() -> list[np.ndarray]:
    """Of push-v3 under random actions, uint8 [SIZE, SIZE, 3] each."""
    rng = np.random.default_rng(0)
    env = MetaWorldEnv("push-v3", camera_size=SIZE)
    env.reset(3)
    drawn = [env.step(rng.uniform(-1, 1, ACTION_DIM)).images[CAMERA] for _ in range(NUM_FRAMES)]
    env.close()
    return drawn


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As a camera would give it."""
    return np.clip(np.rint(picture + rng.normal(0, NOISE, picture.shape)), 0, 255).astype(np.uint8)


def _differences(picture: np.ndarray) -> bytes:
    result = picture.copy()
    result[:, 1:] -= picture[:, :-1]
    return result.tobytes()


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", compress_level=1)
    return file.getvalue()


CODECS: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG, level 1 (Pillow)": _png,
    "zlib level 1 of differences": lambda picture: zlib.compress(_differences(picture), 1),
    "isal level 1, no differences": lambda picture: isal_zlib.compress(picture.tobytes(), 1),
    "**isal level 1 of differences**": pack,
}


def measure(codec: Callable[[np.ndarray], bytes], pictures: list[np.ndarray]) -> str:
    """Mean size of an image and its milliseconds: the shortest, as what else the machine does adds to the others."""
    times, sizes = [], []
    for picture in pictures:
        began = time.perf_counter()
        sizes.append(len(codec(picture)))
        times.append(time.perf_counter() - began)
    return f"{100 * np.mean(sizes) / pictures[0].nbytes:.2g} %, {1e3 * min(times):.2f}"


def main() -> None:
    """Prints the table."""
    rendered, rng = frames(), np.random.default_rng(1)
    with_noise = [noisy(picture, rng) for picture in rendered]
    print("| | rendered: size, ms | with noise: size, ms |\n|---|---|---|")
    for name, codec in CODECS.items():
        print(f"| {name} | {measure(codec, rendered)} | {measure(codec, with_noise)} |")


if __name__ == "__main__":
    main()
