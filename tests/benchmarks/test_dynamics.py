"""What is recorded of selections, against counts by hand."""

import json
from dataclasses import replace

import pytest
import torch

from augsubset import LastLayerGradients, MaxLossSelector, RandomSelector, select_coreset
from benchmarks import dynamics
from benchmarks.datasets import load_digits_images
from benchmarks.dynamics import Recorded, Track, coverage, gini, never_selected, top_overlap
from benchmarks.rules import _relative_error
from tests.benchmarks.test_rules import gradients_of


def formed(gradients):
    """Return the gradients as rows of a matrix, the outer products formed."""
    pairs = [(gradients.residual, gradients.inputs), *gradients.earlier]
    rows = [
        left.double() if right is None else torch.einsum("nc,nd->ncd", left, right).flatten(1)
        for left, right in ((a.double(), None if b is None else b.double()) for a, b in pairs)
    ]
    return torch.cat(rows, 1)


def with_earlier(gradients):
    generator = torch.Generator().manual_seed(1)
    parts = (torch.randn(len(gradients), size, generator=generator) for size in (4, 2))
    return replace(gradients, earlier=(tuple(parts),))


EVERY_KIND = pytest.mark.parametrize(
    "gradients",
    [gradients_of(), gradients_of(inputs=5), with_earlier(gradients_of(inputs=5))],
    ids=["logits", "last layer", "earlier layers"],
)


@EVERY_KIND
def test_a_coresets_coverage_is_its_certificate(gradients):
    found = select_coreset(gradients, budget=12)
    seen = coverage(gradients, found)
    scale = float(formed(gradients).norm(dim=1).sum())
    assert seen["summed_norms"] == pytest.approx(scale)
    assert seen["error"] * scale == pytest.approx(found.certificate.error)
    assert seen["gradient_error"] * scale == pytest.approx(found.certificate.gradient_error)
    assert seen["nearest_error"] == pytest.approx(seen["gradient_error"])  # its weights are sizes
    assert seen["gradient_norm"] * scale == pytest.approx(found.certificate.gradient_norm)


@EVERY_KIND
def test_a_selection_of_other_weights_misses_what_these_miss(gradients):
    found = RandomSelector().select(gradients, budget=12, seed=0, epoch=0)
    rows = formed(gradients)
    missed = (rows.sum(0) - found.weights.double() @ rows[found.indices]).norm()
    expected = pytest.approx(float(missed / rows.norm(dim=1).sum()))
    assert coverage(gradients, found)["gradient_error"] == expected
    assert _relative_error(gradients, found) == expected


def test_a_class_without_a_pick_counts_in_full():
    gradients = gradients_of(6, 2)
    only_zero = RandomSelector().select(gradients, budget=1, seed=0, epoch=0)
    missed = 1 - int(gradients.labels[only_zero.indices[0]])
    norms = gradients.residual.double().norm(dim=1)
    (own,) = torch.nonzero(gradients.labels != missed, as_tuple=True)
    distances = gradients.distances(own, only_zero.indices).double().sum()
    expected = (float(distances) + float(norms[gradients.labels == missed].sum())) / float(
        norms.sum()
    )
    assert coverage(gradients, only_zero)["error"] == pytest.approx(expected)


def test_everything_covers_everything():
    gradients = gradients_of()
    found = select_coreset(gradients, budget=60)
    seen = coverage(gradients, found)
    assert seen["error"] == 0
    assert seen["nearest_error"] == pytest.approx(0, abs=1e-12)


def test_overlap_of_tops_breaks_ties_in_expectation():
    mine = torch.tensor([5, 4, 1, 1, 1, 0])
    assert top_overlap(mine, mine, 2) == 1
    # Both sure of 0 and 1; the third of three in a tie: chances of 1/3 each.
    assert top_overlap(mine, mine, 3) == pytest.approx((2 + 3 / 9) / 3)
    other = torch.tensor([0, 0, 3, 3, 3, 3])
    assert top_overlap(mine, other, 2) == 0
    assert top_overlap(mine, torch.zeros(6), 3) == pytest.approx(3 / 6)


def test_ginis_coefficient_of_equals_and_of_a_few():
    assert gini(torch.full((7,), 3)) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 4, 0])) == pytest.approx(1 - 1 / 4)
    assert gini(torch.tensor([0, 5, 0, 5, 0])) == pytest.approx(1 - 2 / 5)


