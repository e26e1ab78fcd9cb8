"""The rules beside the library's own: what each promises, and that all keep the protocol."""

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients, Selection, Selector, select_coreset
from benchmarks.grid import grid_names, load_grid
from benchmarks.rules import (
    RULES,
    AdaptiveBudget,
    DriftTriggered,
    GradientMatching,
    InfoBatch,
    MeanOne,
    Rotating,
    ScoreProportional,
    _rows,
    make_rule,
)


def gradients_of(n=60, classes=3, seed=0, inputs=0, losses=None):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    residual = logits.softmax(1) - torch.nn.functional.one_hot(labels, classes)
    if losses is None:
        losses = -logits.log_softmax(1)[torch.arange(n), labels]
    return LastLayerGradients(
        residual=residual,
        inputs=torch.randn(n, inputs, generator=generator) if inputs else None,
        labels=labels,
        indices=torch.arange(n),
        losses=losses,
    )


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_protocol(name):
    gradients = gradients_of()
    budget = 15
    first, again = (
        make_rule(name, {}).select(gradients, budget=budget, seed=3, epoch=0) for _ in range(2)
    )
    assert isinstance(make_rule(name, {}), Selector)
    assert isinstance(first, Selection)
    assert 0 < len(first) <= budget
    assert first.digest == again.digest
    assert first.epoch == 0


@pytest.mark.parametrize("name", ["score-proportional", "infobatch", "random"])
def test_rules_that_draw_draw_anew_each_epoch(name):
    gradients = gradients_of()
    rule = make_rule(name, {})
    digests = {
        rule.select(gradients, budget=15, seed=seed, epoch=epoch).digest
        for seed in (0, 1)
        for epoch in range(3)
    }
    assert len(digests) == 6


def test_a_users_own_rule_runs_by_import_path():
    rule = make_rule("benchmarks.rules:Rotating", {"every": 2})
    assert isinstance(rule, Rotating)
    with pytest.raises(ValueError, match="rule must be one of"):
        make_rule("oracle", {})


def test_scores_are_drawn_in_proportion():
    losses = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0])
    gradients = gradients_of(5, 1, losses=losses)
    first = [
        int(ScoreProportional().select(gradients, budget=1, seed=seed, epoch=0).indices[0])
        for seed in range(2000)
    ]
    assert np.mean(np.array(first) == 0) == pytest.approx(0.5, abs=0.04)


def test_infobatch_keeps_what_is_hard_and_rescales_the_rest():
    losses = torch.cat([torch.full((10,), 5.0), torch.zeros(50)])
    gradients = gradients_of(losses=losses)
    found = InfoBatch().select(gradients, budget=35, seed=0, epoch=0)
    weights = dict(zip(found.indices.tolist(), found.weights.tolist(), strict=True))
    assert all(weights[i] == 1 for i in range(10))
    assert {weights[i] for i in weights if i >= 10} == {50 / 25}
    assert float(found.weights.sum()) == 60


def test_infobatch_is_unbiased():
    gradients = gradients_of()
    total = torch.zeros(60, dtype=torch.float64)
    for epoch in range(3000):
        found = InfoBatch().select(gradients, budget=30, seed=0, epoch=epoch)
        total[found.indices] += found.weights
    assert torch.allclose(total / 3000, torch.ones(60, dtype=torch.float64), atol=0.15)


def test_infobatch_at_a_small_budget_halves_it():
    found = InfoBatch().select(gradients_of(), budget=6, seed=0, epoch=0)
    assert (found.weights == 1).sum() == 3
    assert float(found.weights.sum()) == pytest.approx(60)


@pytest.mark.parametrize("inputs", [0, 4])
def test_matched_gradients_add_up(inputs):
    gradients = gradients_of(20, 3, inputs=inputs)
    rows = _rows(gradients, np.arange(20))
    assert rows.shape == (20, gradients.residual.shape[1] * max(1, inputs))
    chosen, weights = GradientMatching(ridge=1e-9)._matched(rows, 15)
    gap = np.linalg.norm(rows.sum(0) - weights @ rows[chosen])
    assert gap < 1e-4 * np.linalg.norm(rows.sum(0))
    assert (weights > 0).all()
    assert len(set(chosen.tolist())) == len(chosen) <= rows.shape[1] + 1


def test_what_matching_leaves_of_a_budget_is_filled_lightly():
    found = GradientMatching(ridge=1e-9).select(gradients_of(), budget=30, seed=0, epoch=0)
    assert len(found) == 30
    assert bool((found.weights > 0).all())
    lightest = torch.unique(found.weights, return_counts=True)[1]
    assert int(lightest.sum()) == 30
    assert int((lightest > 1).sum()) == 3  # of each class, as light as its lightest


