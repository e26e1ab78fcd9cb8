"""Contracts 1 to 4, 6 and 7 of selection, each against a slow reference in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from augsubset import LastLayerGradients, select_coreset
from augsubset.selection.budget import sainte_lague_order
from augsubset.selection.certificate import measure_class
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import (
    FacilityLocation,
    compute_levels_on_device,
    marginal_gains,
)
from augsubset.selection.greedy import batched_greedy, lazy_greedy, naive_greedy
from tests import reference
from tests.contracts import assert_valid_selection
from tests.strategies import (
    LabelledGroundSet,
    grid_features,
    ground_sets,
    product_gradients,
    tie_free_ground_sets,
)


def levels_of(features: torch.Tensor, similarity="shifted"):
    return FacilityLocation([Factors(features.numpy())], similarity).compute_levels()


# Contract 1: budgets.


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.data())
def test_class_budgets_are_sainte_lague_and_add_up(sizes, data):
    budget = data.draw(st.integers(len(sizes), sum(sizes)))
    order = sainte_lague_order(np.array(sizes), budget)
    assert order.tolist() == reference.sainte_lague(sizes, budget)
    quotas = np.bincount(order, minlength=len(sizes))
    assert quotas.sum() == budget
    assert (quotas >= 1).all()
    assert (quotas <= sizes).all()


@given(ground_sets())
def test_a_class_whose_budget_reaches_its_size_is_taken_whole(ground):
    whole = select_coreset(ground.gradients, budget=len(ground.labels))
    assert sorted(whole.indices.tolist()) == list(range(len(ground.labels)))
    assert bool((whole.weights == 1).all())


# Contract 2: cluster sizes.


@given(ground_sets())
@example(LabelledGroundSet(torch.zeros(4, 1).double(), torch.zeros(4).long(), 3))
def test_cluster_sizes_match_brute_force_nearest_counts(ground):
    selection = select_coreset(ground.gradients, budget=ground.budget)
    assert_valid_selection(selection, ground.labels, ground.budget)
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        chosen = torch.isin(members, selection.indices).nonzero().squeeze(1)
        expected = members[reference.nearest(distances, chosen)]
        assert torch.equal(selection.clusters[members], expected)


# Contract 3: all exact maximisers agree; picks are in a fixed order.


@given(grid_features(1, 14), st.data())
def test_lazy_and_naive_greedy_match_the_triple_loop_ties_included(features, data):
    budget = data.draw(st.integers(1, len(features)))
    levels = levels_of(features)
    chosen, gains = reference.greedy(levels.matrix, levels.uncovered, budget)
    for maximiser in (lazy_greedy, naive_greedy):
        picks = maximiser(levels, budget)
        assert picks.order.tolist() == chosen
        assert picks.gains.tolist() == gains


@given(ground_sets(max_size=20), st.data())
def test_a_batch_of_classes_gets_the_same_picks_as_each_alone(ground, data):
    """The code for a GPU, run on the CPU: bit-identical levels and picks, ties included."""
    groups = [ground.features[ground.labels == label] for label in torch.unique(ground.labels)]
    similarity = data.draw(st.sampled_from(["shifted", "shifted_sq"]))
    budgets = [data.draw(st.integers(1, len(features))) for features in groups]
    objectives = [FacilityLocation([Factors(each.numpy())], similarity) for each in groups]
    alone = [objective.compute_levels() for objective in objectives]
    lost, start = compute_levels_on_device(torch.device("cpu"), objectives)
    for c, levels in enumerate(alone):
        n = len(levels.matrix)
        assert np.array_equal(lost[c, :n, :n].numpy(), levels.matrix)
        assert int(start[c]) == levels.uncovered
    together = batched_greedy(lost, start, budgets, [len(each) for each in groups])
    for picks, levels, budget in zip(together, alone, budgets, strict=True):
        expected = lazy_greedy(levels, budget)
        for mine, theirs in zip(picks, expected, strict=True):
            assert np.array_equal(mine, theirs)


@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_a_batch_of_products_gets_the_same_picks_as_each_alone(data, dtype):
    groups = []
    least = data.draw(st.sampled_from([-2, 0]))  # without negative values, float32 is kept
    for _ in range(data.draw(st.integers(1, 3))):
        left = data.draw(grid_features(1, 12)).numpy().astype(dtype)[:, :1]
        values = st.lists(st.integers(least, 2), min_size=2 * len(left), max_size=2 * len(left))
        right = np.array(data.draw(values), dtype).reshape(-1, 2)
        groups.append([Factors(left, right), Factors(left * 3, right[:, :1])])
    similarity = data.draw(st.sampled_from(["shifted", "shifted_sq"]))
    objectives = [FacilityLocation(each, similarity) for each in groups]
    dtype = objectives[0].squares.dtype
    objectives = [one for one in objectives if one.squares.dtype == dtype]
    budgets = [data.draw(st.integers(1, one.num_examples)) for one in objectives]
    lost, start = compute_levels_on_device(torch.device("cpu"), objectives)
    together = batched_greedy(lost, start, budgets, [one.num_examples for one in objectives])
    for c, (one, budget) in enumerate(zip(objectives, budgets, strict=True)):
        levels, n = one.compute_levels(), one.num_examples
        assert np.array_equal(lost[c, :n, :n].numpy(), levels.matrix)
        assert np.array_equal(one.compute_rows(np.arange(n)), levels.matrix)
        assert np.array_equal(levels.matrix, levels.matrix.T)
        chosen, gains = reference.greedy(levels.matrix, levels.uncovered, budget)
        assert together[c].order.tolist() == chosen
        assert together[c].gains.tolist() == gains
        for maximiser in (lazy_greedy, naive_greedy):
            for mine, theirs in zip(maximiser(levels, budget), together[c], strict=True):
                assert np.array_equal(mine, theirs)


@given(tie_free_ground_sets(max_size=60))
def test_lazy_and_naive_methods_return_the_same_selection(ground):
    lazy = select_coreset(ground.gradients, budget=ground.budget, method="lazy")
    naive = select_coreset(ground.gradients, budget=ground.budget, method="naive")
    assert lazy.digest == naive.digest


@given(tie_free_ground_sets(max_size=15))
def test_lazy_greedy_matches_float64_greedy_on_tie_free_data(ground):
    distances = reference.pairwise(ground.features)
    chosen: list = []
    for _ in range(ground.budget):
        rest = [j for j in range(len(distances)) if j not in chosen]
        chosen.append(max(rest, key=lambda j: reference.value(distances, [*chosen, j])))
    found = select_coreset(ground.features, budget=ground.budget)
    # The last picks of a nearly complete set gain almost nothing: compare values, not indices.
    values = [reference.value(distances, s) for s in (chosen, found.indices.tolist())]
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@given(ground_sets(), st.data())
def test_a_smaller_budget_is_a_prefix(ground, data):
    num_classes = len(torch.unique(ground.labels))
    smaller = data.draw(st.integers(num_classes, ground.budget))
    large = select_coreset(ground.gradients, budget=ground.budget)
    small = select_coreset(ground.gradients, budget=smaller)
    assert torch.equal(large.indices[:smaller], small.indices)
    assert torch.equal(large.gains[:smaller], small.gains)


# Contract 4: the greedy guarantee, per class.


@given(ground_sets())
def test_value_is_at_least_1_minus_1_over_e_of_the_best(ground):
    selection = select_coreset(ground.gradients, budget=ground.budget)
    for label in torch.unique(ground.labels).tolist():
        members = ground.members(label)
        distances = reference.pairwise(ground.features[members])
        chosen = torch.isin(members, selection.indices).nonzero().squeeze(1).tolist()
        best = reference.best_value(distances, len(chosen))
        found = reference.value(distances, chosen)
        assert found >= (1 - 1 / math.e) * best - 1e-6 * max(best, 1)
        gains = selection.gains[ground.labels[selection.indices] == label]
        assert float(gains.sum()) == pytest.approx(found, rel=1e-6, abs=1e-6)


# Contract 6: the certificate.


@pytest.mark.parametrize("similarity", ["shifted", "shifted_sq", "exp"])
@given(ground=ground_sets(max_size=12, max_classes=1), data=st.data())
def test_gains_never_grow(similarity, ground, data):
    """Monotone and submodular: a row adds at least as much to a subset as to the set."""
    levels = levels_of(ground.features, similarity)
    n = len(ground.features)
    whole = data.draw(st.sets(st.integers(0, n - 1)))
    part = data.draw(st.sets(st.sampled_from(sorted(whole)))) if whole else set()

    def gains(chosen):
        lost = [levels.matrix[j] for j in chosen]
        coverage = np.minimum.reduce([np.full(n, levels.uncovered, np.int32), *lost])
        return marginal_gains(levels.matrix, coverage)

    assert (gains(part) >= gains(whole)).all()
    assert (gains(whole) >= 0).all()


def assert_error_bounds_gradient(features: torch.Tensor, selection) -> None:
    exact = features.double()
    estimate = (selection.weights[:, None] * exact[selection.indices]).sum(0)
    difference = float((exact.sum(0) - estimate).norm())
    error = sum(float((exact[i] - exact[int(j)]).norm()) for i, j in enumerate(selection.clusters))
    scale = float(exact.norm(dim=1).sum())
    certificate = selection.certificate
    assert certificate.error == pytest.approx(error, rel=1e-12, abs=1e-12 * scale)
    assert certificate.gradient_error == pytest.approx(difference, rel=1e-6, abs=1e-9 * scale)
    assert difference <= certificate.error + 1e-9 * scale


@given(ground_sets())
def test_error_bounds_the_gradient_error(ground):
    selection = select_coreset(ground.gradients, budget=ground.budget)
    assert_error_bounds_gradient(ground.features, selection)


@given(tie_free_ground_sets(), st.floats(1e-7, 1e-2), st.booleans())
def test_error_holds_among_near_duplicates_far_from_the_origin(ground, scale, single):
    """As in a converged network: residuals differ in their last bits. A Gram form fails."""
    features = 1.0 + scale * ground.features
    features = features.float() if single else features
    gradients = LastLayerGradients.from_residual(features, ground.labels)
    selection = select_coreset(gradients, budget=ground.budget)
    assert_valid_selection(selection, ground.labels, ground.budget)
    assert_error_bounds_gradient(features, selection)


def test_a_float32_gram_form_would_fail_the_near_duplicate_test():
    rng = np.random.default_rng(0)
    features = torch.from_numpy((1.0 + 1e-5 * rng.normal(size=(50, 4))).astype(np.float32))
    gram = features @ features.T
    squares = gram.diagonal()
    from_gram = (squares[:, None] + squares - 2 * gram).clamp(min=0).sqrt().double()
    direct = LastLayerGradients.from_residual(features).distances(
        torch.arange(50), torch.arange(50)
    )
    exact = reference.pairwise(features)
    assert float((direct.double() - exact).abs().max()) < 1e-3 * float(exact.max())
    assert float((from_gram - exact).abs().max()) > 0.5 * float(exact.max())


def test_the_papers_frobenius_norm_does_not_bound_the_gradient_error():
    """The counterexample in measure_class: 99 unit vectors represented by the origin."""
    features = torch.zeros(100, 2, dtype=torch.float64)
    features[:99, 0] = 1.0
    rows = Factors(features.numpy())
    measured = measure_class([rows], [rows.take(np.full(100, 99))])
    assert measured.error == np.linalg.norm(measured.gap[0]) == 99
    frobenius = float((features - features[99]).norm())
    assert frobenius == pytest.approx(9.95, abs=0.01)
    assert np.linalg.norm(measured.gap[0]) > frobenius


@given(product_gradients(), st.data())
@example(  # regression: the error was 0, the gradient error 10
    LastLayerGradients(
        torch.tensor([[0.0], [0], [1], [1], [1], [1]]).double(),
        torch.tensor([[1e9], [-1e9], [1], [2], [3], [4]]).double(),
        torch.zeros(6).long(),
        torch.arange(6),
        torch.zeros(6),
    ),
    None,
)
def test_error_bounds_the_gradient_error_of_products(gradients, data):
    """Even if the factors are far apart but the products nearly equal."""
    n = len(gradients)
    budget = 2 if data is None else data.draw(st.integers(1, n))
    selection = select_coreset(gradients, budget=budget)
    assert_valid_selection(selection, gradients.labels, budget)
    rows = reference.materialised(gradients)
    scale = float(rows.norm(dim=1).sum())
    error = float((rows - rows[selection.clusters]).norm(dim=1).sum())
    estimate = (selection.weights[:, None] * rows[selection.indices]).sum(0)
    assert selection.certificate.error == pytest.approx(error, rel=1e-6, abs=1e-9 * scale)
    assert float((rows.sum(0) - estimate).norm()) <= selection.certificate.error + 1e-9 * scale


# Contract 7: a class depends on its own data and budget alone.


@given(ground_sets(), st.integers(-3, 3))
def test_other_classes_do_not_change_a_class(ground, shift):
    before = select_coreset(ground.gradients, budget=ground.budget)
    mine = ground.labels == ground.labels[0]
    moved = ground.features.clone()
    moved[~mine] = moved[~mine] * 2 + shift
    after = select_coreset(moved, ground.labels, budget=ground.budget)
    assert torch.equal(before.clusters[mine], after.clusters[mine])
    chosen = [s.indices[mine[s.indices]] for s in (before, after)]
    assert torch.equal(chosen[0], chosen[1])


def steps_before_a_tie(features: torch.Tensor, budget: int) -> int:
    """Return the number of greedy picks before two candidates tie."""
    levels = levels_of(features)
    coverage = np.full(len(features), levels.uncovered, np.int32)
    rest = list(range(len(features)))
    for step in range(budget):
        gains = marginal_gains(levels.matrix[rest], coverage)
        if (gains == gains.max()).sum() > 1:
            return step
        pick = rest.pop(int(gains.argmax()))
        coverage = np.minimum(coverage, levels.matrix[pick])
    return budget


@given(tie_free_ground_sets(max_size=40), st.randoms(use_true_random=False))
def test_permuting_the_data_permutes_the_selection_up_to_the_first_tie(ground, random):
    order = list(range(len(ground.labels)))
    random.shuffle(order)
    before = select_coreset(ground.gradients, budget=ground.budget)
    after = select_coreset(ground.features[order], ground.labels[order], budget=ground.budget)
    back = torch.tensor(order)[after.indices]
    for label in torch.unique(ground.labels).tolist():
        mine = before.indices[ground.labels[before.indices] == label]
        theirs = back[ground.labels[back] == label]
        sure = steps_before_a_tie(ground.features[ground.members(label)], len(mine))
        assert torch.equal(mine[:sure], theirs[:sure])
        gains = [
            s.gains[ground.labels[i] == label][: sure + 1]
            for s, i in ((before, before.indices), (after, back))
        ]
        assert torch.equal(*gains)  # tied candidates have equal gains


@given(ground_sets(), st.randoms(use_true_random=False))
def test_permuting_rows_with_their_indices_changes_nothing(ground, random):
    """Ties go to the lowest dataset index, not to the first row."""
    order = list(range(len(ground.labels)))
    random.shuffle(order)
    shuffled = LastLayerGradients(
        residual=ground.features[order],
        inputs=None,
        labels=ground.labels[order],
        indices=torch.tensor(order),
        losses=torch.zeros(len(order)),
    )
    before = select_coreset(ground.gradients, budget=ground.budget)
    after = select_coreset(shuffled, budget=ground.budget)
    assert torch.equal(before.indices, after.indices)
    assert torch.equal(before.clusters[order], after.clusters)
