"""Any data through the loader: other structures, other targets, other inputs, on the device."""

import copy
import re
import warnings
from typing import NamedTuple

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from augsubset import (
    BatchSpec,
    CoresetSelector,
    CropFlip,
    GradientProbe,
    KorniaModule,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentLoader,
    WeightedCoresetSampler,
    select_coreset,
)
from augsubset.utils.torch_utils import map_tensors
from tests.stand_in import OnDevice, StandInDevice

N = 40
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=GENERATOR)
Y = torch.arange(N) % 3


def make_model(width=108, outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(width, outputs))


def make(data, policy=None, *, model=None, collate_fn=None, **options):
    loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate_fn)
    options = {"fraction": 0.2, "copies": 2, **options}
    policy = RandomOps.paper() if policy is None else policy
    return SubsetAugmentLoader(loader, make_model() if model is None else model, policy, **options)


class Items(Dataset):
    """Items made by a function of the index."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.item(index)


class Pair(NamedTuple):
    image: torch.Tensor
    label: int
    path: str


REFERENCE = TensorDataset(X, Y)


# Batches that are mixtures.


def mix(x, y):
    y = F.one_hot(y, 3).float()
    return 0.7 * x.float() / 255 + 0.3 * x.flip(0).float() / 255, 0.7 * y + 0.3 * y.flip(0)


MIXING = {  # a collate function, and how its batches are described
    "MixUp": (lambda items: mix(*default_collate(items)), {}),
    "pairs": (lambda items: pair(*default_collate(items), nested=True), {}),
    "four parts": (lambda items: pair(*default_collate(items), nested=False), {}),
    "four parts, named": (
        lambda items: pair(*default_collate(items), nested=False),
        {"batch": BatchSpec(inputs=0, labels=1)},
    ),
}


def pair(x, y, *, nested):
    return (x, (y, y.flip(0), 0.7)) if nested else (x, y, y.flip(0), 0.7)


@pytest.mark.parametrize("selector", [None, RandomSelector()])
@pytest.mark.parametrize("mixing", MIXING)
def test_examples_mixed_by_the_collate_function_are_refused(mixing, selector):
    collate_fn, options = MIXING[mixing]
    with pytest.raises(ValueError, match=r"collate_fn must keep .*Mix in the loop, after"):
        make(REFERENCE, collate_fn=collate_fn, selector=selector, **options)


def test_mixed_labels_in_a_dict_are_refused():
    def collate(items):
        batch = default_collate(items)
        batch["image"], batch["label"] = mix(batch["image"], batch["label"])
        return batch

    data = Items(lambda i: {"image": X[i], "label": int(Y[i])})
    with pytest.raises(ValueError, match=r"floats of shape \(2, 3\): it seems to mix examples"):
        make(data, collate_fn=collate, selector=RandomSelector())


def test_a_collate_function_may_encode_labels():
    def collate(items):
        x, y = default_collate(items)
        return x, F.one_hot(y, 3).float()

    for _, y in make(REFERENCE, collate_fn=collate, selector=RandomSelector()):
        assert torch.equal(y.sum(1), torch.ones(len(y)))


@pytest.mark.parametrize(
    "item",
    [lambda i: (X[i], F.one_hot(Y[i], 3).float()), lambda i: (X[i], float(Y[i])), "a list of ints"],
)
def test_labels_that_are_soft_in_the_dataset_pass(item):
    def collate(items):
        images, labels = zip(*items, strict=True)
        return torch.stack(images), list(labels)

    data, collate_fn = (REFERENCE, collate) if isinstance(item, str) else (Items(item), None)
    loader = make(data, collate_fn=collate_fn, selector=RandomSelector())
    assert sum(len(x) for x, _ in loader) == len(loader.plan)


# Structures.


@pytest.mark.parametrize(
    ("item", "names", "get"),
    [
        (lambda i: (X[i], int(Y[i])), {}, lambda b: (b[0], b[1])),
        (lambda i: Pair(X[i], int(Y[i]), f"{i}"), {}, lambda b: (b.image, b.label)),
        (lambda i: (int(Y[i]), X[i], f"{i}"), {"inputs": 1, "labels": 0}, lambda b: (b[1], b[0])),
        (
            lambda i: {"scan": X[i], "label": int(Y[i]), "path": f"{i}"},
            {"inputs": "scan"},
            lambda b: (b["scan"], b["label"]),
        ),
    ],
)
def test_whole_batches_keep_their_structure_and_hold_the_same_values(item, names, get):
    expected = list(make(REFERENCE, weights="cluster"))
    loader = make(Items(item), weights="cluster", batch=BatchSpec(**names, whole=True))
    kinds = set()
    for (batch, w), (x, y, same_w) in zip(loader, expected, strict=True):
        kinds.add(type(batch))
        ours = get(batch)
        assert torch.equal(ours[0], x)
        assert torch.equal(ours[1], y)
        assert torch.equal(w, same_w)
    assert kinds == {type(default_collate([item(0), item(1)]))}
    parts = make(Items(item), weights="cluster", batch=BatchSpec(**names))
    for ours, theirs in zip(parts, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weights", ["uniform", "resample"])
def test_whole_batches_without_weights_are_the_users_own(weights):
    data = Items(lambda i: {"x": X[i], "y": int(Y[i])})
    for batch in make(data, weights=weights, batch=BatchSpec(whole=True)):
        assert set(batch) == {"x", "y"}
        assert len(batch["x"]) == len(batch["y"])


def test_return_index_names_each_row():
    for loader in (
        make(REFERENCE, batch=BatchSpec(return_index=True)),
        make(REFERENCE, batch=BatchSpec(return_index=True, whole=True)),
    ):
        for *_, index in loader:
            assert index.dtype == torch.int64
    seen = torch.zeros(N)
    blacken = lambda x, rows: torch.zeros_like(x)  # noqa: E731
    for x, y, index in make(REFERENCE, blacken, batch=BatchSpec(return_index=True)):
        original = x.flatten(1).sum(1) > 0
        assert torch.equal(x[original], X[index[original]].float() / 255)
        assert torch.equal(y, Y[index])
        seen += torch.bincount(index[original], minlength=N)
    assert seen.tolist() == [1.0] * N


# What goes with the images.


def test_masks_are_transformed_with_the_images():
    masks = (X[:, :1] > 127).float()
    flip = KorniaModule(
        K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"])
    )
    probe = GradientProbe(
        make_model(),
        loss=lambda logits, mask: F.mse_loss(logits, mask.flatten(1)[:, :3], reduction="none").mean(
            1
        ),
    )
    loader = make(
        TensorDataset(X, masks), flip, probe=probe, batch=BatchSpec(others=[1], return_index=True)
    )
    flipped = 0
    for x, mask, index in loader:
        for image, its_mask, i in zip(x, mask, index.tolist(), strict=True):
            original = X[i].float() / 255
            turned = not torch.equal(image, original)
            expected = original.flip(-1) if turned else original
            torch.testing.assert_close(image, expected)
            assert torch.equal(its_mask, masks[i].flip(-1) if turned else masks[i])
            flipped += turned
    assert flipped == 16  # 8 selected of one group, two copies


def test_ragged_boxes_travel_with_their_images():
    boxes = [torch.arange(4.0 * (1 + i % 3)).view(-1, 4) for i in range(N)]

    def collate(items):
        return torch.stack([x for x, _ in items]), [{"boxes": box} for _, box in items]

    def shift(x, rows, targets):
        return x, [{"boxes": target["boxes"] + 100} for target in targets]

    data = Items(lambda i: (X[i], boxes[i]))
    loader = make(
        data,
        shift,
        collate_fn=collate,
        selector=RandomSelector(),
        batch=BatchSpec(others=[1], return_index=True),
    )
    shifted = 0
    for _, targets, index in loader:
        for target, i in zip(targets, index.tolist(), strict=True):
            moved = bool((target["boxes"] >= 100).all())
            assert torch.equal(target["boxes"], boxes[i] + 100 * moved)
            shifted += moved
    assert shifted == 16


@pytest.mark.parametrize("policies", [{}, {"policy": lambda x, rows: x, "base": CropFlip(2)}])
def test_labels_per_pixel_move_with_their_images_or_are_refused(policies):
    """Each pixel's label is its value, whatever moves: 0 outside."""
    masks = X[:, 0].long()
    x = X[:, :1].expand(-1, 3, -1, -1).contiguous()
    options = {"policy": RandomOps(["rotate", "shear_x"], 2), "selector": RandomSelector()}
    options |= policies
    with pytest.raises(ValueError, match=r"others must name the labels 1.*others=\[1\]"):
        make(TensorDataset(x, masks), **options)
    if "base" in options:
        options["policy"] = lambda x, rows, mask: (x, mask)
    loader = make(TensorDataset(x, masks), batch=BatchSpec(others=[1]), **options)
    for images, mask in loader:
        assert torch.equal((images[:, 0] * 255).round().long(), mask)
    still = make(TensorDataset(x, masks), RandomOps.noise(), selector=RandomSelector())
    assert sum(len(mask) for _, mask in still) == len(still.plan)


