"""Labels of a dataset: found without fetching an item, compared with items, of strange kinds."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from augsubset import (
    AugsubsetError,
    BatchSpec,
    GradientProbe,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
    doctor,
)
from augsubset.labels import find_labels, find_targets
from augsubset.reporting.summary import summarize

X, Y = torch.rand(3, 2), torch.tensor([2, 0, 1])


class Plain:
    """Has the attributes given, and fails if an item is fetched."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return vars(self).get("n", 3)

    def __getitem__(self, index):
        raise AssertionError("an item was fetched")


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(targets=[2, 0, 1]),
        Plain(labels=Y.numpy()),
        TensorDataset(X, Y),
        Subset(Plain(targets=[9, 1, 0, 2], n=4), [3, 2, 1]),
        ConcatDataset([Plain(targets=[2, 0, 1])]),
    ],
)
def test_labels_are_found_without_fetching(dataset):
    assert find_labels(dataset).tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_indices_of_a_subset_may_be_of_any_integer_dtype(dtype):
    """torch takes uint8 for a mask, and knows nothing of uint16."""
    subset = Subset(Plain(targets=[9, 1, 0, 2], n=4), np.array([3, 2, 1, 1], dtype))
    assert find_labels(subset).tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(),
        TensorDataset(X),
        TensorDataset(X, X),
        Plain(targets="train.csv"),
        Plain(labels=["cat", "dog", "cow"]),
        Plain(labels=[0, 1]),
        Plain(targets=[{"boxes": []}] * 3),
        Plain(targets=np.array([1, 0, 2], dtype=object)),
        Plain(labels=len),
        ConcatDataset([Plain(targets=[2, 0, 1]), Plain()]),
    ],
)
def test_datasets_that_do_not_offer_labels_give_none(dataset):
    assert find_labels(dataset) is None


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Plain(targets=[0.5, 1, 2]), [0.5, 1, 2]),
        (Plain(labels=[np.array([0.5, 1])] * 3), [[0.5, 1]] * 3),
        (TensorDataset(Y, X), X.tolist()),
        (Subset(TensorDataset(Y, X), [2, 0]), X[[2, 0]].tolist()),
        (ConcatDataset([Plain(targets=[0.5, 1, 2])] * 2), [0.5, 1, 2] * 2),
        (ConcatDataset([Plain(targets=[0.5, 1, 2]), TensorDataset(Y, X)]), None),
        (Plain(labels=["cat", "dog", "cow"]), None),
        (Plain(targets=[[0], [0, 1], [2]]), None),
        (Plain(targets=[0.5, 1]), None),
    ],
)
def test_targets_of_any_kind_are_found_without_fetching(dataset, expected):
    found = find_targets(dataset)
    assert (None if found is None else found.tolist()) == expected


