"""Slow, obvious forms of everything that the package computes quickly."""

from fractions import Fraction
from itertools import combinations

import torch


def pairwise(features: torch.Tensor) -> torch.Tensor:
    """Euclidean distances in float64, one pair at a time."""
    n = len(features)
    out = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            out[i, j] = (features[i].double() - features[j].double()).square().sum().sqrt()
    return out


def materialised(gradients) -> torch.Tensor:
    """Return the outer products that are never formed elsewhere, in float64, side by side."""
    rows = []
    for residual, inputs in ((gradients.residual, gradients.inputs), *gradients.earlier):
        part = residual.double()
        if inputs is not None:
            part = torch.einsum("ni,nj->nij", part, inputs.double()).flatten(1)
        rows.append(part)
    return torch.cat(rows, dim=1)


def cost(distances: torch.Tensor, subset) -> float:
    """The error xi: distances of everybody to the nearest of the subset, added up."""
    return float(distances[:, list(subset)].amin(1).sum())


def least_cost(distances: torch.Tensor, budget: int) -> float:
    return min(cost(distances, subset) for subset in combinations(range(len(distances)), budget))


def value(distances: torch.Tensor, subset) -> float:
    """Facility location with similarity C - d, zero for the empty set."""
    if len(subset) == 0:
        return 0.0
    largest = float(distances.max())
    return float((largest - distances[:, list(subset)].amin(1)).sum())


def best_value(distances: torch.Tensor, budget: int) -> float:
    return max(value(distances, subset) for subset in combinations(range(len(distances)), budget))


def greedy(levels, start, budget):
    """Triple-loop greedy on integers: the largest gain, the lowest position among equals."""
    n = len(levels)
    chosen, gains = [], []
    for _ in range(budget):
        best, best_gain = None, -1
        for candidate in range(n):
            if candidate in chosen:
                continue
            gain = 0
            for i in range(n):
                now = min([start, *(int(levels[j][i]) for j in chosen)])
                gain += max(0, now - int(levels[candidate][i]))
            if gain > best_gain:
                best, best_gain = candidate, gain
        chosen.append(best)
        gains.append(best_gain)
    return chosen, gains


def nearest(distances: torch.Tensor, chosen) -> list:
    """Who represents each row: itself if chosen, else the nearest, the lowest among equals."""
    out = []
    for i in range(len(distances)):
        by_distance = [(float(distances[i, j]), int(j)) for j in chosen]
        out.append(i if i in [int(j) for j in chosen] else min(by_distance)[1])
    return out


def sainte_lague(sizes, budget):
    """Deal one seat a class, then each to the largest s / (2 m + 1), in exact fractions."""
    held = [0] * len(sizes)
    seats = []
    for c in range(len(sizes)):
        held[c] += 1
        seats.append(c)
    while len(seats) < budget:
        open_classes = [c for c in range(len(sizes)) if held[c] < sizes[c]]
        quotient = {c: Fraction(sizes[c], 2 * held[c] + 1) for c in open_classes}
        winner = max(open_classes, key=lambda c: (quotient[c], -c))
        held[winner] += 1
        seats.append(winner)
    return seats[:budget]
