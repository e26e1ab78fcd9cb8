"""Squared distances: direct, the same bits in any block and form, never a materialised product."""

import tracemalloc

import numpy as np
import pytest
import torch

from augsubset.pairwise import Factors, SquaredDistances, relative_error, squares_on


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
def test_squares_are_those_of_the_materialised_rows(dtype, tolerance, num_layers, product):
    layers = [rows(dtype=dtype, seed=seed) for seed in range(num_layers)]
    if not product:
        layers = [Factors(layer.left) for layer in layers]
    squares = SquaredDistances(layers)
    found = squares.block(slice(None)) * squares.unit**2
    expected = exact(*layers)
    assert np.abs(found - expected).max() <= tolerance * expected.max()
    assert squares.unit >= np.sqrt(expected.max())
    assert np.array_equal(found, found.T)
    assert (found.diagonal() == 0).all()


@pytest.mark.parametrize("layers", [[rows()], [Factors(rows().left)], [rows(), rows(seed=1)]])
def test_any_block_and_the_form_for_a_device_have_the_same_bits(layers):
    squares = SquaredDistances(layers)
    whole = squares.block(slice(None)).copy()
    assert np.array_equal(squares.block(slice(3, 9), 5), whole[3:9, 5:])
    assert np.array_equal(squares.block(np.array([31, 2]), 8, 30), whole[[31, 2], 8:30])
    few = [layer.at(np.arange(11)) for layer in layers]
    together = squares_on(torch.device("cpu"), [squares, SquaredDistances(few)]).numpy()
    assert np.array_equal(together[0], whole)
    alone = SquaredDistances(few)
    assert np.array_equal(together[1, :11, :11], alone.block(slice(None)))


def test_products_of_near_duplicates_keep_their_distances():
    rng = np.random.default_rng(0)
    layer = Factors(
        1 + 1e-6 * rng.normal(size=(30, 4)).astype(np.float32),
        2 + 1e-6 * rng.normal(size=(30, 5)).astype(np.float32),
    )
    squares = SquaredDistances([layer])
    found = np.sqrt(squares.block(slice(None))) * squares.unit
    expected = np.sqrt(exact(layer))
    assert np.abs(found - expected).max() < 1e-3 * expected.max()
    # The Gram form of the same two factors, which loses all of it.
    (left, right), scale = layer, np.float32(1)
    gram = (left @ left.T) * (right @ right.T) * scale
    norms = gram.diagonal()
    lost = np.sqrt(np.maximum(norms[:, None] + norms - 2 * gram, 0))
    assert np.abs(lost - expected).max() > 0.5 * expected.max()


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("width", [10, 1000])
def test_float32_costs_what_the_module_says_however_close_the_rows(gap, width):
    rng = np.random.default_rng(0)
    values = (1 + gap * rng.normal(size=(40, width))).astype(np.float32)
    squares = SquaredDistances([Factors(values)])
    found = np.sqrt(squares.block(slice(None)).astype(np.float64)) * squares.unit
    expected = np.sqrt(exact(Factors(values)))
    apart = ~np.eye(40, dtype=bool)
    worst = (np.abs(found - expected)[apart] / expected[apart]).max()
    assert worst <= relative_error([Factors(values)])
    assert worst <= {10: 4e-7, 1000: 3e-5}[width]


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_squares_neither_overflow_nor_vanish(scale):
    values = rows(dtype=np.float64).left
    squares, scaled = (
        SquaredDistances([Factors(values)]),
        SquaredDistances([Factors(values * scale)]),
    )
    one = np.sqrt(squares.block(slice(None))) * squares.unit
    other = np.sqrt(scaled.block(slice(None))) * scaled.unit / scale
    np.testing.assert_allclose(other, one, rtol=1e-12)


def test_the_outer_product_is_never_materialised():
    layer = rows(n=300, c=60, d=80)
    squares = SquaredDistances([layer])
    squares.block(slice(0, 16))
    tracemalloc.start()
    squares = SquaredDistances([layer])
    for begin in range(0, 300, 16):
        squares.block(slice(begin, begin + 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 60 * 80 * 4 / 5


def test_rows_without_columns_are_all_alike():
    squares = SquaredDistances([Factors(np.zeros((4, 0), np.float32))])
    assert (squares.block(slice(None)) == 0).all()
