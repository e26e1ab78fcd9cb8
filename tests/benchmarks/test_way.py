"""The pictures of how it works: what they show is what rules select."""

import torch

from benchmarks import way


def test_the_coreset_of_the_picture_costs_least_and_everybody_has_a_pick():
    gradients = way.of_one_class(way.trained_on_digits())
    assert set(gradients.labels.tolist()) == {way.CLASS}
    selections = way.selections_of(gradients)
    costs = {}
    for name, selection in selections.items():
        pick, costs[name] = way.nearest(gradients, selection)
        assert torch.isin(pick, selection.indices).all()
        assert torch.equal(pick[selection.indices], selection.indices)
    assert costs["coreset"] < costs["random"] < costs["max-loss"]
    assert len({len(selection) for selection in selections.values()}) == 1


def test_both_pictures_are_drawn(tmp_path):
    way.main(["--out", str(tmp_path)])
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(drawn) == {"how-way.svg", "how-selection.svg"}
    assert all("<svg" in text for text in drawn.values())
    assert {first for first, _, _ in way.ARROWS} <= set(way.BOXES)
