"""The selectors and their protocol."""

import pytest
import torch

from augsubset import (
    CoresetSelector,
    LastLayerGradients,
    MaxLossSelector,
    RandomSelector,
    Selection,
    Selector,
    select_coreset,
)

GENERATOR = torch.Generator().manual_seed(0)
GRADIENTS = LastLayerGradients(
    residual=torch.randn(40, 3, generator=GENERATOR),
    inputs=None,
    labels=torch.arange(40) % 4,
    indices=torch.arange(40),
    losses=torch.randn(40, generator=GENERATOR).abs().round(decimals=1),  # ties occur
)


def select(selector, budget=10, seed=0, epoch=7):
    return selector.select(GRADIENTS, budget=budget, seed=seed, epoch=epoch)


@pytest.mark.parametrize(
    "selector", [CoresetSelector(), RandomSelector(), MaxLossSelector(), MaxLossSelector("class")]
)
def test_every_selector_uses_its_budget_and_weights_add_up_to_n(selector):
    assert isinstance(selector, Selector)
    selection = select(selector)
    assert len(selection) == 10
    assert float(selection.weights.sum()) == pytest.approx(40)
    assert selection.epoch == 7
    assert select(selector).digest == selection.digest


@pytest.mark.parametrize("selector", [RandomSelector(), MaxLossSelector()])
def test_baselines_have_weights_n_over_k_and_no_clusters(selector):
    selection = select(selector)
    assert selection.weights.tolist() == [4.0] * 10
    assert selection.clusters.tolist() == [-1] * 40
    assert selection.certificate is None


def test_coreset_selector_is_select_coreset():
    assert select(CoresetSelector()).digest == select_coreset(GRADIENTS, budget=10).digest


def test_a_custom_selector_needs_no_base_class():
    class Every4th:
        needs_gradients = False

        def select(self, gradients, *, budget, seed, epoch):
            return Selection.equally_weighted(gradients.indices[::4], len(gradients), epoch=epoch)

    assert isinstance(Every4th(), Selector)
    assert select(Every4th()).weights.tolist() == [4.0] * 10


def test_random_selection_changes_with_seed_and_epoch_and_does_not_collide():
    chosen = {
        (seed, epoch): tuple(select(RandomSelector(), seed=seed, epoch=epoch).indices.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(chosen.values())) == 9


def test_random_selection_is_uniform():
    """The fraction of examples never chosen in T draws of a fraction s is (1 - s)^T."""
    gradients = LastLayerGradients.unprobed(1000)
    never = torch.ones(1000, dtype=torch.bool)
    for epoch in range(20):
        never[RandomSelector().select(gradients, budget=50, seed=1, epoch=epoch).indices] = False
    assert float(never.float().mean()) == pytest.approx(0.95**20, abs=0.04)


def test_max_loss_takes_the_highest_losses_and_the_lowest_index_among_equals():
    ranked = sorted(range(40), key=lambda i: (-float(GRADIENTS.losses[i]), i))
    assert select(MaxLossSelector()).indices.tolist() == ranked[:10]


def test_max_loss_in_class_scope_keeps_class_budgets():
    selection = select(MaxLossSelector("class"))
    labels = GRADIENTS.labels[selection.indices]
    assert torch.bincount(labels).tolist() == [3, 3, 2, 2]
    for label in range(4):
        of_class = [i for i in range(40) if i % 4 == label]
        ranked = sorted(of_class, key=lambda i: (-float(GRADIENTS.losses[i]), i))
        chosen = selection.indices[labels == label].tolist()
        assert chosen == ranked[: len(chosen)]


def test_only_selectors_that_use_gradients_need_them():
    assert CoresetSelector().needs_gradients
    assert MaxLossSelector().needs_gradients
    assert not RandomSelector().needs_gradients


@pytest.mark.parametrize(
    ("make", "budget", "reason"),
    [
        (lambda: RandomSelector(), 41, "budget must be between 1 and the ground-set size 40"),
        (lambda: MaxLossSelector(), 0, "budget must be between 1 and the ground-set size 40"),
        (lambda: MaxLossSelector("batch"), 10, "scope must be one of 'global', 'class'"),
        (lambda: CoresetSelector(method="magic"), 10, "method must be one of"),
    ],
)
def test_bad_values_are_refused(make, budget, reason):
    with pytest.raises(ValueError, match=reason):
        select(make(), budget=budget)


# Classes.

KEEPS_CLASSES = [CoresetSelector(), RandomSelector(stratified=True), MaxLossSelector("class")]
IMBALANCED = torch.tensor([7] * 100 + [-2] * 30 + [0] * 3 + [9])


def draw_imbalanced(seed):
    """Rows in any order, with indices and labels that are no positions."""
    generator = torch.Generator().manual_seed(seed)
    n = len(IMBALANCED)
    return LastLayerGradients(
        residual=torch.randn(n, 3, generator=generator),
        inputs=None,
        labels=IMBALANCED[torch.randperm(n, generator=generator)],
        indices=1000 + torch.randperm(n, generator=generator),
        losses=torch.rand(n, generator=generator),
    )


def select_labels(selector, seed, budget):
    gradients = draw_imbalanced(seed)
    found = selector.select(gradients, budget=budget, seed=seed, epoch=0).indices
    label_of = dict(zip(gradients.indices.tolist(), gradients.labels.tolist(), strict=True))
    return [label_of[index] for index in found.tolist()]


@pytest.mark.parametrize("selector", KEEPS_CLASSES, ids=lambda selector: type(selector).__name__)
@pytest.mark.parametrize("seed", range(25))
def test_every_class_has_its_quota_of_a_small_budget(selector, seed):
    labels = select_labels(selector, seed, budget=8)
    assert [labels.count(label) for label in (7, -2, 0, 9)] == [5, 1, 1, 1]


@pytest.mark.parametrize("selector", [RandomSelector(), MaxLossSelector()])
def test_a_subset_of_all_examples_leaves_classes_out(selector):
    missed = [len(set(select_labels(selector, seed, budget=8))) < 4 for seed in range(25)]
    assert any(missed)


def test_a_stratified_selection_is_uniform_within_classes():
    chosen = torch.zeros(40)
    selector = RandomSelector(stratified=True)
    for epoch in range(400):
        chosen[select(selector, budget=8, epoch=epoch).indices] += 1
    assert chosen.view(10, 4).sum(0).tolist() == [800] * 4
    assert chosen.min() > 45  # 80 are expected of each, with a standard deviation of 8
    assert chosen.max() < 115


@pytest.mark.parametrize("selector", [RandomSelector(stratified=True), MaxLossSelector("class")])
def test_fewer_than_one_example_a_class_are_refused(selector):
    with pytest.raises(ValueError, match="budget must be at least the number of classes 4"):
        select(selector, budget=3)


def test_stratified_is_a_bool():
    with pytest.raises(ValueError, match="stratified must be one of False, True, got"):
        RandomSelector(stratified="class")
