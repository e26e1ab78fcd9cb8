"""Ground sets on an integer grid, so that ties and duplicates occur and distances are exact."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from augsubset import LastLayerGradients


@dataclass(frozen=True)
class LabelledGroundSet:
    features: torch.Tensor  # (n, d) float64
    labels: torch.Tensor  # (n,) int64
    budget: int  # between the number of classes and n

    @property
    def gradients(self) -> LastLayerGradients:
        return LastLayerGradients.from_residual(self.features, self.labels)

    def members(self, label: int) -> torch.Tensor:
        return (self.labels == label).nonzero().squeeze(1)


@st.composite
def grid_features(draw, min_size=1, max_size=12):
    """(n, d) float64 of small integers: duplicates and equal distances are common."""
    n = draw(st.integers(min_size, max_size))
    d = draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(values, dtype=torch.float64).reshape(n, d)


CLASSES = (-7, 0, 3, 1000)  # neither contiguous nor positive


@st.composite
def ground_sets(draw, max_size=12, max_classes=3):
    """Ties, duplicates, constant features, classes of one example, any budget up to n."""
    features = draw(grid_features(1, max_size))
    if draw(st.booleans()) and draw(st.booleans()):
        features[:, draw(st.integers(0, features.shape[1] - 1))] = 2.0
    n = len(features)
    among = st.sampled_from(CLASSES[:max_classes])
    labels = draw(st.lists(among, min_size=n, max_size=n))
    budget = draw(st.one_of(st.just(len(set(labels))), st.integers(len(set(labels)), n)))
    return LabelledGroundSet(features, torch.tensor(labels), budget)


@st.composite
def tie_free_ground_sets(draw, max_size=30, max_classes=3):
    """Continuous features: no two distances are equal."""
    n = draw(st.integers(2, max_size))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(n, draw(st.integers(2, 4)))))
    labels = torch.from_numpy(rng.integers(0, max_classes, n))
    budget = draw(st.integers(len(torch.unique(labels)), n))
    return LabelledGroundSet(features, labels, budget)


INPUT_FORMS: dict[str, Callable] = {
    "torch": lambda features, labels: (features, labels),
    "numpy": lambda features, labels: (features.numpy(), labels.numpy()),
    "transposed": lambda features, labels: (features.T.contiguous().T, labels),
    "every other": lambda features, labels: (
        features.repeat_interleave(2, 0)[::2],
        labels.repeat_interleave(2).numpy()[::2],
    ),
    "with gradient": lambda features, labels: (features.clone().requires_grad_(), labels),
}


@st.composite
def inputs(draw, ground):
    """A ground set's features and labels as a caller may hold them; small integers stay exact."""
    features = ground.features.to(
        draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    )
    form = draw(st.sampled_from(list(INPUT_FORMS)))
    if features.dtype == torch.bfloat16 and form == "numpy":  # which numpy does not have
        form = "torch"
    labels = ground.labels.to(draw(st.sampled_from([torch.int16, torch.int32, torch.int64])))
    return INPUT_FORMS[form](features, labels)


PRODUCTS: dict[str, Callable] = {
    "alike": lambda rng, n: (rng.normal(size=(n, 2)), rng.normal(size=(n, 3))),
    # Equal up to rounding as products, far apart as factors.
    "reciprocal": lambda rng, n: (a := rng.uniform(0.5, 2, (n, 1)), 1 / a),
    # A perfect prediction of a large input.
    "no residual, large input": lambda rng, n: (
        np.where(np.arange(n)[:, None] < n // 2, 0.0, rng.normal(size=(n, 2))),
        np.where(np.arange(n)[:, None] < n // 2, 1e9, 1.0) * rng.normal(size=(n, 2)),
    ),
}


@st.composite
def product_gradients(draw, kinds=tuple(PRODUCTS), max_size=8):
    """One class of residual times input: no two distances are equal but for rounding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, max_size))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    residual, given = (
        torch.from_numpy(part.astype(dtype))
        for part in PRODUCTS[draw(st.sampled_from(kinds))](rng, n)
    )
    zeros = torch.zeros(n)
    return LastLayerGradients(residual, given, zeros.long(), torch.arange(n), zeros)
