"""Contracts 2, 4, 5, 7 and 8 for all methods, similarities, tolerances and budgets."""

import math
import re
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from augsubset import CoresetSelector, LastLayerGradients, select_coreset
from augsubset.selection import partition
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import FacilityLocation, marginal_gains
from augsubset.selection.greedy import lazy_greedy
from augsubset.selection.solver import choose_method
from tests import reference
from tests.contracts import assert_valid_selection
from tests.strategies import ground_sets, inputs, product_gradients, tie_free_ground_sets

GENERATOR = torch.Generator().manual_seed(0)
CLOUD = torch.randn(2000, 5, generator=GENERATOR, dtype=torch.float64)


def with_inputs(ground, seed=0):
    rng = np.random.default_rng(seed)
    n = len(ground.labels)
    return LastLayerGradients(
        residual=ground.features,
        inputs=torch.from_numpy(rng.integers(-2, 3, (n, 2)).astype(np.float64)),
        labels=ground.labels,
        indices=torch.arange(n),
        losses=torch.zeros(n),
        earlier=((ground.features * 2, torch.ones(n, 1, dtype=torch.float64)),),
    )


# Input kinds.


@given(ground_sets(), st.data(), st.sampled_from(["lazy", "naive", "stochastic", "partitioned"]))
def test_any_floating_type_of_numpy_or_torch_gives_the_same_selection(ground, data, method):
    """The values are small integers, exact in every dtype.

    Half types are computed in float32, where two sums of distances may tie that differ in the last
    bits of float64: each type is compared with the precision in which it is computed.
    """
    options = {"budget": ground.budget, "method": method, "part_size": 4}
    features, labels = data.draw(inputs(ground))
    before = torch.as_tensor(features).detach().clone()
    computed_in = torch.float64 if before.dtype == torch.float64 else torch.float32
    found = select_coreset(features, labels, **options)
    expected = select_coreset(ground.features.to(computed_in), ground.labels, **options)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.clusters, expected.clusters)
    assert found.certificate.error == expected.certificate.error
    assert torch.equal(torch.as_tensor(features).detach(), before)


# Outer products: gradients of the last layer's weights and of earlier layers.


@given(ground_sets())
def test_a_selection_of_products_matches_the_materialised_rows(ground):
    gradients = with_inputs(ground)
    rows = reference.materialised(gradients)
    found = select_coreset(gradients, budget=ground.budget)
    assert_valid_selection(found, ground.labels, ground.budget)
    own = torch.arange(len(rows))
    error = float((rows - rows[found.clusters]).norm(dim=1).sum())
    gap = rows.sum(0) - (found.weights[:, None] * rows[found.indices]).sum(0)
    scale = float(rows.norm(dim=1).sum())
    certificate = found.certificate
    assert certificate.error == pytest.approx(error, rel=1e-9, abs=1e-9 * scale)
    assert certificate.gradient_error == pytest.approx(float(gap.norm()), abs=1e-9 * scale)
    assert certificate.gradient_norm == pytest.approx(float(rows.sum(0).norm()), abs=1e-9 * scale)
    assert certificate.gradient_error <= certificate.error + 1e-9 * scale
    expected = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert float((gradients.distances(own, own) - expected).abs().max()) <= 1e-7 * (scale + 1)


@given(product_gradients(kinds=("alike",)), st.data())
def test_the_value_of_products_is_at_least_1_minus_1_over_e_of_the_best(gradients, data):
    budget = data.draw(st.integers(1, len(gradients)))
    distances = reference.pairwise(reference.materialised(gradients))
    for method in ("lazy", "partitioned"):  # a single part: the same picks
        found = select_coreset(gradients, budget=budget, method=method)
        value = reference.value(distances, found.indices.tolist())
        assert value >= (1 - 1 / math.e - 1e-6) * reference.best_value(distances, budget)
        assert float(found.gains.sum()) == pytest.approx(value, rel=1e-5)
        chosen = found.indices.sort().values.tolist()
        assert found.clusters.tolist() == reference.nearest(distances, chosen)


# Contract 4 and the value, for every similarity.

