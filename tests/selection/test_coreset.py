"""select_coreset: arguments, edge cases and errors."""

import numpy as np
import pytest
import scipy.sparse
import torch

from augsubset import LastLayerGradients, select_coreset
from augsubset.selection import budget_from_fraction
from tests.contracts import assert_valid_selection

POINTS = torch.tensor([[0.0], [0.1], [0.2], [9.0]])


def test_arrays_and_tensors_give_the_same_selection():
    features = np.random.default_rng(0).normal(size=(30, 3))
    labels = np.arange(30) % 3
    from_array = select_coreset(features, labels, fraction=0.2)
    from_tensor = select_coreset(torch.from_numpy(features), torch.from_numpy(labels), fraction=0.2)
    assert from_array.digest == from_tensor.digest


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]
)
def test_any_integer_dtype_of_labels_gives_the_same_selection(dtype):
    labels = np.array([0, 0, 1, 1])
    expected = select_coreset(POINTS, labels, budget=2)
    assert select_coreset(POINTS, labels.astype(dtype), budget=2).digest == expected.digest


class Frame:
    """What a DataFrame is: not a sequence of its rows, but numpy makes an array of it."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, name):
        raise KeyError(name)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_data_frames_give_the_selection_of_their_values():
    labels = np.array([0, 0, 1, 1])
    expected = select_coreset(POINTS, labels, budget=2)
    assert select_coreset(Frame(POINTS), Frame(labels), budget=2).digest == expected.digest


NAMES = ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("gradients", "labels", "reason"),
    [
        (
            scipy.sparse.csr_array(POINTS.numpy()),
            None,
            "gradients must be .* got csr_array of dtype",
        ),
        (scipy.sparse.coo_matrix(POINTS.numpy()), None, "gradients must be .* got coo_matrix"),
        (POINTS.to_sparse(), None, r"gradients must be a dense .* its to_dense\(\) or toarray\(\)"),
        (POINTS.to("meta"), None, "gradients must be"),
        (np.ma.masked_array(POINTS.numpy(), POINTS.numpy() > 1), None, "got MaskedArray"),
        (
            Frame([["a"]] * 4),
            None,
            "gradients must be a dense tensor or array of numbers, got Frame",
        ),
        ({1: POINTS}, None, "gradients must be a dense tensor or array of numbers, got dict"),
        ([[1.0, 2.0], [3.0]], None, "gradients must be"),
        (None, None, "gradients must be .* got NoneType"),
        (POINTS, NAMES, r"labels must be .* got list. np.unique\(labels, return_inverse=True\)"),
        (POINTS, np.array(NAMES), "labels must be .* got ndarray of dtype <U3"),
        (POINTS, np.array(NAMES, object), "labels must be .* got ndarray of dtype object"),
        (POINTS, Frame(NAMES), "labels must be"),
        (POINTS, [0, 1, None, 0], "labels must be"),
        (POINTS, torch.ones(4).to_sparse(), "labels must be"),
        (POINTS, np.zeros(4), "labels must be int64, got dtype torch.float64"),
    ],
)
def test_what_is_no_dense_array_of_numbers_is_a_type_error(gradients, labels, reason):
    with pytest.raises(TypeError, match=reason):
        select_coreset(gradients, labels, budget=2)


@pytest.mark.parametrize("gradients", [torch.arange(4), torch.zeros(4), torch.arange(4)[:, None]])
def test_what_is_no_matrix_of_floats_is_refused_by_its_name(gradients):
    with pytest.raises(ValueError, match=r"gradients must be a floating \(n, d\) tensor"):
        select_coreset(gradients, budget=2)


@pytest.mark.parametrize(("widest", "holds"), [(1.0, True), (10.0, True), (1000.0, False)])
def test_exp_finds_nearest_picks_unless_distances_saturate(widest, holds):
    """The docstring's limit: 10 times the number of features, which is 1 here."""
    points = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)) * widest
    found = select_coreset(points, budget=4, similarity="exp")
    nearest = found.indices[(points - points[found.indices].T).abs().argmin(1)]
    assert torch.equal(found.clusters, nearest) == holds


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numpy_scalars_are_accepted(kind):
    assert len(select_coreset(POINTS, fraction=kind(0.5))) == 2


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_accepted_without_a_warning():
    points = np.random.default_rng(0).normal(size=(6, 2))
    labels = np.arange(6) % 2
    points.flags.writeable = labels.flags.writeable = False
    assert len(select_coreset(points, labels, budget=2)) == 2


