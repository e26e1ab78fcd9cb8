"""The strategies produce what the properties are said to hold for."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import find as find_shortest
from hypothesis import strategies as st

from tests import reference
from tests.strategies import CLASSES, INPUT_FORMS, ground_sets, inputs, product_gradients

ONCE = settings(max_examples=2000, phases=[Phase.generate], database=None)


def find(strategy, is_wanted):
    return find_shortest(strategy, is_wanted, settings=ONCE)


def class_sizes(ground):
    return torch.unique(ground.labels, return_counts=True)[1].tolist()


CASES = {
    "duplicates": lambda g: len(torch.unique(g.features, dim=0)) < len(g.features),
    "duplicates across classes": lambda g: (
        len(torch.unique(g.features, dim=0))
        < len(torch.unique(torch.column_stack([g.features, g.labels]), dim=0))
    ),
    "ties between distinct rows": lambda g: (
        len(torch.unique(g.features, dim=0)) == len(g.features) >= 3
        and len(torch.unique(reference.pairwise(g.features)))
        < 1 + len(g.features) * (len(g.features) - 1) // 2
    ),
    "a constant feature beside another": lambda g: (
        g.features.shape[1] > 1
        and len(g.features) > 2
        and (g.features.std(0) == 0).any()
        and (g.features.std(0) > 0).any()
    ),
    "all constant": lambda g: len(g.features) > 2 and (g.features == g.features[0]).all(),
    "a class of one beside a larger": lambda g: {1, 3} <= set(class_sizes(g)),
    "one a class": lambda g: g.budget == len(class_sizes(g)) < len(g.labels),
    "everything": lambda g: g.budget == len(g.labels) > len(class_sizes(g)),
    "between": lambda g: len(class_sizes(g)) < g.budget < len(g.labels),
    "a negative label": lambda g: bool((g.labels < 0).any()) and len(class_sizes(g)) > 1,
    "labels with gaps": lambda g: {-7, 0, 3} <= set(g.labels.tolist()),
}


@pytest.mark.parametrize("case", CASES)
def test_ground_sets_include(case):
    found = find(ground_sets(), lambda ground: bool(CASES[case](ground)))
    assert set(found.labels.tolist()) <= set(CLASSES)


KINDS = [
    (dtype, kind)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for kind in (np.ndarray, torch.Tensor)
    if (dtype, kind) != (torch.bfloat16, np.ndarray)  # which numpy does not have
]


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_inputs_include(dtype, kind):
    def is_wanted(given):
        return isinstance(given[0], kind) and torch.as_tensor(given[0]).dtype == dtype

    find(ground_sets().flatmap(inputs), is_wanted)


def test_some_inputs_are_not_contiguous():
    assert "every other" in INPUT_FORMS
    find(
        ground_sets().flatmap(inputs),
        lambda given: isinstance(given[0], torch.Tensor) and not given[0].is_contiguous(),
    )


@given(st.data())
def test_inputs_hold_the_values_of_the_ground_set(data):
    ground = data.draw(ground_sets())
    features, labels = data.draw(inputs(ground))
    assert torch.equal(torch.as_tensor(features).detach().double(), ground.features)
    assert torch.equal(torch.as_tensor(labels).long(), ground.labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_include_equal_ones_of_factors_far_apart(dtype):
    def is_wanted(gradients):
        rows = reference.materialised(gradients)
        near = float((rows - rows[0]).abs().max()) < 1e-6
        return near and gradients.residual.dtype == dtype and float(gradients.residual.std()) > 0.1

    find(product_gradients(), is_wanted)