SIZES = Items(lambda i: (X[i, :, : 4 + i % 3], int(Y[i])))


def collate_list(items):
    return [x for x, _ in items], torch.tensor([y for _, y in items])


def test_a_policy_may_work_in_place_on_images_of_several_sizes():
    """On copies of the images that the dataset holds, where it is tried as well as in training."""
    before = X.clone()
    loader = make(
        SIZES,
        lambda x, rows: [image.zero_() for image in x],
        collate_fn=collate_list,
        selector=RandomSelector(),
        options=LoaderOptions(layout="grouped"),
    )
    assert torch.equal(X, before)
    black = sum(bool((x == 0).all()) for images, _ in loader for x in images)
    assert black == loader.history[-1]["num_copies"]
    assert torch.equal(X, before)


@pytest.mark.parametrize(
    ("policy", "error", "reason"),
    [
        (RandomOps.paper(), TypeError, r"images must be one tensor .* got list\. Give images one"),
        (CropFlip(1), TypeError, r"images must be one tensor .* got list\."),
        (KorniaModule(K.RandomAffine(10)), TypeError, r"images must be one tensor .* got list\."),
        (lambda x, rows: (x, rows), ValueError, "rows of the inputs, list of 2, got tuple of 2"),
        (lambda x, rows: x[1:], ValueError, "rows of the inputs, list of 2, got list of 1"),
    ],
)
def test_what_a_policy_cannot_do_to_images_of_several_sizes_is_said(policy, error, reason):
    with pytest.raises(error, match=reason):
        make(SIZES, policy, collate_fn=collate_list, selector=RandomSelector())


