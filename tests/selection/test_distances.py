"""Squared distances: accurate, bit-identical in all forms, never materialising a product."""

import tracemalloc

import numpy as np
import pytest
import torch

from augsubset.selection.distances import (
    Factors,
    SquaredDistances,
    bound_absolute_error,
    bound_relative_error,
    compute_squares_on_device,
)


def rows(n=40, c=5, d=7, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return Factors(rng.normal(size=(n, c)).astype(dtype), rng.normal(size=(n, d)).astype(dtype))


def materialised(*layers):
    parts = []
    for left, right in layers:
        left = left.astype(np.float64)
        if right is not None:
            left = np.einsum("ni,nj->nij", left, right.astype(np.float64)).reshape(len(left), -1)
        parts.append(left)
    return np.concatenate(parts, axis=1)


def exact(*layers):
    values = materialised(*layers)
    return np.square(values[:, None] - values[None]).sum(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("product", [False, True])
def test_squares_match_the_materialised_rows(dtype, tolerance, num_layers, product):
    layers = [rows(dtype=dtype, seed=seed) for seed in range(num_layers)]
    if not product:
        layers = [Factors(layer.left) for layer in layers]
    squares = SquaredDistances(layers)
    found = squares.compute_block(slice(None)) * squares.unit**2
    expected = exact(*layers)
    assert np.abs(found - expected).max() <= tolerance * expected.max()
    assert squares.unit >= np.sqrt(expected.max())
    assert np.array_equal(found, found.T)
    assert (found.diagonal() == 0).all()


@pytest.mark.parametrize("layers", [[rows()], [Factors(rows().left)], [rows(), rows(seed=1)]])
def test_blocks_and_device_batches_are_bit_identical(layers):
    squares = SquaredDistances(layers)
    whole = squares.compute_block(slice(None)).copy()
    assert np.array_equal(squares.compute_block(slice(3, 9), 5), whole[3:9, 5:])
    assert np.array_equal(squares.compute_block(np.array([31, 2]), 8, 30), whole[[31, 2], 8:30])
    few = [layer.take(np.arange(11)) for layer in layers]
    together = compute_squares_on_device(
        torch.device("cpu"), [squares, SquaredDistances(few)]
    ).numpy()
    assert np.array_equal(together[0], whole)
    alone = SquaredDistances(few)
    assert np.array_equal(together[1, :11, :11], alone.compute_block(slice(None)))


@pytest.mark.parametrize(("dtype", "of_norms"), [(np.float32, 5e-7), (np.float64, 1e-12)])
def test_products_of_near_duplicates_keep_their_distances(dtype, of_norms):
    """Balancing rounds the factors: the error is relative to the rows' norms, about 9 here."""
    rng = np.random.default_rng(0)
    layer = Factors(
        (1 + 1e-5 * rng.normal(size=(30, 4))).astype(dtype),
        (2 + 1e-5 * rng.normal(size=(30, 5))).astype(dtype),
    )
    squares = SquaredDistances([layer])
    assert squares.dtype == dtype
    found = np.sqrt(squares.compute_block(slice(None))) * squares.unit
    expected = np.sqrt(exact(layer))
    assert np.abs(found - expected).max() <= bound_absolute_error([layer])
    assert bound_absolute_error([layer]) <= 9 * 6e-7
    assert np.abs(found - expected).max() < 9 * of_norms
    # Control: the Gram form of the same factors loses all accuracy.
    left, right = (side.astype(np.float32) for side in layer)
    gram = (left @ left.T) * (right @ right.T)
    norms = gram.diagonal()
    lost = np.sqrt(np.maximum(norms[:, None] + norms - 2 * gram, 0))
    assert np.abs(lost - expected).max() > 0.5 * expected.max()


@pytest.mark.parametrize("sign", [1, -1])
def test_products_of_opposite_factors_are_close(sign):
    """(-a) x (-h) is a x h: float64 is used where float32 would cancel."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 20, 6)).astype(np.float32)
    layer = Factors(np.concatenate([left, sign * left]), np.concatenate([right, sign * right]))
    squares = SquaredDistances([layer])
    assert squares.dtype == np.float64
    found = np.sqrt(squares.compute_block(slice(None))) * squares.unit
    assert np.abs(found - np.sqrt(exact(layer))).max() <= bound_absolute_error([layer])


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("width", [10, 1000])
def test_float32_error_is_as_documented_at_any_distance(gap, width):
    rng = np.random.default_rng(0)
    values = (1 + gap * rng.normal(size=(40, width))).astype(np.float32)
    squares = SquaredDistances([Factors(values)])
    found = np.sqrt(squares.compute_block(slice(None)).astype(np.float64)) * squares.unit
    expected = np.sqrt(exact(Factors(values)))
    apart = ~np.eye(40, dtype=bool)
    worst = (np.abs(found - expected)[apart] / expected[apart]).max()
    assert worst <= bound_relative_error([Factors(values)])
    assert worst <= {10: 4e-7, 1000: 3e-5}[width]


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_squares_neither_overflow_nor_underflow(scale):
    values = rows(dtype=np.float64).left
    squares, scaled = (
        SquaredDistances([Factors(values)]),
        SquaredDistances([Factors(values * scale)]),
    )
    one = np.sqrt(squares.compute_block(slice(None))) * squares.unit
    other = np.sqrt(scaled.compute_block(slice(None))) * scaled.unit / scale
    np.testing.assert_allclose(other, one, rtol=1e-12)


def test_the_outer_product_is_never_materialised():
    layer = rows(n=300, c=60, d=80)
    squares = SquaredDistances([layer])
    squares.compute_block(slice(0, 16))
    tracemalloc.start()
    squares = SquaredDistances([layer])
    for begin in range(0, 300, 16):
        squares.compute_block(slice(begin, begin + 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 60 * 80 * 4 / 3


def test_rows_without_columns_have_distance_zero():
    squares = SquaredDistances([Factors(np.zeros((4, 0), np.float32))])
    assert (squares.compute_block(slice(None)) == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_distances_to_a_subset_are_bit_identical(dtype, num_layers):
    """Blocks with few columns, as in the assignment to picks."""
    layers = [rows(n=60, dtype=dtype, seed=seed) for seed in range(num_layers)]
    whole = SquaredDistances(layers)
    here, there = np.arange(0, 60, 3), np.array([2, 59, 17])
    part = SquaredDistances([one.take(here) for one in layers], [one.take(there) for one in layers])
    expected = whole.compute_block(slice(None))[np.ix_(here, there)] * whole.unit**2
    assert np.array_equal(part.compute_block(slice(None)) * part.unit**2, expected)


@pytest.mark.parametrize(
    ("n", "width"), [(1, 3), (15, 1), (16, 8), (17, 5), (530, 3), (530, 9), (40, 601)]
)
def test_sizes_around_the_tile_boundaries_are_complete(width, n):
    values = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    squares = SquaredDistances([Factors(values)])
    expected = np.square(values.astype(np.float64)[:, None, :1] - values[None, :, :1]).sum(-1)
    for t in range(1, width):
        expected += np.square(np.subtract.outer(*[values[:, t].astype(np.float64)] * 2))
    found = squares.compute_block(slice(None)) * squares.unit**2
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=0)
    on_device = compute_squares_on_device(torch.device("cpu"), [squares])[0].numpy()
    assert np.array_equal(on_device, squares.compute_block(slice(None)))


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5, 1e-7])
def test_a_float32_gram_form_would_exceed_the_documented_error(gap):
    rng = np.random.default_rng(0)
    values = (1 + gap * rng.normal(size=(40, 10))).astype(np.float32)
    exact_distances = np.sqrt(exact(Factors(values)))
    apart = exact_distances > 0  # at 1e-7 rounding makes some rows equal
    claimed = bound_relative_error([Factors(values)])
    squares = SquaredDistances([Factors(values)])
    direct = np.sqrt(squares.compute_block(slice(None)).astype(np.float64)) * squares.unit
    gram = values @ values.T
    norms = gram.diagonal()
    from_gram = np.sqrt(np.maximum(norms[:, None] + norms - 2 * gram, 0)).astype(np.float64)
    lost, kept = (
        (np.abs(found - exact_distances)[apart] / exact_distances[apart]).max()
        for found in (from_gram, direct)
    )
    assert kept <= claimed < lost


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_float32_squares_do_not_depend_on_the_scale(scale, product):
    """The scales are powers of two, so scaling the rows is exact."""
    scale = np.float32(2.0 ** np.round(np.log2(scale)))
    one, other = rows(), Factors(rows().left * scale, rows().right)
    if not product:
        one, other = Factors(one.left), Factors(other.left)
    squares, scaled = SquaredDistances([one]), SquaredDistances([other])
    assert np.array_equal(scaled.compute_block(slice(None)), squares.compute_block(slice(None)))
    assert scaled.unit == squares.unit * float(scale)


@pytest.mark.parametrize("residual", [1.0, 1e-3, 1e-6])
def test_products_whose_inputs_differ_in_size_keep_their_distances(residual):
    """Well-predicted examples have a small residual and often a large input."""
    rng = np.random.default_rng(0)
    share = np.geomspace(residual, 1, 40)[:, None]
    layer = Factors(
        (share * rng.normal(size=(40, 4))).astype(np.float32),
        (rng.normal(size=(40, 6)) / share).astype(np.float32),
    )
    squares = SquaredDistances([layer])
    found = squares.compute_block(slice(None)) * squares.unit**2
    expected = exact(layer)
    assert np.abs(found - expected).max() <= 1e-5 * expected.max()


def test_unit_of_vectors_is_at_most_root_width_times_the_largest_distance():
    """A level is 2**-30 of the unit: an unnecessarily large unit makes levels coarse."""
    for values, largest in (
        (np.eye(1000), np.sqrt(2)),
        (rows().left, np.sqrt(exact(Factors(rows().left)).max())),
    ):
        unit = SquaredDistances([Factors(values)]).unit
        assert largest <= unit <= 4 * np.sqrt(values.shape[1]) * largest


def test_unit_of_products_is_a_small_multiple_of_the_largest_distance():
    layer = rows(dtype=np.float64)
    layer.left[0], layer.right[0] = 1e-9, 1e6  # next to nothing, as a product
    largest = np.sqrt(exact(layer).max())
    assert largest <= SquaredDistances([layer]).unit <= 64 * largest


@pytest.mark.parametrize("constant", ["left", "right"])
def test_unit_depends_on_both_factors(constant):
    layer = rows(dtype=np.float64)
    getattr(layer, constant)[:] = 100.0
    squares = SquaredDistances([layer])
    expected = exact(layer)
    assert squares.unit >= np.sqrt(expected.max())
    found = squares.compute_block(slice(None)) * squares.unit**2
    np.testing.assert_allclose(found, expected, rtol=1e-10)