def test_matching_takes_more_than_the_dimension_with_a_ridge():
    found = GradientMatching(ridge=0.5).select(gradients_of(), budget=30, seed=0, epoch=0)
    assert len(torch.unique(found.weights)) > 9


def test_rotating_draws_one_member_of_each_cluster():
    gradients = gradients_of()
    coreset = select_coreset(gradients, budget=12)
    rule = Rotating(every=3, weights="clusters")
    seen = []
    for epoch in range(3):
        assert rule.needs_gradients == (epoch == 0)
        given = gradients if epoch == 0 else LastLayerGradients.unprobed(60)
        found = rule.select(given, budget=12, seed=0, epoch=epoch)
        assert torch.equal(coreset.clusters[found.indices], coreset.indices)
        assert torch.equal(found.weights, coreset.weights)
        seen.append(tuple(found.indices.tolist()))
    assert len(set(seen)) == 3
    assert rule.needs_gradients


def test_rotating_members_are_drawn_uniformly():
    gradients = gradients_of(12, 1)
    rule = Rotating(every=10**9)
    counts = torch.zeros(12)
    for epoch in range(3000):
        counts[rule.select(gradients, budget=3, seed=0, epoch=epoch).indices] += 1
    coreset = select_coreset(gradients, budget=3)
    sizes = torch.stack([(coreset.clusters == c).sum() for c in coreset.clusters])
    assert torch.allclose(counts / 3000, 1 / sizes, atol=0.04)


def test_drift_reselects_when_the_old_coreset_no_longer_fits():
    gradients = gradients_of()
    rule = DriftTriggered(tolerance=1.5)
    first = rule.select(gradients, budget=15, seed=0, epoch=0)
    assert rule.select(gradients, budget=15, seed=0, epoch=1) is first
    other = gradients_of(seed=1)
    second = rule.select(other, budget=15, seed=0, epoch=2)
    assert second is not first
    assert torch.equal(second.indices, select_coreset(other, budget=15).indices)


def test_an_adaptive_budget_is_the_smallest_that_will_do():
    gradients = gradients_of()
    norms = float(gradients.residual.double().norm(dim=1).sum())
    found = AdaptiveBudget(0.1).select(gradients, budget=60, seed=0, epoch=0)
    assert found.certificate.error <= 0.1 * norms
    fewer = select_coreset(gradients, budget=len(found) - 3)
    assert fewer.certificate.error > 0.1 * norms
    capped = AdaptiveBudget(0.001).select(gradients, budget=20, seed=0, epoch=0)
    assert len(capped) == 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMatching(ridge=-1), "ridge must be 0 or more"),
        (lambda: Rotating(every=0), "every must be"),
        (lambda: Rotating(weights="some"), "weights must be one of"),
        (lambda: DriftTriggered(tolerance=0), "tolerance must be positive"),
        (lambda: AdaptiveBudget(error=0), "error must be positive"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_mean_one_are_a_coresets_over_their_mean():
    gradients = gradients_of()
    ours = MeanOne().select(gradients, budget=15, seed=0, epoch=2)
    theirs = select_coreset(gradients, budget=15)
    assert torch.equal(ours.indices, theirs.indices)
    assert float(ours.weights.mean()) == pytest.approx(1)
    assert ours.weights.tolist() == pytest.approx((theirs.weights * 15 / 60).tolist())
    assert ours.epoch == 2
    of_copies = MeanOne(copies=4).select(gradients, budget=15, seed=0, epoch=2)
    assert of_copies.weights.tolist() == pytest.approx((theirs.weights * 15 / 15).tolist())
    with pytest.raises(ValueError, match="copies"):
        MeanOne(copies=0)


def test_tempered_weights_are_roots_capped_and_of_mean_one():
    gradients = gradients_of()
    plain = make_rule("coreset", {}).select(gradients, budget=12, seed=0, epoch=0)
    found = make_rule("tempered", {"cap": 1.2}).select(gradients, budget=12, seed=0, epoch=0)
    assert found.indices.tolist() == plain.indices.tolist()
    roots = plain.weights.sqrt()
    capped = (roots / roots.mean()).clamp(max=1.2)
    assert torch.allclose(found.weights, capped / capped.mean())
    assert float(found.weights.mean()) == pytest.approx(1)
    assert len(found.weights.unique()) > 1


def test_weights_of_mean_one_are_that_on_each_copy_in_every_grid():
    cells = [cell for name in grid_names() for cell in load_grid(name).cells]
    of_mean_one = {
        (cell.weights, cell.copies, cell.rule_options.get("copies", 1))
        for cell in cells
        if cell.rule == "mean-one"
    }
    assert of_mean_one == {("unscaled", 1, 1), ("unscaled", 4, 4)}