def darken(picture):
    picture.paste(picture.point(lambda value: value // 2))
    return pil_to_tensor(picture)


@pytest.mark.parametrize(
    "take",
    [
        lambda item: item.pop("x"),
        lambda item: item["nested"].pop(0),
        lambda item: item["nested"][1][0].div_(2, rounding_mode="floor"),
        lambda item: darken(item["picture"]),
    ],
    ids=["dict", "list", "nested", "picture"],
)
def test_a_collate_function_may_work_in_place_on_containers(take):
    """Each row of an example has containers of its own."""

    def make_item(i):
        nested = [X[i].clone(), (X[i].clone(),)]
        return {"x": X[i].clone(), "nested": nested, "picture": to_pil_image(X[i]), "y": Y[i]}

    def in_place(items):
        return torch.stack([take(item) for item in items]), torch.stack([i["y"] for i in items])

    def apart(items):
        return in_place([copy.deepcopy(item) for item in items])

    options = {"selector": RandomSelector(), "options": LoaderOptions(layout="grouped")}
    ours, expected = (make(Items(make_item), collate_fn=fn, **options) for fn in (in_place, apart))
    for (x, y), (same_x, same_y) in zip(ours, expected, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)


def test_a_policy_that_loses_what_goes_along_is_refused():
    with pytest.raises(ValueError, match="augment must return the 2 parts it got"):
        make(REFERENCE, lambda x, rows, y: x, batch=BatchSpec(others=[1]))
    with pytest.raises(TypeError, match="does not take two arguments and 1 others"):
        make(REFERENCE, lambda x, rows: x, batch=BatchSpec(others=[1]))


# Other inputs.


class Tagged(torch.Tensor):
    """A tensor that knows where it is from, which operations keep, like MONAI's MetaTensor."""

    source = None

    def __new__(cls, values, source):
        tensor = torch.as_tensor(values).as_subclass(cls)
        tensor.source = source
        return tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs)
        if isinstance(found, cls):
            found.source = "a batch"
        return found


def make_meta_tensor(values, source):
    monai = pytest.importorskip("monai.data")
    return monai.MetaTensor(values, meta={"filename_or_obj": source})


@pytest.mark.parametrize("kind", [Tagged, make_meta_tensor])
@pytest.mark.parametrize("selector", [None, RandomSelector()])
def test_images_of_a_tensor_subclass_are_images(kind, selector):
    expected = make(REFERENCE, selector=selector, base=CropFlip(1))
    data = Items(lambda i: (kind(X[i], f"{i}.png"), int(Y[i])))
    data.targets = Y
    loader = make(data, selector=selector, base=CropFlip(1))
    for (x, y), (same, also) in zip(loader, expected, strict=True):
        assert torch.equal(torch.Tensor(x), same)
        assert torch.equal(y, also)


class Table(Dataset):
    """Columns whose rows go through a transform in batches, like those of Hugging Face datasets."""

    def __init__(self, columns):
        self.columns, self.transform = columns, lambda rows: rows

    def set_transform(self, transform):
        self.transform = transform

    def __len__(self):
        return len(self.columns["label"])

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        rows = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        rows = self.transform(rows)
        return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]


