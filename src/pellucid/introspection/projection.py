"""Hidden states as points in the plane or in space."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float32, require_finite
from pellucid.introspection.pca import principal_components

Method = Literal["pca", "umap"]

UMAP_MIN_POINTS = 4  # fewer leave a neighbourhood graph without any structure to show
UMAP_NEIGHBORS = 15  # umap-learn's own default, fewer when there are fewer points
UMAP_MANY_POINTS = 1000  # above, fewer rounds: 465 tokens of 7 layers take 1.5 s instead of 3.5
UMAP_EPOCHS_OF_MANY = 200  # umap-learn's own number for large sets
SEED = 42
# numba's fallback thread pool ends the process when two threads enter it at once.
_ONE_UMAP_AT_A_TIME = threading.Lock()


class TooFewPoints(ValueError):
    """The method needs more points than there are."""

    def __init__(self, points: int, min_points: int, method: Method) -> None:
        super().__init__(f"{method} needs at least {min_points} points, there are {points}")
        self.points = points
        self.min_points = min_points
        self.method = method


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Where the points went."""

    method: Method
    coordinates: Float32  # [..., dimensions], the leading axes as they came
    explained_variance_ratio: Float32 | None  # [dimensions]; None for UMAP, which has none
    num_neighbors: int | None  # UMAP's; None for PCA


def project(
    hidden_states: NDArray[Any], *, method: Method, dimensions: int, seed: int = SEED
) -> Projection:
    """[seq_len, hidden_size] or [num_layers + 1, seq_len, hidden_size] -> [..., dimensions].

    All points are fitted together, so that layers given jointly lie in one space and compare.

    - pca: principal components (Pearson 1901), see ``principal_components``.
    - umap: McInnes et al. 2018, euclidean, seeded and single-threaded, started from the principal
      components (Kobak and Linderman 2021: a random start loses the large-scale order; and a
      spectral start fails on few points). Distances between far groups mean little.

    The first UMAP of a process compiles for about 5 s (numba; umap-learn keeps none of it on disk).
    The same input gives the same output on the same machine and library versions. Raises
    TooFewPoints (umap, below ``UMAP_MIN_POINTS``), ValueError for NaN or infinity.
    """
    if dimensions not in (2, 3):
        raise ValueError(f"dimensions are 2 or 3, not {dimensions}")
    if hidden_states.ndim < 2:
        raise ValueError(f"hidden_states are [..., hidden_size], not {hidden_states.shape}")
    points = hidden_states.reshape(-1, hidden_states.shape[-1])
    shape = (*hidden_states.shape[:-1], dimensions)
    if method == "umap" and len(points) < UMAP_MIN_POINTS:
        raise TooFewPoints(len(points), UMAP_MIN_POINTS, method)
    linear = principal_components(points, dimensions=dimensions)
    if method == "pca":
        return Projection(
            method=method,
            coordinates=linear.coordinates.reshape(shape),
            explained_variance_ratio=linear.explained_variance_ratio,
            num_neighbors=None,
        )
    num_neighbors = min(UMAP_NEIGHBORS, len(points) - 1)
    with _ONE_UMAP_AT_A_TIME:
        coordinates = _umap(points, linear.coordinates, num_neighbors=num_neighbors, seed=seed)
    return Projection(
        method=method,
        coordinates=coordinates.reshape(shape),
        explained_variance_ratio=None,
        num_neighbors=num_neighbors,
    )


def _umap(points: NDArray[Any], start: Float32, *, num_neighbors: int, seed: int) -> Float32:
    if not start.any():  # all points are one; umap would divide by the spread
        return np.zeros_like(start)
    with warnings.catch_warnings():
        # Importing compiles, and the parametric variant announces that it lacks TensorFlow.
        warnings.simplefilter("ignore")
        from umap import UMAP

    jitter = np.random.default_rng(seed).normal(scale=1e-4, size=start.shape)
    with warnings.catch_warnings():
        # Neighbours without a search index only mean that later points cannot be added.
        warnings.filterwarnings("ignore", message="precomputed_knn", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(umap|sklearn|numba)")
        reducer = UMAP(
            n_neighbors=num_neighbors,
            n_components=start.shape[1],
            init=(start / np.abs(start).max() * 10.0 + jitter).astype(np.float32),
            n_epochs=UMAP_EPOCHS_OF_MANY if len(points) > UMAP_MANY_POINTS else None,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(*_neighbors(points, num_neighbors), None),
        )
        coordinates = np.asarray(reducer.fit_transform(points), dtype=np.float32)
    require_finite(coordinates, name="the projection")
    return coordinates


def _neighbors(points: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Exact nearest neighbours and distances, [num_points, count] each, the point itself counted.

    umap-learn would call a Python function for each pair of points below 4096 of them.
    """
    from sklearn.neighbors import NearestNeighbors

    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    search = NearestNeighbors(n_neighbors=count, algorithm="brute", n_jobs=1).fit(centred)
    distances, indices = search.kneighbors(centred)
    return indices, distances.astype(np.float32)
