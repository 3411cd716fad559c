"""mmrec: train a recommender on posts with a caption and a picture, score new posts, export vectors for search.

>>> from mmrec import Post, Recommender  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrec.inference.posts import Post
    from mmrec.inference.recommender import Recommender

__all__ = ["Post", "Recommender", "__version__"]
__version__ = "0.1.0"

_HOMES = {"Post": "mmrec.inference.posts", "Recommender": "mmrec.inference.recommender"}


def __getattr__(name: str) -> object:
    """Import the heavy names when they are first asked for, so that ``import mmrec`` stays light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmrec' has no attribute {name!r}")