SIMILARITIES = {
    "shifted_sq": lambda d, p: d.max() ** 2 - d**2,
    "exp": lambda d, p: torch.exp(-d / p),
    "callable": lambda d, p: 1 / (1 + d),
}


def similarity_value(similarities, subset):
    return float(similarities[:, list(subset)].amax(1).sum()) if len(subset) else 0.0


@pytest.mark.parametrize("name", SIMILARITIES)
@given(ground=tie_free_ground_sets(max_size=10, max_classes=1))
def test_greedy_under_any_similarity_reaches_the_value_of_float64_greedy(name, ground):
    similarities = SIMILARITIES[name](reference.pairwise(ground.features), ground.features.shape[1])
    chosen: list = []
    for _ in range(ground.budget):
        rest = [j for j in range(len(similarities)) if j not in chosen]
        chosen.append(max(rest, key=lambda j: similarity_value(similarities, [*chosen, j])))
    given_name = (lambda d: 1 / (1 + d)) if name == "callable" else name
    found = select_coreset(ground.features, budget=ground.budget, similarity=given_name)
    value = similarity_value(similarities, found.indices.tolist())
    assert value == pytest.approx(similarity_value(similarities, chosen), rel=1e-6)
    assert float(found.gains.sum()) == pytest.approx(value, rel=1e-5)
    best = max(
        similarity_value(similarities, subset)
        for subset in combinations(range(len(similarities)), ground.budget)
    )
    assert value >= (1 - 1 / math.e) * best - 1e-6
    assert found.certificate.error_lower_bound is None


# Contract 5: tolerance.


@given(ground_sets(), st.floats(0, 1))
def test_a_tolerance_is_met_and_not_without_the_last_pick_of_a_class(ground, share):
    loosest = select_coreset(ground.gradients, budget=len(torch.unique(ground.labels)))
    tolerance = share * loosest.certificate.error
    found = select_coreset(ground.gradients, tolerance=tolerance)
    n = len(ground.labels)
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        order = [members.tolist().index(i) for i in found.indices.tolist() if i in members]
        allowed = tolerance * len(members) / n
        assert reference.cost(distances, order) <= allowed * (1 + 1e-12) + 1e-12
        if len(order) > 1:
            assert reference.cost(distances, order[:-1]) > allowed * (1 - 1e-12) - 1e-12
    exact = select_coreset(ground.gradients, budget=len(found))
    assert found.certificate.error <= tolerance + 1e-9 or len(found) == n
    assert len(exact) == len(found)


def test_tolerance_zero_takes_every_distinct_row():
    points = torch.tensor([[0.0], [1], [1], [5], [5], [5]])
    found = select_coreset(points, tolerance=0)
    assert sorted(found.indices.tolist()) == [0, 1, 3]
    assert found.certificate.error == 0


def test_a_tolerance_in_parts_is_met_by_the_shortest_prefix():
    whole = select_coreset(CLOUD, budget=200, method="partitioned", part_size=500)
    tolerance = whole.certificate.error
    options = {"method": "partitioned", "part_size": 500}
    found = select_coreset(CLOUD, tolerance=tolerance, **options)
    assert found.certificate.error <= tolerance
    distances = torch.cdist(CLOUD, CLOUD[found.indices[:-1]])
    assert float(distances.amin(1).sum()) > tolerance


@given(ground_sets(max_size=30), st.floats(0, 1), st.integers(2, 7))
def test_a_tolerance_in_parts_is_met_by_every_class(ground, share, part_size):
    options = {"method": "partitioned", "part_size": part_size}
    loosest = select_coreset(ground.gradients, budget=len(torch.unique(ground.labels)), **options)
    tolerance = share * loosest.certificate.error
    found = select_coreset(ground.gradients, tolerance=tolerance, **options)
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        order = [members.tolist().index(i) for i in found.indices.tolist() if i in members]
        allowed = tolerance * len(members) / len(ground.labels)
        assert reference.cost(distances, order) <= allowed * (1 + 1e-12) + 1e-12
        if len(order) > 1:
            assert reference.cost(distances, order[:-1]) > allowed * (1 - 1e-12) - 1e-12


