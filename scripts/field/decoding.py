"""Pictures decoded and shrunk as a script does it: open, draft, convert, resize, one after the other.

This is the loop that image data sets are commonly prepared with, at the settings of ``mmrec.preprocessing.pictures``
(JPEGs drafted at twice the size wanted, LANCZOS with a reducing gap of 3).  It checks, hashes and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def decode_all(paths: Iterable[Path], *, side: int) -> int:
    """Decode pictures and return how many bytes of pixels they make."""
    total = 0
    for path in paths:
        with Image.open(path) as image:
            scale = min(1.0, side / max(image.size))
            width, height = (max(1, round(length * scale)) for length in image.size)
            image.draft(None, (2 * width, 2 * height))
            small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
            total += np.array(small).nbytes
    return total
