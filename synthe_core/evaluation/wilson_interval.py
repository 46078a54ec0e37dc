"""The interval of a share that was counted."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


def wilson_interval(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Between which two values a share lies of which `hits` of `count` independent draws were seen; 95% by default.

        (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n),   p = hits / n

    (0, 1) without draws. Source: Wilson 1927.
    """
    if not count:
        return 0.0, 1.0
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return max(0.0, middle - reach), min(1.0, middle + reach)