def test_labels_none_is_a_single_class():
    assert_valid_selection(select_coreset(POINTS, budget=2), torch.zeros(4).long(), 2)


def test_a_class_with_one_example_works():
    labels = torch.tensor([0, 0, 0, 7])
    selection = select_coreset(POINTS, labels, budget=2)
    assert_valid_selection(selection, labels, 2)
    assert 3 in selection.indices


def test_identical_gradients_work():
    selection = select_coreset(torch.ones(6, 2), budget=3)
    assert selection.indices.tolist() == [0, 1, 2]
    assert selection.weights.tolist() == [4, 1, 1]
    assert selection.certificate.error == 0


@pytest.mark.parametrize(
    ("fraction", "n", "classes", "expected"),
    [(0.145, 100, 10, 15), (0.1, 10, 1, 1), (0.01, 100, 10, 10), (1.0, 7, 2, 7), (0.25, 10, 1, 3)],
)
def test_fraction_rounds_half_up_in_exact_decimal(fraction, n, classes, expected):
    assert budget_from_fraction(fraction, n, classes) == expected


def test_indices_of_the_dataset_are_returned_not_positions():
    gradients = LastLayerGradients(
        residual=POINTS,
        inputs=None,
        labels=torch.zeros(4).long(),
        indices=torch.tensor([40, 30, 20, 10]),
        losses=torch.zeros(4),
    )
    selection = select_coreset(gradients, budget=2)
    assert selection.indices.tolist() == [30, 10]
    assert selection.clusters.tolist() == [30, 30, 30, 10]


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"fraction": 0.0}, ValueError, r"fraction must be in \(0, 1\]"),
        ({"fraction": 1.5}, ValueError, r"fraction must be in \(0, 1\]"),
        ({"fraction": float("nan")}, ValueError, r"fraction must be in \(0, 1\]"),
        ({"fraction": "0.1"}, TypeError, "fraction must be a number"),
        ({"fraction": 0.5, "budget": 2}, ValueError, "exactly one of fraction, budget and tol"),
        ({"budget": 2, "tolerance": 1.0}, ValueError, "exactly one of fraction, budget and tol"),
        ({}, ValueError, "exactly one of fraction, budget and tolerance"),
        ({"budget": 5}, ValueError, "budget must be at most the ground-set size 4"),
        ({"budget": 0}, ValueError, "budget must be at least the number of classes 1"),
        ({"budget": 2.0}, TypeError, "budget must be an int"),
        ({"budget": {1: 1}}, ValueError, r"name each of the 1 classes, got unknown classes \[1\]"),
        ({"budget": {}}, ValueError, r"name each of the 1 classes, got no budget for \[0\]"),
        ({"budget": {0: 0}}, ValueError, r"budget\[0\] must be at least 1"),
        ({"budget": {0: 5}}, ValueError, r"budget\[0\] must be at most the class size 4, got 5"),
        ({"budget": {0: 1.5}}, TypeError, r"budget\[0\] must be an int"),
        ({"tolerance": -0.1}, ValueError, "tolerance must be finite and at least 0, the error of"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be finite and at least 0"),
        ({"tolerance": float("inf")}, ValueError, "tolerance must be finite and at least 0"),
        ({"tolerance": "1"}, TypeError, "tolerance must be a number"),
        ({"tolerance": 1.0, "similarity": "exp"}, ValueError, 'None unless similarity="shifted"'),
        ({"tolerance": 1.0, "method": "stochastic"}, ValueError, 'None with method="stochastic"'),
        ({"tolerance": 1.0, "device": "meta"}, ValueError, "on any device but the CPU"),
        (
            {"budget": 2, "similarity": "cosine"},
            ValueError,
            "similarity must be one of 'shifted', ",
        ),
        ({"budget": 2, "similarity": lambda d: 1}, TypeError, "return a tensor of the same shape"),
        ({"budget": 2, "similarity": lambda d: -d}, ValueError, "positive at distance 0"),
        ({"budget": 2, "similarity": lambda d: 1 - d}, ValueError, "between 0 and its value at"),
        ({"budget": 2, "similarity": lambda d: 1 + d}, ValueError, "between 0 and its value at"),
        (
            {"budget": 2, "similarity": lambda d: torch.where(d > 5, torch.nan, 1.0)},
            ValueError,
            "between 0 and its value at",
        ),
        ({"budget": 2, "method": "greedy"}, ValueError, "method must be one of 'auto', 'lazy', 'n"),
        (
            {"budget": 2, "method": "stochastic", "device": "meta"},
            ValueError,
            "must be the CPU for",
        ),
        ({"budget": 2, "epsilon": 0.0}, ValueError, "epsilon must be between 0 and 1"),
        ({"budget": 2, "epsilon": 1.0}, ValueError, "epsilon must be between 0 and 1"),
        ({"budget": 2, "epsilon": "a"}, TypeError, "epsilon must be a number, got str 'a'"),
        ({"budget": 2, "seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"budget": 2, "part_size": 1}, ValueError, "part_size must be at least 2"),
        ({"budget": 2, "progress": 1}, ValueError, "progress must be one of False, True"),
        ({"budget": 2, "max_memory": 63}, ValueError, "max_memory must be at least [0-9]+ bytes"),
        (
            {"budget": 2, "max_memory": 63, "method": "partitioned"},
            ValueError,
            "max_memory must be at least [0-9]+ bytes",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, reason):
    with pytest.raises(error, match=reason):
        select_coreset(POINTS, **arguments)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e37])
def test_extreme_scales_do_not_change_the_selection(scale):
    points = torch.tensor([[0.0], [1], [2], [90], [91]], dtype=torch.float64)
    expected = select_coreset(points, budget=2)
    found = select_coreset(points * scale, budget=2)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.gains / scale, expected.gains)
    if scale > 1e-38:  # smaller ones are subnormal in float32
        single = select_coreset((points * scale / 100).float(), budget=2)
        assert torch.equal(single.indices, expected.indices)