def make_table(columns):
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


@pytest.mark.parametrize("kind", [Table, make_table])
def test_a_table_whose_rows_are_transformed_when_they_are_read(kind):
    data = kind({"place": list(range(N)), "label": Y.tolist()})
    data.set_transform(
        lambda rows: {"image": [X[i] for i in rows["place"]], "label": rows["label"]}
    )
    for (x, y), (same, also) in zip(make(data), make(REFERENCE), strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, also)


def test_text_is_augmented_by_a_plain_callable():
    ids = torch.randint(1, 50, (N, 12), generator=GENERATOR)
    model = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 3))

    def blank(ids, rows):
        return torch.zeros_like(ids)

    loader = make(TensorDataset(ids, Y), blank, model=model, batch=BatchSpec(return_index=True))
    for x, _, index in loader:
        assert x.dtype == torch.int64
        original = (x > 0).all(1)
        assert torch.equal(x[original], ids[index[original]])
        assert bool((x[~original] == 0).all())


def test_several_inputs_reach_model_and_policy_as_a_dict():
    ids = torch.randint(1, 50, (N, 12), generator=GENERATOR)
    mask = torch.ones(N, 12)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask):
            return self.head((self.embed(input_ids) * attention_mask[..., None]).mean(1))

    model = Tagger()
    data = Items(lambda i: {"input_ids": ids[i], "attention_mask": mask[i], "label": int(Y[i])})

    def hide(x, rows):
        return {**x, "attention_mask": torch.zeros_like(x["attention_mask"])}

    loader = make(
        data,
        hide,
        model=model,
        probe=GradientProbe(model, forward=lambda model, x: model(**x)),
        batch=BatchSpec(inputs=["input_ids", "attention_mask"], whole=True),
    )
    hidden = 0
    for batch in loader:
        model(batch["input_ids"], batch["attention_mask"])
        hidden += int((batch["attention_mask"] == 0).all(1).sum())
    assert hidden == 2 * len(loader.selection) == 16


