from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pellucid.introspection import pca
from pellucid.introspection.pca import principal_components
from pellucid.introspection.projection import UMAP_MIN_POINTS, TooFewPoints, project


def points_of(seed: int, num_points: int, width: int, *, rank: int | None = None) -> NDArray:
    rng = np.random.default_rng(seed)
    rank = min(num_points, width) if rank is None else rank
    mixed = rng.standard_normal((num_points, rank)) @ rng.standard_normal((rank, width))
    return (mixed + rng.standard_normal(width) * 10).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)], ids=["tall", "wide"])
def test_pca_equals_a_plain_svd(shape: tuple[int, int]) -> None:
    points = points_of(0, *shape)
    centred = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(3), np.abs(right[:3]).argmax(axis=1)])
    found = principal_components(points, dimensions=3)

    assert found.coordinates == pytest.approx(left[:, :3] * values[:3] * signs, abs=1e-4)
    assert found.explained_variance_ratio == pytest.approx(
        values[:3] ** 2 / (values**2).sum(), abs=1e-6
    )


def test_few_components_of_a_large_matrix_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = points_of(1, 60, 50)
    whole = principal_components(points, dimensions=3)
    monkeypatch.setattr(pca, "_MAX_DENSE", 10)
    monkeypatch.setattr(pca, "_dense", None)  # must not be called
    few = principal_components(points, dimensions=3)
    assert few.coordinates == pytest.approx(whole.coordinates, abs=1e-4)
    assert few.explained_variance_ratio == pytest.approx(whole.explained_variance_ratio, abs=1e-6)


def test_the_largest_loading_is_positive() -> None:
    points = np.array([[0, 0], [-1, -2], [-2, -4], [-3, -6]], dtype=np.float32)
    coordinates = principal_components(points, dimensions=2).coordinates
    # The direction is (1, 2) / sqrt 5, never its opposite: larger values lie further right.
    assert coordinates[:, 0] == pytest.approx(np.sqrt(5) * np.array([1.5, 0.5, -0.5, -1.5]))
    assert (coordinates[:, 1] == 0).all()


@given(
    st.integers(0, 2**20),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([2, 3]),
    st.sampled_from([1e-20, 1.0, 1e18]),
)
def test_pca_properties(
    seed: int, num_points: int, width: int, dimensions: int, scale: float
) -> None:
    points = (points_of(seed, num_points, width) * scale).astype(np.float32)
    found = principal_components(points, dimensions=dimensions)
    assert found.coordinates.shape == (num_points, dimensions)
    assert np.isfinite(found.coordinates).all()
    ratios = found.explained_variance_ratio
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert (np.diff(ratios) <= 1e-6).all()
    assert ratios.sum() <= 1 + 1e-5
    # A projection never pulls points apart.
    spread = np.abs(points.astype(np.float64)).max() * 1e-5
    for i in range(num_points):
        far = np.linalg.norm(points.astype(np.float64) - points[i], axis=1)
        near = np.linalg.norm(found.coordinates.astype(np.float64) - found.coordinates[i], axis=1)
        assert (near <= far + spread).all()


@pytest.mark.parametrize("num_points", [1, 2, 5, 11, 49])
def test_points_that_are_all_the_same_go_to_zero(num_points: int) -> None:
    # The mean of equal numbers is not always that number: 49 times 0.1 is one that is not.
    points = np.tile(np.array([0.1, 0.7, -12.3, 1e4 / 3]), (num_points, 1))
    found = principal_components(points, dimensions=2)
    assert not found.coordinates.any()
    assert not found.explained_variance_ratio.any()


def test_two_tokens_have_one_direction_and_a_column_of_zeros() -> None:
    found = project(points_of(3, 2, 9), method="pca", dimensions=2)
    assert found.coordinates[:, 0].any()
    assert not found.coordinates[:, 1].any()
    assert found.explained_variance_ratio == pytest.approx([1, 0])


def test_layers_given_jointly_lie_in_one_space() -> None:
    states = points_of(4, 3 * 5, 8).reshape(3, 5, 8)
    joint = project(states, method="pca", dimensions=2)
    flat = project(states.reshape(15, 8), method="pca", dimensions=2)
    assert joint.coordinates.shape == (3, 5, 2)
    assert (joint.coordinates.reshape(15, 2) == flat.coordinates).all()


def test_order_of_tokens_does_not_change_where_they_lie() -> None:
    points = points_of(5, 12, 6)
    order = np.random.default_rng(0).permutation(12)
    straight = project(points, method="pca", dimensions=3).coordinates
    shuffled = project(points[order], method="pca", dimensions=3).coordinates
    assert shuffled == pytest.approx(straight[order], abs=1e-4)


def test_umap_is_the_same_every_time_and_separates_groups() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.eye(2, 16) * 30, 20, axis=0)
    points = (groups + rng.standard_normal((40, 16))).astype(np.float32)
    first = project(points, method="umap", dimensions=2)
    second = project(points, method="umap", dimensions=2)
    assert (first.coordinates == second.coordinates).all()
    assert first.num_neighbors == 15
    assert first.explained_variance_ratio is None
    left, right = first.coordinates[:20], first.coordinates[20:]
    between = np.linalg.norm(left.mean(axis=0) - right.mean(axis=0))
    within = max(left.std(axis=0).max(), right.std(axis=0).max())
    assert between > 2 * within


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("num_points", [UMAP_MIN_POINTS, 5, 6])
@pytest.mark.parametrize("kind", ["random", "line", "two values", "constant"])
def test_umap_of_few_or_degenerate_points_is_finite(
    kind: str, num_points: int, dimensions: int
) -> None:
    points = {
        "random": points_of(7, num_points, 10),
        "line": np.outer(np.arange(num_points), np.ones(10)),
        "two values": np.outer(np.arange(num_points) % 2, np.ones(10)),
        "constant": np.ones((num_points, 10)),
    }[kind].astype(np.float32)
    found = project(points, method="umap", dimensions=dimensions)
    assert found.coordinates.shape == (num_points, dimensions)
    assert np.isfinite(found.coordinates).all()
    assert found.coordinates.any() == (kind != "constant")


def test_umap_of_all_layers_jointly() -> None:
    states = points_of(8, 12, 6).reshape(3, 4, 6)
    assert project(states, method="umap", dimensions=3).coordinates.shape == (3, 4, 3)


def test_too_few_points_for_umap_are_counted() -> None:
    with pytest.raises(TooFewPoints) as caught:
        project(points_of(9, 3, 6), method="umap", dimensions=2)
    assert (caught.value.points, caught.value.min_points) == (3, UMAP_MIN_POINTS)
    assert caught.value.method == "umap"


@pytest.mark.parametrize("method", ["pca", "umap"])
def test_values_that_are_not_numbers_are_refused(method: str) -> None:
    points = points_of(10, 6, 4)
    points[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        project(points, method=method, dimensions=2)  # type: ignore[arg-type]


def test_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 3"):
        project(points_of(0, 6, 4), method="pca", dimensions=4)
    with pytest.raises(ValueError, match="hidden_states"):
        project(np.ones(4, dtype=np.float32), method="pca", dimensions=2)