N = 24
IMAGES = torch.randint(
    0, 256, (N, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
CLASSES = torch.arange(N) % 3


class Items:
    """Images with the labels given one by one; shows what else it is given."""

    def __init__(self, items, **shown):
        self.items = items
        vars(self).update(shown)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return IMAGES[index % N], self.items[index]


class Raising(Items):
    @property
    def labels(self):
        raise RuntimeError("not loaded")


class RaisingTargets(Items):
    @property
    def targets(self):
        raise KeyError("targets")


def make_model(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, outputs))


def make(data, model=None, **options):
    return SubsetAugmentLoader(
        DataLoader(data, batch_size=8, shuffle=True),
        make_model() if model is None else model,
        RandomOps.paper(),
        **{"fraction": 0.25, "copies": 2, **options},
    )


def mark(*unlabelled, by=-1, classes=CLASSES):
    """Return class ids with some examples unlabelled."""
    labels = classes.clone()
    labels[list(unlabelled)] = by
    return labels


def multi_label(logits, y):
    return F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none").sum(1)


def ignore(index, logits, y):
    return F.cross_entropy(logits, y, ignore_index=index, reduction="none")


def square(logits, y):
    return (logits.mean(1) - y.float()).square()


HUGE = 10**6
STRANGE = {  # dataset; loss of its probe, if it is not the default; number of classes; candidates
    "plain": (TensorDataset(IMAGES, CLASSES), None, 3, N),
    "-1": (TensorDataset(IMAGES, mark(0, 1, 9)), None, 3, N - 3),
    "-100": (TensorDataset(IMAGES, mark(0, 1, 9, by=-100)), None, 3, N - 3),
    "-1, read from items": (Items(mark(0, 5).tolist()), None, 3, N - 2),
    "-1, a loss of its own": (
        TensorDataset(IMAGES, mark(0, 1, 9)),
        partial(ignore, -1),
        3,
        N - 3,
    ),
    "-1, few labelled": (TensorDataset(IMAGES, mark(*range(20))), None, 3, 4),
    "huge ids": (TensorDataset(IMAGES, CLASSES * HUGE), square, 3, N),
    "gaps between ids": (TensorDataset(IMAGES, CLASSES // 2 * 2), None, 2, N),
    "uint8": (TensorDataset(IMAGES, CLASSES.to(torch.uint8)), None, 3, N),
    "int16 array": (Items(CLASSES.tolist(), targets=CLASSES.short().numpy()), None, 3, N),
    "0-d tensors": (Items(list(CLASSES)), None, 3, N),
    "a list of 0-d tensors": (Items(list(CLASSES), targets=list(CLASSES)), None, 3, N),
    "numpy scalars": (Items(list(CLASSES.numpy().astype(np.int32))), None, 3, N),
    "0-d arrays": (Items([np.array(y) for y in CLASSES.tolist()]), None, 3, N),
    "names beside": (Items(CLASSES.tolist(), targets=["cat"] * N), None, 3, N),
    "a raising property": (Raising(CLASSES.tolist(), targets=CLASSES.tolist()), None, 3, N),
    "a property that raises alone": (Raising(CLASSES.tolist()), None, 3, N),
    "labels beside raising targets": (RaisingTargets(CLASSES.tolist(), labels=CLASSES), None, 3, N),
    "targets of None": (Items(CLASSES.tolist(), targets=None, labels=CLASSES), None, 3, N),
    "other targets": (Items(CLASSES.tolist(), targets=(CLASSES + 5).tolist()), None, 3, N),
    "targets of a superset": (Items(CLASSES.tolist(), targets=torch.arange(N)), None, 3, N),
    "floats for regression": (TensorDataset(IMAGES, torch.rand(N, 3)), "mse", 1, N),
    "one-hot": (TensorDataset(IMAGES, F.one_hot(CLASSES).float()), "mse", 1, N),
    "several per row": (TensorDataset(IMAGES, F.one_hot(CLASSES).bool()), multi_label, 1, N),
}


@pytest.mark.parametrize("selector", [None, RandomSelector(), MaxLossSelector("class")])
@pytest.mark.parametrize("name", STRANGE)
def test_strange_labels_train_report_and_resume(name, selector):
    data, loss, num_classes, num_candidates = STRANGE[name]
    model = make_model()
    options = {"selector": selector, "weights": "cluster", "every": 1}
    if loss is not None:
        options["probe"] = GradientProbe(model, loss=loss)
    loader = make(data, model, **options)
    is_read = loader.info.classes is not None or loss is not None
    budget = max(num_classes, round((num_candidates if is_read else N) / 4))
    assert loader.plan.budget == budget
    assert sum(len(x) for x, *_ in loader) == N + 2 * budget
    if loader.info.classes is None:  # not shown, and not needed
        num_classes, num_candidates = 1, N
    assert (loader.info.num_classes, len(loader.info.candidates)) == (num_classes, num_candidates)
    chosen = loader.selection
    assert torch.isin(chosen.indices, loader.info.candidates).all()
    assert float(chosen.weights.sum()) == pytest.approx(num_candidates)
    state = loader.state_dict()
    assert sum(state["history"][0]["class_counts"]) == len(chosen)
    assert len(state["history"][0]["class_counts"]) == num_classes
    assert summarize(state)["class_sizes"] == loader.counts.class_sizes
    again = make(data, model, **options)
    again.load_state_dict(state)
    assert again.selection.digest == chosen.digest
    doctor(again, steps=1)


def test_labels_of_strings_are_refused_or_left_alone():
    data = Items(["cat"] * N)
    with pytest.raises(ValueError, match=r"one class index per example, got .*tuple"):
        make(data)
    for _, names in make(data, selector=RandomSelector()):
        assert set(names) == {"cat"}


def test_a_dataset_without_any_label_is_refused():
    with pytest.raises(ValueError, match="labels must name the class of at least one example"):
        make(TensorDataset(IMAGES, torch.full((N,), -1)), selector=RandomSelector())


def test_everything_without_unlabelled_examples_is_copied_at_fraction_1():
    loader = make(TensorDataset(IMAGES, mark(0, 9)), fraction=1.0)
    assert sum(len(x) for x, _ in loader) == N + 2 * (N - 2)
    assert sorted({0, 9, *loader.selection.indices.tolist()}) == list(range(N))


def test_concatenated_parts_whose_items_are_shifted_are_read_through():
    parts = ConcatDataset(
        [
            Items(CLASSES.tolist(), targets=CLASSES.tolist()),
            Items((CLASSES + 3).tolist(), targets=CLASSES.tolist()),
        ]
    )
    loader = make(parts, make_model(6))
    list(loader)  # the first probe tells
    assert loader.info.num_classes == 6
    assert loader.info.classes.tolist() == [*CLASSES.tolist(), *(CLASSES + 3).tolist()]


# Labels that change.


@pytest.mark.parametrize(
    "dataset",
    [
        lambda: TensorDataset(IMAGES, CLASSES),
        lambda: Subset(TensorDataset(IMAGES, CLASSES), range(N)),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_assigned_anew_are_seen_at_the_next_epoch(dataset, workers):
    data = dataset()
    model = make_model(4)
    loader = SubsetAugmentLoader(
        DataLoader(data, batch_size=8, num_workers=workers, persistent_workers=workers > 0),
        model,
        RandomOps.paper(),
        every=1,
        batch=BatchSpec(return_index=True),
    )
    for _ in range(2):
        for _, y, index in loader:
            assert torch.equal(y, CLASSES[index])
    inner = getattr(data, "dataset", data)
    if inner is not data and workers:
        return  # persistent workers keep a copy of any other dataset, as a plain DataLoader's do
    inner.tensors = (IMAGES.flip(0), (CLASSES + 1))
    for _, y, index in loader:
        assert torch.equal(y, CLASSES[index] + 1)
    assert loader.counts.classes == [1, 2, 3]
    assert loader.info.classes.tolist() == (CLASSES + 1).tolist()


@pytest.mark.parametrize("images", [IMAGES, IMAGES.flip(0)])
@pytest.mark.parametrize("classes", [CLASSES, CLASSES.flip(0)])
def test_nothing_recorded_of_other_tensors_is_recycled(images, classes):
    data, model = TensorDataset(IMAGES, CLASSES), make_model()
    options = LoaderOptions(recycle=2)
    loader = make(data, model, every=1, options=options)
    for epoch in range(3):
        if epoch == 2:
            data.tensors = (images, classes)
        for x, _ in loader:
            model(x)
    recycled = [e["num_recycled"] for e in loader.history if e["event"] == "selection"]
    assert recycled == [0, N, 0]


def test_classes_that_change_are_said(caplog):
    data = TensorDataset(IMAGES, CLASSES)
    loader = make(data, every=1)
    list(loader)
    data.tensors = (IMAGES, mark(0, classes=CLASSES // 2))
    list(loader)
    assert "the dataset now has 2 classes, not 3" in caplog.text
    assert 0 not in loader.selection.indices
    data.tensors = (IMAGES, torch.full((N,), -1))
    with pytest.raises(AugsubsetError, match="labels must name the class of at least one example"):
        list(loader)
    data.tensors = (IMAGES[1:], CLASSES[1:])
    with pytest.raises(AugsubsetError, match="must keep its length 24, got 23"):
        list(loader)


# How often a dataset without labels of its own is read.


class Counting(Items):
    """Counts what is fetched of it."""

    def __init__(self, items, **shown):
        super().__init__(items, **shown)
        self.count = 0

    def __getitem__(self, index):
        self.count += 1
        return super().__getitem__(index)


MANY = [index % 3 for index in range(200)]
FEW = 20  # two examples, and eight twice, at most


@pytest.mark.parametrize(
    ("shown", "options", "most"),
    [
        ({}, {"selector": RandomSelector()}, FEW),
        ({}, {"fraction": 1.0}, FEW),
        ({}, {"batch": BatchSpec(labels=torch.tensor(MANY))}, FEW),
        ({"targets": MANY}, {}, FEW),
        ({"targets": MANY}, {"selector": MaxLossSelector()}, FEW),
        ({}, {"selector": MaxLossSelector()}, FEW),
        ({}, {"fraction": 0.01}, FEW + 200),
    ],
)
def test_a_dataset_is_read_only_for_labels_that_are_needed(shown, options, most):
    data = Counting(MANY, **shown)
    loader = make(data, **options)
    assert data.count <= most
    data.count = 0
    for _, y in loader:
        assert set(y.tolist()) <= {0, 1, 2}
    assert data.count <= 200 + len(loader.plan)  # one probe


def test_labels_that_are_given_may_be_unlabelled_and_are_those_of_the_items():
    labels = mark(0, 1, 9)
    loader = make(Items(labels.tolist()), batch=BatchSpec(labels=labels), selector=RandomSelector())
    assert sum(len(x) for x, _ in loader) == len(loader.plan)
    assert len(loader.info.candidates) == N - 3
    assert torch.isin(loader.selection.indices, loader.info.candidates).all()


@pytest.mark.parametrize(
    ("labels", "error", "reason"),
    [
        (CLASSES[1:], ValueError, "labels must be the classes of the 24 items.*got 23 classes"),
        (CLASSES.flip(0), ValueError, "labels must be the classes of the 24 items"),
        (
            CLASSES.float(),
            TypeError,
            "labels must be a name, a position or a tensor of one integer",
        ),
    ],
)
def test_given_labels_that_are_not_the_items_are_refused(labels, error, reason):
    with pytest.raises(error, match=reason):
        make(Items(CLASSES.tolist()), batch=BatchSpec(labels=labels))


def test_labels_that_the_first_probe_tells_select_what_known_ones_do(caplog):
    labels = mark(5, 17).tolist()
    known = make(Items(labels, targets=labels), fraction=0.3)
    unknown = make(Items(labels), fraction=0.3)
    assert unknown.info.classes is None
    for loader in (known, unknown):
        assert sum(len(x) for x, _ in loader) == len(loader.plan)
    assert "2 of 24 examples are unlabelled" in caplog.text
    assert known.selection.digest == unknown.selection.digest
    assert known.history[0]["class_counts"] == unknown.history[0]["class_counts"]
    state = unknown.state_dict()
    again = make(Items(labels), fraction=0.3)
    again.load_state_dict(state)
    assert again.counts.class_sizes == known.counts.class_sizes