@pytest.mark.parametrize("inputs", ["x", ["x", "again"]])
def test_targets_that_are_the_inputs_stay_as_they_are(inputs):
    """An autoencoder that learns to undo the augmentation."""
    data = Items(lambda i: {"x": X[i], "again": X[i]})
    spec = BatchSpec(inputs=inputs, labels="x", return_index=True)
    policy = RandomOps(["invert"], 1) if inputs == "x" else lambda x, rows: {**x, "x": 255 - x["x"]}
    loader = make(data, policy, selector=RandomSelector(), originals="none", batch=spec)
    for x, y, index in loader:
        assert torch.equal(y, X[index])
        if inputs == "x":
            assert torch.equal(x, (255 - X[index]) / 255)
        else:
            assert torch.equal(x["x"], 255 - X[index])


def test_tabular_floats_may_be_anything():
    table = torch.randn(N, 7, generator=GENERATOR) * 100
    model = nn.Linear(7, 3)
    loader = make(TensorDataset(table, Y), lambda x, rows: x + 1, model=model, originals="none")
    for x, _ in loader:
        assert x.shape[1] == 7
        assert all(bool((table + 1 == row).all(1).any()) for row in x)


# Other targets.


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 2)])
def test_regression_selects_in_one_group_by_squared_loss(shape):
    target = torch.randn(shape, generator=GENERATOR)
    model = make_model(outputs=target.flatten(1).shape[1] if target.ndim > 1 else 1)
    loader = make(TensorDataset(X, target), model=model, probe=GradientProbe(model, loss="mse"))
    list(loader)
    with torch.no_grad():
        residual = model(X.float() / 255) - target.view(N, -1)
    expected = select_coreset(residual, budget=8)
    assert torch.equal(loader.selection.indices, expected.indices)
    found = GradientProbe(model, loss="mse").scan(TensorDataset(X.float() / 255, target))
    torch.testing.assert_close(found.losses, 0.5 * residual.square().sum(1))


def test_multi_label_goes_through_a_loss_of_ones_own():
    target = (torch.rand(N, 3, generator=GENERATOR) > 0.5).float()
    model = make_model()

    def loss(logits, target):
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    loader = make(TensorDataset(X, target), model=model, probe=GradientProbe(model, loss=loss))
    list(loader)
    with torch.no_grad():
        residual = torch.sigmoid(model(X.float() / 255)) - target
    assert torch.equal(loader.selection.indices, select_coreset(residual, budget=8).indices)


def test_per_pixel_outputs_go_through_forward_and_loss():
    masks = (X[:, 0] > 127).long()
    model = nn.Conv2d(3, 2, 1)
    probe = GradientProbe(
        model,
        forward=lambda model, x: model(x).flatten(1),
        loss=lambda logits, mask: F.cross_entropy(
            logits.view(-1, 2, 6, 6), mask, reduction="none"
        ).mean((1, 2)),
    )
    data = TensorDataset(X, masks)
    loader = make(data, model=model, probe=probe, batch=BatchSpec(others=[1]))
    for _, mask in loader:
        assert mask.shape[1:] == (6, 6)
    assert len(loader.selection) == 8


@pytest.mark.parametrize("target", [torch.rand(N), torch.rand(N, 3), torch.zeros(N, 6, 6).long()])
def test_targets_that_cross_entropy_does_not_know_are_refused_with_the_reason(target):
    with pytest.raises(ValueError, match=r'one class index.*loss="mse".*a callable as its loss='):
        make(TensorDataset(X, target))


def test_class_labels_beside_a_regression_of_another_width_are_refused():
    model = make_model(outputs=2)
    with pytest.raises(ValueError, match=r"labels must be one value per model output \(2, 2\)"):
        make(TensorDataset(X, torch.rand(N)), model=model, probe=GradientProbe(model, loss="mse"))


# On the device.


@pytest.mark.parametrize("layout", ["mixed", "grouped"])
@pytest.mark.parametrize("weights", ["uniform", "cluster", "resample"])
def test_resident_data_gives_the_same_batches(layout, weights):
    ours, theirs = (
        make(
            REFERENCE,
            weights=weights,
            base=CropFlip(1),
            every=1,
            options=LoaderOptions(resident=resident, layout=layout),
        )
        for resident in (True, False)
    )
    for _ in range(2):
        for batch, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("resident", [False, True])