def test_values_whose_distance_exceeds_the_largest_float_work():
    selection = select_coreset(torch.tensor([[-3e38], [2e38], [3e38]]), budget=2)
    assert selection.indices.tolist() == [1, 0]
    assert selection.certificate.error == pytest.approx(1e38)


def test_a_budget_below_the_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="budget must be at least the number of classes 4"):
        select_coreset(POINTS, torch.arange(4), budget=3)


def test_labels_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"labels must be of shape \(4,\)"):
        select_coreset(POINTS, torch.zeros(3).long(), budget=1)


def test_labels_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"labels must be of shape \(4,\)"):
        select_coreset(POINTS, torch.zeros(4, 1).long(), budget=1)


def test_float_labels_are_refused():
    with pytest.raises(TypeError, match="labels must be int64"):
        select_coreset(POINTS, torch.zeros(4), budget=1)


def test_labels_in_addition_to_gradients_are_refused():
    with pytest.raises(TypeError, match="labels must be None with LastLayerGradients"):
        select_coreset(LastLayerGradients.from_residual(POINTS), torch.zeros(4).long(), budget=1)


def test_non_finite_gradients_are_refused_with_their_index():
    bad = POINTS.clone()
    bad[2] = float("nan")
    with pytest.raises(ValueError, match="got 1 non-finite rows, first at index 2"):
        select_coreset(bad, budget=1)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_non_finite_values_of_any_dtype_are_refused(value, dtype):
    bad = torch.zeros(4, 3, dtype=dtype)
    bad[1, 2] = value
    with pytest.raises(ValueError, match="got 1 non-finite rows, first at index 1"):
        select_coreset(bad, budget=1)


def test_an_empty_ground_set_is_refused():
    with pytest.raises(ValueError, match="at least one example, got an empty dataset"):
        select_coreset(torch.zeros(0, 2), budget=1)