@given(tie_free_ground_sets(max_size=30, max_classes=1))
def test_the_error_of_a_budget_as_tolerance_needs_no_larger_budget(ground):
    """Levels are rounded, so the exact error must decide on the last picks."""
    of_budget = select_coreset(ground.features, budget=ground.budget)
    tolerance = of_budget.certificate.error * (1 + 1e-15)  # the share of a class is rounded too
    found = select_coreset(ground.features, tolerance=tolerance)
    assert len(found) <= ground.budget
    assert found.certificate.error <= tolerance


@given(tie_free_ground_sets(max_size=9, max_classes=1), st.floats(0.001, 1))
def test_a_tolerance_takes_at_most_a_logarithm_more_than_the_fewest(ground, share):
    """Each pick closes at least 1 / k* of the gap, where k* is the size of the smallest cover.

    So all picks but the last number at most k* ln(initial gap / gap before the last pick). The
    paper prints 1 + ln n for the factor.
    """
    distances, n = reference.pairwise(ground.features), len(ground.features)
    loosest = min(reference.cost(distances, [j]) for j in range(n))
    tolerance = share * loosest
    found = select_coreset(ground.features, tolerance=tolerance)
    fewest = next(
        size
        for size in range(1, n + 1)
        for subset in combinations(range(n), size)
        if reference.cost(distances, list(subset)) <= tolerance * (1 + 1e-9) + 1e-12
    )
    assert fewest <= len(found)
    if len(found) > 1:
        before_last = reference.cost(distances, found.indices[:-1].tolist())
        missing = max(before_last - tolerance, 1e-12)
        at_start = n * float(distances.max()) - tolerance
        assert len(found) <= 1 + fewest * math.log(at_start / missing) + 1e-6


def test_any_finite_tolerance_is_met():
    """Regression: a tolerance beyond 2**1024 levels overflowed."""
    for scale in (1.0, 1e-30):
        found = select_coreset(CLOUD[:20] * scale, tolerance=1e308)
        assert len(found) == 1


# Budgets by class.


@given(ground_sets(), st.data())
def test_a_mapping_sets_the_budget_of_each_class(ground, data):
    labels, sizes = torch.unique(ground.labels, return_counts=True)
    budget = {
        label: data.draw(st.integers(1, size))
        for label, size in zip(labels.tolist(), sizes.tolist(), strict=True)
    }
    found = select_coreset(ground.gradients, budget=budget)
    assert_valid_selection(found, ground.labels, sum(budget.values()))
    for label, k in budget.items():
        mine = ground.labels == label
        assert int(mine[found.indices].sum()) == k
        alone = select_coreset(ground.features[mine], budget=k)
        chosen = found.indices[mine[found.indices]]
        assert torch.equal(mine.nonzero().squeeze(1)[alone.indices], chosen)


# The lower bound.


@given(ground_sets(max_size=9), st.booleans(), st.booleans())
def test_no_subset_costs_less_than_the_bound(ground, single, products):
    gradients = with_inputs(ground) if products else ground.gradients
    rows = reference.materialised(gradients) if products else ground.features
    if single:
        rows = rows.float()
        gradients = LastLayerGradients.from_residual(rows, ground.labels)
    found = select_coreset(gradients, budget=ground.budget)
    best = plain = 0.0
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(rows[members])
        mine = torch.isin(members, found.indices).nonzero().squeeze(1).tolist()
        best += reference.least_cost(distances, len(mine))
        coverage = distances[:, mine].amin(1)
        gains = (coverage[None] - distances).clamp(min=0).sum(1)
        plain += float(coverage.sum() - gains.sort().values[-len(mine) :].sum())
    bound = found.certificate.error_lower_bound
    assert bound <= best + 1e-12
    scale = float(rows.double().norm(dim=1).sum()) + 1
    assert bound >= plain - 1e-5 * scale  # the cost minus the k largest remaining gains
    assert found.certificate.error_ratio >= 1