def test_tensors_are_gathered_and_never_fetched_one_by_one(monkeypatch, resident):
    loader = make(REFERENCE, options=LoaderOptions(resident=resident))
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda *_: pytest.fail("fetched an item"))
    list(loader)


def test_tensors_gathered_at_once_are_what_their_items_would_be():
    class Fetched(TensorDataset):
        """A subclass may do anything in __getitem__, so its items are fetched."""

    three = (X, Y, torch.rand(N, 2, generator=GENERATOR))
    options = {
        "batch": BatchSpec(inputs=0, labels=1, whole=True),
        "copies": 3,
        "weights": "cluster",
        "options": LoaderOptions(layout="grouped"),
    }
    for ours, theirs in zip(
        make(TensorDataset(*three), **options), make(Fetched(*three), **options), strict=True
    ):
        (batch, w), (other, same_w) = ours, theirs
        assert type(batch) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
        assert torch.equal(w, same_w)


def test_labels_are_gathered_with_a_bar_when_asked(capsys):
    data = Items(lambda i: (X[i], int(Y[i])))
    make(data, progress=True)  # the first probe is early enough
    assert "gathering labels" not in capsys.readouterr().err
    make(data, progress=True, fraction=0.05)
    assert "gathering labels" in capsys.readouterr().err
    make(REFERENCE, progress=True)
    assert "gathering labels" not in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.parametrize("resident", [False, True])
def test_one_side_stream_for_the_life_of_the_loader_gives_the_same_batches(resident):
    ours = make(
        REFERENCE, model=make_model().cuda(), every=1, options=LoaderOptions(resident=resident)
    )
    theirs = make(REFERENCE, model=make_model().cuda(), every=1)
    theirs.pipeline.prefetch = lambda batches, device: batches
    streams = set()
    for _ in range(3):
        for batch, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
        streams.add(ours.pipeline._stream)
    (stream,) = streams
    assert stream is not None
    assert stream != torch.cuda.current_stream()


@pytest.mark.cuda
@pytest.mark.parametrize("held", ["resident", "pinned", "pageable"])
def test_an_epoch_never_waits_for_the_device(held):
    """Between its first batch, before which a selection is made, and its last."""
    model = make_model().cuda()
    plain = DataLoader(REFERENCE, batch_size=8, shuffle=True, pin_memory=held == "pinned")
    loader = SubsetAugmentLoader(
        plain,
        model,
        RandomOps.paper(),
        fraction=0.5,
        copies=2,
        base=CropFlip(1),
        normalize=([0.5] * 3, [0.2] * 3),
        options=LoaderOptions(resident=held == "resident"),
    )
    for epoch in range(2):  # in the first, tables and statistics are sent once
        batches = iter(loader)
        next(batches)
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for _ in range(len(loader) - 2):
                x, y = next(batches)
                F.cross_entropy(model(x), y).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        batches.close()


# Whose memory a batch is.


def collated_views(items):
    """Return views of the dataset's own tensors, as a collate function of your own may."""
    (x, y) = items[0]
    return x[None], torch.tensor([y])


