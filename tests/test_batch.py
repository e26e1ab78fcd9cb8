"""BatchSpec: finding inputs and labels, taking a batch apart and putting it together."""

from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

from augsubset import BatchSpec
from augsubset.batch import put_rows, split_batch, take_rows
from augsubset.utils.torch_utils import map_tensors

X, Y = torch.rand(3, 2), torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y.int()],
        {"image": X, "label": Y},
        {"pixel_values": X, "labels": Y, "path": ["a", "b", "c"]},
    ],
)
def test_usual_batches_are_split(batch):
    x, y = split_batch(batch)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert y.dtype == torch.int64


def test_keys_can_be_named():
    x, y = BatchSpec("scan", "class").split({"scan": X, "class": Y, "label": X})[:2]
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    ("batch", "error", "reason"),
    [
        (X, TypeError, "batches must be .inputs, labels. pairs or mappings, got Tensor"),
        ((X,), TypeError, "got tuple of 1 parts. If labels are missing"),
        ((X, Y, Y), TypeError, "got tuple of 3 parts"),
        ((X, Y[:2]), ValueError, "labels must have as many rows as the inputs, 3, got 2"),
        (
            {"scan": X, "label": Y},
            ValueError,
            r"inputs must be found among .*Pass batch=BatchSpec.inputs=",
        ),
        (
            {"image": X, "label": Y, "target": Y},
            ValueError,
            r"labels must be found .*Pass batch=BatchSpec.labels=",
        ),
    ],
)
def test_other_batches_are_refused(batch, error, reason):
    with pytest.raises(error, match=reason):
        split_batch(batch)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"inputs must name a part of the batch \['image'"):
        BatchSpec("img").split({"image": X, "label": Y})
    with pytest.raises(ValueError, match=r"every part must name a part of the batch .*'mask'"):
        BatchSpec(others=["mask"]).split((X, Y))


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Sample(NamedTuple):
    path: list
    image: torch.Tensor
    label: torch.Tensor


NEW = -X


@pytest.mark.parametrize(
    ("parts", "batch", "whole"),
    [
        (BatchSpec(), (X, Y), (NEW, Y)),
        (BatchSpec(), [X, Y], [NEW, Y]),
        (BatchSpec(), Pair(X, Y), Pair(NEW, Y)),
        (BatchSpec(), Sample(["a"] * 3, X, Y), Sample(["a"] * 3, NEW, Y)),
        (BatchSpec(2, 0), (Y, "path", X), (Y, "path", NEW)),
        (BatchSpec(1, 2), Sample(["a"] * 3, X, Y), Sample(["a"] * 3, NEW, Y)),
        (BatchSpec("scan"), {"scan": X, "label": Y, "n": 3}, {"scan": NEW, "label": Y, "n": 3}),
    ],
)
def test_a_batch_is_put_together_again_in_its_own_type(parts, batch, whole):
    split = parts.split(batch)
    assert split.inputs is X
    assert torch.equal(split.labels, Y)
    joined = parts.join(batch, split._replace(inputs=NEW))
    assert type(joined) is type(batch)
    assert str(joined) == str(whole)


def test_several_inputs_are_a_dict_and_go_back_to_their_places():
    parts = BatchSpec(["ids", "mask"], "label")
    batch = {"ids": Y, "mask": X, "label": Y, "other": 1}
    split = parts.split(batch)
    assert set(split.inputs) == {"ids", "mask"}
    joined = parts.join(batch, split._replace(inputs={"ids": Y + 1, "mask": NEW}))
    assert torch.equal(joined["ids"], Y + 1)
    assert torch.equal(joined["mask"], NEW)
    assert torch.equal(batch["ids"], Y)


def test_rows_of_tensors_lists_and_dicts_are_taken_and_put_back():
    at = torch.tensor([2, 0])
    part = {"x": X, "boxes": [torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)]}
    taken = take_rows(part, at, at)
    assert torch.equal(taken["x"], X[at])
    assert [len(box) for box in taken["boxes"]] == [3, 1]
    before = X.clone()
    back = put_rows(part, at, at, map_tensors(torch.neg, taken), in_place=False)
    assert torch.equal(part["x"], before)
    assert torch.equal(back["x"][1], X[1])
    assert torch.equal(back["x"][0], -X[0])
    assert torch.equal(back["boxes"][2], torch.full((3,), -2.0))
    assert torch.equal(part["boxes"][2], torch.full((3,), 2.0))
    own = X.clone()
    same = put_rows(own, at, at, map_tensors(torch.neg, taken)["x"], in_place=True)
    assert same is own
    assert torch.equal(own, back["x"])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        torch.randint(0, 256, (6, 3, 5), dtype=torch.uint8),
        torch.rand(6, 3).bfloat16(),
        torch.rand(6) > 0.5,
        torch.rand(6, 2, dtype=torch.float64),
        torch.rand(6, 2, dtype=torch.complex128),
        torch.rand(4, 6).T,
        torch.rand(6, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.rand(6, 3, requires_grad=True),
    ],
    ids=lambda part: str(part.dtype),
)
def test_rows_of_any_dtype_and_layout_are_put_as_index_copy_puts_them(part, in_place):
    if in_place and part.requires_grad:
        return  # nobody's to write to
    at = torch.tensor([4, 0, 5])
    new = part.flip(0)[at]
    before = part.detach().clone()
    expected = before.index_copy(0, at, new.detach())
    given = part.clone(memory_format=torch.preserve_format) if in_place else part
    found = put_rows(given, at, at, new, in_place)
    assert torch.equal(found, expected)
    assert found.requires_grad == part.requires_grad
    assert (found.data_ptr() == given.data_ptr()) == in_place
    assert torch.equal(part, before)


def test_mappings_of_other_types_keep_their_type_and_what_else_they_know():
    class Encoded(UserDict):
        """As tokenizers return them: a mapping with more to say."""

        def __init__(self, data, source):
            super().__init__(data)
            self.source = source

    encoded = Encoded({"x": torch.ones(2), "names": ["a", "b"]}, "text")
    negated = map_tensors(torch.neg, encoded)
    assert type(negated) is Encoded
    assert negated.source == "text"
    assert negated["x"].tolist() == [-1, -1]
    assert negated["names"] == ["a", "b"]
    assert encoded["x"].tolist() == [1, 1]
    counted = map_tensors(torch.neg, OrderedDict(x=torch.ones(1)))
    assert type(counted) is OrderedDict
    fixed = map_tensors(torch.neg, MappingProxyType({"x": torch.ones(1)}))
    assert fixed == {"x": torch.tensor([-1.0])}