@given(product_gradients(), st.data())
def test_no_subset_of_products_costs_less_than_the_bound(gradients, data):
    budget = data.draw(st.integers(1, len(gradients)))
    distances = reference.pairwise(reference.materialised(gradients))
    certificate = select_coreset(gradients, budget=budget).certificate
    best = reference.least_cost(distances, budget)
    scale = float(reference.materialised(gradients).norm(dim=1).sum())
    assert certificate.error_lower_bound <= best + 1e-13 * scale
    assert certificate.error_ratio >= 1 - 1e-12


def test_the_bound_is_informative_at_any_budget():
    for fraction in (0.02, 0.1, 0.3, 0.5, 0.9):
        certificate = select_coreset(CLOUD, fraction=fraction).certificate
        assert 1 <= certificate.error_ratio < 1.3
    outlier = torch.cat([CLOUD, torch.full((1, 5), 1e4, dtype=torch.float64)])
    assert select_coreset(outlier, fraction=0.1).certificate.error_ratio < 1.3


@pytest.mark.parametrize("method", ["stochastic", "partitioned"])
def test_methods_that_do_not_see_all_distances_give_no_bound(method):
    certificate = select_coreset(CLOUD, budget=50, method=method, part_size=500).certificate
    assert certificate.error_lower_bound is None
    assert certificate.error_ratio is None


# Stochastic greedy.


@given(ground_sets(), st.integers(0, 2**31))
def test_stochastic_greedy_keeps_the_contracts_on_clusters_and_classes(ground, seed):
    options = {"budget": ground.budget, "method": "stochastic", "seed": seed}
    found = select_coreset(ground.gradients, **options)
    assert torch.equal(found.weights, found.weights.round())
    assert found.digest == select_coreset(ground.gradients, **options).digest
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        chosen = torch.isin(members, found.indices).nonzero().squeeze(1)
        expected = members[reference.nearest(distances, chosen)]
        assert torch.equal(found.clusters[members], expected)
    mine = ground.labels == ground.labels[0]
    moved = ground.features.clone()
    moved[~mine] = moved[~mine] * 2 + 1
    after = select_coreset(moved, ground.labels, **options)
    assert torch.equal(found.clusters[mine], after.clusters[mine])


@given(ground_sets(max_size=20), st.integers(0, 100), st.randoms(use_true_random=False))
def test_stochastic_greedy_does_not_depend_on_row_order_or_other_budgets(ground, seed, random):
    order = list(range(len(ground.labels)))
    random.shuffle(order)
    shuffled = LastLayerGradients(
        ground.features[order],
        None,
        ground.labels[order],
        torch.tensor(order),
        torch.zeros(len(order)),
    )
    options = {"method": "stochastic", "seed": seed, "epsilon": 0.5}
    budget = dict.fromkeys(ground.labels.tolist(), 1)
    before = select_coreset(ground.gradients, budget=budget, **options)
    after = select_coreset(shuffled, budget=budget, **options)
    assert torch.equal(before.indices, after.indices)
    mine = ground.labels == ground.labels[0]
    others = {label: int((ground.labels == label).sum()) for label in budget}
    more = {**others, int(ground.labels[0]): 1}
    after = select_coreset(ground.gradients, budget=more, **options)
    assert torch.equal(before.clusters[mine], after.clusters[mine])