def test_a_track_counts_what_was_never_selected():
    data = load_digits_images(60)
    track, gradients = Track(data), gradients_of()
    for epoch, budget in enumerate((10, 20)):
        found = MaxLossSelector().select(gradients, budget=budget, seed=0, epoch=epoch)
        track.note(found, gradients, epoch)
    record = track.record()
    assert record["selections"]["selected_so_far"] == pytest.approx([1 / 6, 1 / 3])
    assert record["never_selected"] == pytest.approx(2 / 3)
    assert record["selections"]["overlap_with_max_loss"] == [1, 1]
    assert record["most_selected"] == record["most_selected_by_max_loss"]
    assert record["most_selected"][0][1] == 2
    assert record["times_selected"] == [40, 10, 10]
    # 10 of 60 twice and 10 once: by hand, from the area under Lorenz's curve.
    assert record["gini"] == pytest.approx(13 / 18)
    assert set(record["top_overlap"].values()) == {1.0} or all(
        0 < share <= 1 for share in record["top_overlap"].values()
    )
    json.dumps(record)


def test_clean_labels_and_the_tail_are_counted():
    data = load_digits_images(60).with_noise(0.5, "other")
    track = Track(data)
    chosen = RandomSelector().select(LastLayerGradients.unprobed(60), budget=8, seed=0, epoch=0)
    track.note(chosen, None, 0)
    entry = {key: values[-1] for key, values in track.record()["selections"].items()}
    clean = (data.clean == data.y_train)[chosen.indices]
    assert entry["clean_share"] == pytest.approx(float(clean.double().mean()))
    assert "overlap_with_max_loss" not in entry

    # Of two wrong labels and a right one, which stands for as many as both.
    wrong, right = (~(data.clean == data.y_train)).nonzero()[:2, 0], clean.nonzero()[:1, 0]
    indices = torch.cat([wrong, chosen.indices[right]])
    weights = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    track.note(replace(chosen, indices=indices, weights=weights, gains=weights), None, 1)
    entry = {key: values[-1] for key, values in track.record()["selections"].items()}
    assert entry["clean_share"] == pytest.approx(1 / 3)
    assert entry["clean_weight"] == pytest.approx(1 / 2)

    tail = load_digits_images(1000).long_tailed(20)
    sizes = torch.bincount(tail.y_train)
    smallest = int(sizes.argmin())
    n = len(tail.y_train)
    everything = RandomSelector().select(LastLayerGradients.unprobed(n), budget=n, seed=0, epoch=0)

    def recall(indices):
        track = Track(tail)
        weights = torch.ones(len(indices), dtype=torch.float64)
        parts = {"indices": indices, "weights": weights, "gains": weights}
        track.note(replace(everything, **parts), None, 0)
        return track.record()["selections"]["tail_recall"][0]

    assert recall(torch.arange(n)) == 1
    assert recall((tail.y_train == int(sizes.argmax())).nonzero()[:, 0]) == 0
    third = sizes.sort().values[2]  # of ten classes the three smallest
    in_tail = sizes[tail.y_train] <= third
    of_smallest = (tail.y_train == smallest).nonzero()[:, 0]
    assert recall(of_smallest) == pytest.approx(len(of_smallest) / int(in_tail.sum()))
    assert recall(in_tail.nonzero()[:, 0]) == 1


def test_shadows_are_asked_but_not_followed():
    data, gradients = load_digits_images(60), gradients_of(60, 10)
    rule = Recorded(RandomSelector(), data, shadows={"hard": (MaxLossSelector(), 0.5)})
    assert rule.needs_gradients  # for the shadow
    found = rule.select(gradients, budget=12, seed=0, epoch=0)
    alone = RandomSelector().select(gradients, budget=12, seed=0, epoch=0)
    assert found.digest == alone.digest
    record = rule.record()
    assert record["shadows"]["hard"]["selections"]["num_selected"][0] == 30
    assert "error" in record["selections"]
    assert not Recorded(RandomSelector(), data).needs_gradients


def test_random_subsets_skip_what_the_closed_form_says():
    found = never_selected(0.01, 5000, 100, range(3))
    assert found["closed_form"] == pytest.approx(0.99**100)
    for share in found["measured"]:
        # Standard deviation of a share of 5,000, at most the binomial's.
        assert share == pytest.approx(found["closed_form"], abs=4 * 0.0069)


def test_the_command_writes_the_papers_two_rows(tmp_path, capsys):
    out = tmp_path / "never.json"
    dynamics.main(["--num-examples", "2000", "--epochs", "50", "--out", str(out)])
    rows = json.loads(out.read_text())["never_selected"]
    assert [row["fraction"] for row in rows] == [0.002, 0.005]
    assert "closed form" in capsys.readouterr().out
