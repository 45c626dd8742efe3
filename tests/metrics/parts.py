"""Label maps for the tests of scores."""

import numpy as np
from scipy.ndimage import gaussian_filter


def speckled(rng: np.random.Generator, masks: int) -> np.ndarray:
    """Draw label maps of all textures and sizes, many that touch the border, some empty."""
    shape = rng.integers(1, 14, 3)
    noise = np.stack(
        [gaussian_filter(rng.random(shape), rng.choice([0, 1, 2])) for _ in range(masks)]
    )
    low = rng.choice([0.3, 0.8, 0.95], masks)
    cuts = [np.quantile(x, [q, 0.97, 0.985]) for x, q in zip(noise, low, strict=True)]
    return np.stack([np.digitize(x, c) for x, c in zip(noise, cuts, strict=True)]).astype(np.uint8)