def test_identical_classes_with_different_labels_draw_differently():
    both = select_coreset(
        torch.cat([CLOUD[:200], CLOUD[:200]]),
        torch.tensor([-7, 1000]).repeat_interleave(200),
        budget=40,
        method="stochastic",
    )
    first, second = (set((both.indices[both.indices // 200 == c] % 200).tolist()) for c in (0, 1))
    assert first != second


def test_stochastic_greedy_keeps_its_guarantee_on_average_and_uses_its_seed():
    points = CLOUD[:12]
    distances = reference.pairwise(points)
    best = reference.best_value(distances, 3)
    values, picks = [], set()
    for seed in range(40):
        found = select_coreset(points, budget=3, method="stochastic", epsilon=0.2, seed=seed)
        picks.add(tuple(found.indices.tolist()))
        values.append(reference.value(distances, found.indices.tolist()))
    assert np.mean(values) >= (1 - 1 / math.e - 0.2) * best
    assert len(picks) > 1


def test_stochastic_greedy_stores_no_matrix():
    select_coreset(CLOUD, budget=100, method="stochastic")
    tracemalloc.start()
    select_coreset(CLOUD, budget=100, method="stochastic")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(CLOUD) ** 2 / 5


# Partitioning.


@given(tie_free_ground_sets(max_size=40), st.integers(2, 9))
def test_a_partitioned_class_depends_on_its_own_rows_alone(ground, part_size):
    options = {"method": "partitioned", "part_size": part_size}
    labels = torch.unique(ground.labels).tolist()
    budget = {label: max(1, int((ground.labels == label).sum()) // 3) for label in labels}
    found = select_coreset(ground.gradients, budget=budget, **options)
    for label in labels:
        mine = ground.members(label)
        zeros = torch.zeros(len(mine))
        alone = LastLayerGradients(ground.features[mine], None, ground.labels[mine], mine, zeros)
        expected = select_coreset(alone, budget=budget[label], **options)
        chosen = found.indices[ground.labels[found.indices] == label]
        assert torch.equal(chosen, expected.indices)
        assert torch.equal(found.clusters[mine], expected.clusters)


@given(ground_sets(max_size=40), st.integers(2, 7))
def test_partitioning_keeps_budgets_and_assigns_the_nearest_picks(ground, part_size):
    options = {"budget": ground.budget, "method": "partitioned", "part_size": part_size}
    found = select_coreset(ground.gradients, **options)
    assert_valid_selection(found, ground.labels, ground.budget)
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        chosen = torch.isin(members, found.indices).nonzero().squeeze(1)
        expected = members[reference.nearest(distances, chosen)]
        assert torch.equal(found.clusters[members], expected)
    order = torch.randperm(len(ground.labels), generator=torch.Generator().manual_seed(1))
    shuffled = LastLayerGradients(
        ground.features[order], None, ground.labels[order], order, torch.zeros(len(order))
    )
    assert torch.equal(select_coreset(shuffled, **options).indices, found.indices)


@pytest.mark.parametrize("kind", ["duplicates", "constant", "no columns", "products"])
@pytest.mark.parametrize("budget", [1, 3, 40, 300])
def test_partitioning_degenerate_rows_works(kind, budget):
    n = 300
    residual = {
        "duplicates": torch.arange(n)[:, None].div(120, rounding_mode="floor").double(),
        "constant": torch.ones(n, 2),
        "no columns": torch.zeros(n, 0),
        "products": CLOUD[:n, :2],
    }[kind]
    gradients = LastLayerGradients(
        residual,
        CLOUD[:n, 2:] if kind == "products" else None,
        torch.zeros(n).long(),
        torch.arange(n),
        torch.zeros(n),
    )
    found = select_coreset(gradients, budget=budget, method="partitioned", part_size=32)
    assert_valid_selection(found, gradients.labels, budget)


def test_partitioning_is_nearly_as_good_as_exact_greedy():
    exact = select_coreset(CLOUD, fraction=0.1).certificate.error
    parts = select_coreset(CLOUD, fraction=0.1, method="partitioned", part_size=500)
    assert parts.certificate.error <= 1.05 * exact
    few = select_coreset(CLOUD, budget=6, method="partitioned", part_size=300).certificate.error
    assert few <= 1.1 * select_coreset(CLOUD, budget=6).certificate.error


def test_a_rows_part_does_not_depend_on_other_rows():
    rows = [Factors(CLOUD.numpy().astype(np.float32))]
    tree = partition.LocalityTree(rows, len(CLOUD), 300)
    parts = tree.assign_parts(rows)
    assert set(parts.tolist()) == set(range(tree.num_parts))
    for few in (np.arange(3), np.array([1999, 5, 700]), np.arange(0, 2000, 7)):
        assert np.array_equal(tree.assign_parts([rows[0].take(few)]), parts[few])
    sizes = np.bincount(parts)
    assert sizes.max() <= 300
    split = partition.split_in_halves(rows, 130)
    assert max(len(part) for part in split) <= 130
    assert np.array_equal(np.sort(np.concatenate(split)), np.arange(2000))


def test_auto_depends_on_the_class_size_alone():
    assert choose_method("auto", 16_384) == "lazy"
    assert choose_method("auto", 16_385) == "partitioned"
    assert choose_method("naive", 10**9) == "naive"


def test_a_large_class_is_partitioned_by_default():
    n = 16_385
    points = torch.arange(n)[:, None].float()
    labels = torch.cat([torch.zeros(n), torch.ones(5)]).long()
    both = torch.cat([points, points[:5]])
    found = select_coreset(both, labels, budget={0: 20, 1: 2}, part_size=500)
    expected = select_coreset(
        both, labels, budget={0: 20, 1: 2}, part_size=500, method="partitioned"
    )
    assert found.digest == expected.digest
    assert found.certificate.error_lower_bound is None


# Contract 8: memory.


@given(
    st.integers(60, 300),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from(["lazy", "stochastic", "partitioned", "products"]),
)
def test_peak_memory_stays_under_the_least_that_is_accepted(n, width, num_classes, method):
    rng = np.random.default_rng(0)
    gradients = LastLayerGradients(
        torch.from_numpy(rng.normal(size=(n, width))).float(),
        torch.from_numpy(rng.normal(size=(n, 9))).float() if method == "products" else None,
        torch.arange(n) % num_classes,
        torch.arange(n),
        torch.zeros(n),
    )
    options = {"method": "lazy" if method == "products" else method, "part_size": 50}
    with pytest.raises(ValueError, match="max_memory must be at least") as refusal:
        select_coreset(gradients, fraction=0.3, max_memory=1, **options)
    least = int(re.search(r"at least (\d+)", str(refusal.value)).group(1))
    options["max_memory"] = least
    select_coreset(gradients, fraction=0.3, **options)  # compiles
    tracemalloc.start()
    select_coreset(gradients, fraction=0.3, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= least
    with pytest.raises(ValueError, match="max_memory must be at least"):
        select_coreset(gradients, fraction=0.3, **{**options, "max_memory": least - 1})


# Gains and options.


@given(tie_free_ground_sets(max_size=25, max_classes=1))
def test_a_gain_is_the_increase_in_value(ground):
    levels = FacilityLocation([Factors(ground.features.numpy())], "shifted").compute_levels()
    picks = lazy_greedy(levels, ground.budget)
    coverage = np.full(len(levels.matrix), levels.uncovered, np.int32)
    for pick, gain in zip(picks.order, picks.gains, strict=True):
        assert marginal_gains(levels.matrix[[pick]], coverage)[0] == gain
        coverage = np.minimum(coverage, levels.matrix[pick])


def test_selector_options_reach_the_solver():
    gradients = LastLayerGradients.from_residual(CLOUD[:200])
    for options in (
        {"method": "stochastic", "epsilon": 0.5},
        {"similarity": "exp"},
        {"method": "partitioned", "part_size": 40},
    ):
        found = CoresetSelector(**options).select(gradients, budget=20, seed=3, epoch=0)
        assert found.digest == select_coreset(gradients, budget=20, seed=3, **options).digest
        assert found.digest != select_coreset(gradients, budget=20).digest


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"epsilon": 2}, "epsilon must be between 0 and 1"),
        ({"part_size": 1}, "part_size must be at least 2"),
        ({"max_memory": 0}, "max_memory must be at least 1"),
        ({"similarity": "cosine"}, "similarity must be one of"),
        ({"similarity": lambda d: -d}, "similarity must be positive at distance 0"),
        ({"method": "stochastic", "device": "meta"}, "device must be the CPU"),
    ],
)
def test_a_selector_validates_options_at_construction(option, reason):
    with pytest.raises(ValueError, match=reason):
        CoresetSelector(**option)


def test_progress_is_shown_only_when_asked(capsys):
    select_coreset(CLOUD[:50], budget=5)
    assert capsys.readouterr().err == ""
    select_coreset(CLOUD[:50], torch.arange(50) % 3, budget=5, progress=True)
    assert "3/3" in capsys.readouterr().err
    select_coreset(CLOUD, budget=50, method="partitioned", part_size=500, progress=True)
    assert "100%" in capsys.readouterr().err
