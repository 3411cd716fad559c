"""t-SNE by scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmrec.errors import MissingExtraError

try:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits
except ImportError as error:
    raise MissingExtraError("sklearn", "studio") from error

_PERPLEXITY = 30.0
_START = 1e-4


def embed(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lay points out in two dimensions so that neighbours stay neighbours (van der Maaten and Hinton, 2008).

    It starts from the first two coordinates, which keeps the large picture (Kobak and Berens, 2019), and one thread makes
    the sums, so that their order and with it the result is always the same.

    Args:
        points: shape (points, components), principal components, largest first.

    Returns:
        Shape (points, 2).
    """
    start = points[:, :2] / max(float(points[:, 0].std()), 1e-12) * _START
    model = TSNE(perplexity=min(_PERPLEXITY, (len(points) - 1) / 3), init=start, random_state=0, n_jobs=1)
    with threadpool_limits(1):
        return np.asarray(model.fit_transform(points), dtype=np.float64)
