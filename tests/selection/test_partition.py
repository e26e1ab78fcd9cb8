"""Partitioning: sampling, splitting, merging, and nearest picks across parts."""

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients, select_coreset
from augsubset.selection import partition
from augsubset.selection.distances import Factors
from tests import reference

RNG = np.random.default_rng(0)
CLOUD = RNG.normal(size=(3000, 4)).astype(np.float32)


def test_the_tree_sample_depends_on_dataset_indices_alone():
    indices = np.arange(3000) * 7
    num_rows, part_size = 3000, 1000
    drawn = partition.draw_tree_sample(indices, num_rows, part_size)
    wanted = 512 * 4
    assert abs(len(drawn) - wanted) < 5 * np.sqrt(wanted)
    for few in (np.arange(100), np.arange(1, 3000, 13)):
        expected = np.isin(few, drawn).nonzero()[0]
        found = partition.draw_tree_sample(indices[few], num_rows, part_size)
        assert np.array_equal(found, expected)
    assert len(partition.draw_tree_sample(indices, 3000, 500)) == 3000


def test_a_tree_from_a_sample_splits_all_rows_evenly():
    rows = [Factors(CLOUD)]
    drawn = partition.draw_tree_sample(np.arange(3000), 3000, 1000)
    tree = partition.LocalityTree([rows[0].take(drawn)], 3000, 1000)
    sizes = np.bincount(tree.assign_parts(rows))
    assert tree.num_parts == len(sizes) == 4
    assert sizes.max() < 1.15 * 3000 / 4


def test_neighbours_share_a_part():
    rows = [Factors(CLOUD)]
    parts = partition.LocalityTree(rows, 3000, 300).assign_parts(rows)
    within = [
        np.linalg.norm(CLOUD[parts == part] - CLOUD[parts == part].mean(0), axis=1).mean()
        for part in range(parts.max() + 1)
    ]
    assert np.mean(within) < 0.8 * np.linalg.norm(CLOUD - CLOUD.mean(0), axis=1).mean()


@pytest.mark.parametrize("part_size", [2, 7, 300])
def test_equal_rows_are_split_by_position(part_size):
    rows = [Factors(np.ones((300, 2), np.float32))]
    tree = partition.LocalityTree(rows, 300, part_size)
    assert tree.num_parts == 1
    found = partition.split_in_halves(rows, part_size)
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(300))
    assert max(len(part) for part in found) <= part_size
    assert all((np.diff(part) == 1).all() for part in found)


def test_picks_are_merged_by_gain_with_ties_by_number():
    numbers, gains = partition.merge_by_gain(
        [np.array([9, 4]), np.array([2, 7])], [np.array([5.0, 3.0]), np.array([5.0, 1.0])]
    )
    assert numbers.tolist() == [2, 9, 4, 7]
    assert gains.tolist() == [5, 5, 3, 1]


@pytest.mark.parametrize("budget", [1, 2, 7, 100])
def test_subsample_size_is_proportional_to_a_small_budget(budget):
    few = partition.draw_subsample(np.arange(3000), budget, 30)
    wanted = partition.count_rows_for(budget, 30)
    assert wanted == 30 * max(1, budget // 2)
    assert abs(len(few) - wanted) < 5 * np.sqrt(wanted)
    assert partition.draw_subsample(np.arange(3000), 200, 30) is None
    assert partition.draw_subsample(np.arange(3000), None, 30) is None


@pytest.mark.parametrize("kind", ["vectors", "grid", "products", "near-duplicates"])
def test_the_nearest_pick_is_found_in_any_group(kind):
    rng = np.random.default_rng(1)
    values = {
        "vectors": CLOUD[:600],
        "grid": rng.integers(-2, 3, (600, 2)).astype(np.float32),
        "products": CLOUD[:600],
        "near-duplicates": 1 + np.float32(1e-5) * CLOUD[:600],
    }[kind]
    right = CLOUD[600:1200, :2] if kind == "products" else None
    rows = [Factors(values, right)]
    parts = rng.integers(0, 8, 600)  # random parts: `home` must only affect speed
    order = np.sort(rng.permutation(600)[:40])
    order = order[parts[order] != 5]  # a part without a pick
    numbers = order[np.lexsort((order, parts[order]))]
    sizes = np.bincount(parts[order], minlength=8)
    index = partition.PickIndex([part.take(numbers) for part in rows], numbers, sizes)
    zeros = torch.zeros(600)
    distances = LastLayerGradients(
        torch.from_numpy(values),
        None if right is None else torch.from_numpy(right),
        zeros.long(),
        torch.arange(600),
        zeros,
    ).distances(torch.arange(600), torch.from_numpy(order))
    expected = order[distances.numpy().argmin(1)]
    for part in range(8):
        mine = np.flatnonzero(parts == part)
        found = index.find_nearest([one.take(mine) for one in rows], part)
        assert np.array_equal(found, expected[mine])


def test_sampling_in_parts_does_not_depend_on_the_order_of_rows():
    points = torch.from_numpy(CLOUD)
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    gradients = LastLayerGradients(
        points[shuffled], None, torch.zeros(3000).long(), shuffled, torch.zeros(3000)
    )
    for budget, part_size in ((300, 1000), (4, 700), (1, 700)):
        options = {"budget": budget, "method": "partitioned", "part_size": part_size}
        found, expected = select_coreset(gradients, **options), select_coreset(points, **options)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.clusters, expected.clusters[shuffled])
        distances = torch.cdist(points.double(), points[expected.indices].double())
        error = float(distances.amin(1).sum())
        assert expected.certificate.error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        *((torch.float32, exponent) for exponent in (-120, -60, 60, 120)),
        *((torch.float64, exponent) for exponent in (-900, -530, -120, 120, 512, 530, 900)),
    ],
)
def test_parts_do_not_depend_on_the_scale(dtype, exponent):
    points = torch.from_numpy(CLOUD[:400]).to(dtype)
    options = {"budget": 20, "method": "partitioned", "part_size": 60}
    found = select_coreset(points * 2.0**exponent, **options)
    expected = select_coreset(points, **options)
    assert torch.equal(found.indices, expected.indices)
    assert found.certificate.error == pytest.approx(expected.certificate.error * 2.0**exponent)


def test_partitioning_the_largest_floats_works():
    """Regression: bounding boxes and the power method overflowed, exact methods did not."""
    points = torch.tensor([[-3e38], [2e38], [3e38], [-2.5e38], [0.0]])
    found = select_coreset(points, budget=2, method="partitioned", part_size=2)
    distances = reference.pairwise(points)
    chosen = found.indices.sort().values.tolist()
    assert found.clusters.tolist() == reference.nearest(distances, chosen)