def test_a_collate_functions_views_are_left_alone():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
    before = x.clone()
    dataset = [(x[i], i % 2) for i in range(12)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    plain = DataLoader(dataset, 1, shuffle=True, collate_fn=collated_views)
    for _ in SubsetAugmentLoader(plain, model, RandomOps.paper(), fraction=1.0, copies=2):
        pass
    assert torch.equal(x, before)


@pytest.mark.parametrize("layout", ["mixed", "grouped"])
@pytest.mark.parametrize("kind", ["list", "tensors"])
def test_a_dataset_is_left_alone_whose_batches_are_written_to(layout, kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
    before = x.clone()
    y = torch.arange(12) % 2
    dataset = TensorDataset(x, y) if kind == "tensors" else list(zip(x, y.tolist(), strict=True))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    options = {"fraction": 1.0, "copies": 2, "options": LoaderOptions(layout=layout)}
    for _ in SubsetAugmentLoader(DataLoader(dataset, 6), model, RandomOps.paper(), **options):
        pass
    assert torch.equal(x, before)


# Tensors on an accelerator, on a stand-in for one.


def yielded(loader):
    return [batch for _ in range(2) for batch in loader]


def assert_equal_batches(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert type(a) is torch.Tensor
            assert torch.equal(a, b)


ON_DEVICE = {
    "images and labels": lambda: TensorDataset(OnDevice(X), OnDevice(Y)),
    "images": lambda: TensorDataset(OnDevice(X), Y),
    "labels": lambda: TensorDataset(X, OnDevice(Y)),
    "items": lambda: Items(lambda i: (OnDevice(X[i]), OnDevice(Y[i]))),
}


@pytest.mark.parametrize("name", ON_DEVICE)
def test_a_dataset_on_an_accelerator_yields_what_one_on_the_cpu_does(name):
    with StandInDevice():
        loader = make(ON_DEVICE[name](), every=1)
        found = yielded(loader)
    expected = make(TensorDataset(X, Y), every=1)
    assert_equal_batches(found, yielded(expected))
    assert loader.info.digest == expected.info.digest  # so a state goes from one to the other


def test_a_state_that_was_read_onto_an_accelerator_is_taken_over():
    options = {"every": 1, "weights": "cluster", "options": LoaderOptions(recycle=1)}
    whole = make(TensorDataset(X, Y), **options)
    running = iter(whole)
    for _ in range(3):
        next(running)
    state = whole.state_dict()
    resumed = make(TensorDataset(X, Y), **options)
    with StandInDevice():
        resumed.load_state_dict(map_tensors(OnDevice, state))
        found = yielded(resumed)
    assert_equal_batches(found, [*running, *whole])


def test_a_selection_made_on_an_accelerator_is_kept_on_the_cpu():
    with StandInDevice():
        moved = Selection.equally_weighted(OnDevice(torch.tensor([3, 1])), N)
        sampler = WeightedCoresetSampler(TensorDataset(X, Y), moved, weights="cluster")
        keys = OnDevice(torch.tensor(list(sampler)))
        weights = sampler.weights_for(keys)
    kept = Selection.equally_weighted(torch.tensor([3, 1]), N)
    assert moved.digest == kept.digest
    assert weights.device == keys.device
    assert sorted(set(weights.cpu().tolist())) == [1, N / 2]


RARE = torch.tensor([0] * 20 + [1] * 17 + [2] * 2 + [3])


@pytest.mark.parametrize(
    "data",
    [TensorDataset(X, RARE), Items(lambda index: (X[index], int(RARE[index])))],
    ids=["labels known", "labels read"],
)
@pytest.mark.parametrize(
    "selector",
    [CoresetSelector(), RandomSelector(stratified=True), MaxLossSelector("class")],
    ids=lambda selector: type(selector).__name__,
)
def test_every_class_is_selected_from_in_any_seed(data, selector):
    model = make_model(outputs=4)
    for seed in range(20):
        loader = make(data, model=model, seed=seed, fraction=0.1, selector=selector)
        assert sorted(RARE[loader.reselect().indices].tolist()) == [0, 1, 2, 3]


def test_a_random_subset_may_leave_a_class_out():
    data = TensorDataset(X, RARE)
    loaders = [make(data, seed=s, fraction=0.1, selector=RandomSelector()) for s in range(20)]
    assert any(len(RARE[loader.reselect().indices].unique()) < 4 for loader in loaders)


# What the loop does to images that the model then gets.

MEANS, STDS = [0.4, 0.5, 0.3], [0.2, 0.25, 0.5]


def normalise(x):
    return (x - torch.tensor(MEANS)[:, None, None]) / torch.tensor(STDS)[:, None, None]


IN_THE_LOOP = {
    "nothing": (lambda x: x, False),
    "a copy in another memory format": (
        lambda x: x.clone(memory_format=torch.channels_last),
        False,
    ),
    "rounding": (lambda x: x.bfloat16().float(), False),
    "mixup": (lambda x: 0.7 * x + 0.3 * x.flip(0), False),
    "another size": (lambda x: x[:, :, 1:], False),
    "contrast of each image": (
        lambda x: x * torch.linspace(0.5, 1, len(x))[:, None, None, None],
        False,
    ),
    "normalised": (normalise, True),
    "normalised in place": (lambda x: x.copy_(normalise(x)), True),
    "normalised in bfloat16": (lambda x: normalise(x).bfloat16().float(), True),
    "back to 255": (lambda x: x * 255, True),
    "divided twice": (lambda x: x / 255, True),
}


@pytest.mark.parametrize("see_others", [False, True])
@pytest.mark.parametrize("name", IN_THE_LOOP)
def test_normalisation_in_the_loop_is_warned_of_once(name, see_others):
    change, is_warned = IN_THE_LOOP[name]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    loader = make(TensorDataset(X, Y), selector=RandomSelector(), model=model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for x, _ in loader:
                model.eval()(x)
                if see_others:  # an unlabelled batch, in a semi-supervised loop
                    model.train()(torch.rand(3, 3, 6, 6))
                model.train()(change(x))
    assert len(caught) == is_warned
    assert not model._forward_pre_hooks
    if is_warned:
        assert ("Take / 255 out" in str(caught[0].message)) == (name == "divided twice")
    if name.startswith("normalised"):
        numbers = re.findall(r"\d\.\d+", str(caught[0].message))
        assert [float(number) for number in numbers] == pytest.approx(MEANS + STDS, abs=0.01)


def test_no_training_pass_leaves_no_hook_behind():
    model = make_model()
    loader = make(TensorDataset(X, Y), model=model)
    next(iter(loader))
    loader.close()
    assert not model._forward_pre_hooks
    with pytest.warns(UserWarning, match="scaled and shifted further"):  # looked at all the same
        [model(255 * x) for x, _ in loader]


def test_a_probe_with_a_forward_of_its_own_may_normalise_too():
    model = make_model()
    probe = GradientProbe(model, forward=lambda model, x: model(normalise(x)))
    for x, _ in make(TensorDataset(X, Y), model=model, probe=probe):
        model(normalise(x))  # no warning, which would be an error here


# Models of half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("data", [X, X.float() / 255])
def test_a_model_of_half_precision_is_probed_and_gets_its_own_dtype(data, dtype):
    loader = make(TensorDataset(data, Y), model=make_model().to(dtype), normalize=(MEANS, STDS))
    for x, _ in loader:
        assert x.dtype == dtype
        assert loader.model(x).dtype == dtype
    assert loader.selection.certificate is not None
    options = {"selector": RandomSelector(), "normalize": (MEANS, STDS)}
    full = make(TensorDataset(data, Y), **options)
    half = make(TensorDataset(data, Y), model=make_model().to(dtype), **options)
    for (x, _), (expected, _) in zip(half, full, strict=True):
        assert torch.equal(x, expected.to(dtype))


def test_an_option_says_which_dtype_the_model_gets():
    probe = GradientProbe(make_model().bfloat16(), forward=lambda model, x: model(x.bfloat16()))
    options = LoaderOptions(dtype=torch.float32)
    loader = make(TensorDataset(X, Y), model=probe.model, probe=probe, options=options)
    assert {x.dtype for x, _ in loader} == {torch.float32}
    options = LoaderOptions(dtype=torch.half)
    loader = make(TensorDataset(X, Y), selector=RandomSelector(), options=options)
    assert {x.dtype for x, _ in loader} == {torch.float16}
    with pytest.raises(ValueError, match="dtype must be one of"):
        LoaderOptions(dtype=torch.int64)


def test_a_probe_alone_gives_a_model_of_half_precision_its_dtype():
    half = make_model().bfloat16()
    found = GradientProbe(half, kind="last_layer").scan(TensorDataset(X.float() / 255, Y))
    expected = GradientProbe(half.float()).scan(TensorDataset(X.float() / 255, Y))
    assert found.residual.dtype == torch.float32
    torch.testing.assert_close(found.residual, expected.residual, rtol=0, atol=0.02)
