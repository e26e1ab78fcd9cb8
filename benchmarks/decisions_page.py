"""What to choose when: each decision with the answers that say so, of the records."""

from __future__ import annotations

from benchmarks.answers import answer_to, signed
from benchmarks.train import load_grid

__all__ = ["DECISIONS", "decision_table"]

# What to do, and the answers that say so: a grid and a question each, and whether the first of its
# two arms was found better (+), worse (-) or not told apart (=). A test holds them to the records.
DECISIONS = (
    (
        "Only the subset is trained on, and it is small",
        "try both: of 10,000 images a coreset was better, of all 50,000 a random subset",
        (
            ("small-only", "Coreset or random, augmented?", "+"),
            ("small-only", "Coreset or random, not augmented?", "+"),
            ("small-only", "Coreset or random, both each epoch, augmented?", "+"),
            ("small-only", "Coreset alone: uniform or cluster weights?", "="),
            ("table3-short", "Coreset or random, 1%, augmented?", "="),
            ("table3-short", "Coreset or random, 1%, not augmented, as many steps?", "-"),
        ),
    ),
    (
        "Only the subset is trained on, and selecting each epoch is too slow",
        "a random subset each epoch: a coreset kept for ten is no better",
        (
            ("small-only", "Coreset or fresh random, augmented?", "="),
            ("small-only", "Coreset or fresh random, not augmented?", "-"),
        ),
    ),
    (
        "All originals are trained on as well",
        'a random subset, `weights="uniform"`',
        (
            ("small-steps", "Coreset of uniform weights or random, 10%?", "="),
            ("small-steps", "Coreset of uniform weights or random, 30%?", "="),
            ("table1-cifar10-short", "Coreset of uniform weights or random, 10%?", "="),
            ("table1-cifar10-short", "Coreset of uniform weights or random, 30%?", "="),
            ("table1-imbalanced-short", "Coreset of uniform weights or random, 10%?", "="),
            ("table2-short", "Coreset of uniform weights or random, 10%?", "="),
            ("table6-short", "Coreset of uniform weights or random, 0.5%?", "="),
        ),
    ),
    (
        "A coreset beside all originals",
        '`weights="uniform"`, the default, not cluster weights',
        (
            ("small-steps", "Coreset, 10%: uniform or cluster weights?", "+"),
            ("small-steps", "Coreset, 30%: uniform or cluster weights?", "+"),
            ("small-epochs", "Coreset, 10%: uniform or cluster weights?", "+"),
            ("table1-cifar10-short", "Coreset, 10%: uniform or cluster weights?", "+"),
            ("table1-cifar10-short", "Coreset, 30%: uniform or cluster weights?", "+"),
            ("table2-short", "Coreset, 10%: uniform or cluster weights?", "+"),
            ("table6-short", "Coreset, 0.5%: uniform or cluster weights?", "+"),
        ),
    ),
    (
        "A random subset beside all originals",
        "every R epochs: that fresh ones each epoch are better was not found",
        (
            ("small-steps", "Random, 10%: better when fresh?", "="),
            ("small-steps", "Random, 30%: better when fresh?", "="),
            ("small-steps-3000-long", "Random, 10%: better when fresh?", "="),
            ("small-steps-3000-long", "Random, 30%: better when fresh?", "="),
        ),
    ),
    (
        "Half of the labels are random",
        "no rule that seeks what is hard",
        (
            ("small-noise", "Not learned early or fresh random, 30%?", "-"),
            ("table2-short", "Max-loss or random, 10%, as old?", "-"),
        ),
    ),
    (
        "There is time for as many steps as everything takes",
        "augment everything, by extra copies or in place: no significant difference",
        (
            ("small-steps", "Does augmenting everything help?", "+"),
            ("small-steps", "Is in place better than appended?", "="),
            ("small-steps-3000-long", "Does augmenting everything help?", "+"),
            ("small-steps-3000-long", "Is in place better than appended?", "="),
        ),
    ),
    (
        "There are as many steps, and augmenting is what costs",
        "a random subset of 30%: of 3,000 images in 100 epochs it kept three quarters of the gain",
        (
            ("small-steps-3000-long", "Random, 30%: better than none?", "+"),
            ("small-steps-3000-long", "Fresh random, 30%: better than none?", "+"),
            ("small-steps", "Random, 30%: better than none?", "="),
        ),
    ),
    (
        "Epochs are few",
        "more steps first: in as many, augmenting was not found to gain",
        (
            (
                "table1-cifar10-short",
                "Augmenting everything: better than as many steps without?",
                "=",
            ),
            (
                "table1-cifar10-short",
                "Everything in place: better than none, in as many steps as 10%?",
                "-",
            ),
            (
                "table1-cifar10-short",
                "Everything in place: better than none, in as many steps as 30%?",
                "-",
            ),
            (
                "table2-short",
                "Everything in place: better than none, in as many steps as 10%?",
                "-",
            ),
            (
                "table1-imbalanced-short",
                "Augmenting everything: better than as many steps without?",
                "=",
            ),
            ("table2-short", "Augmenting everything: better than as many steps without?", "="),
        ),
    ),
    (
        "Epochs are what counts, not steps",
        "append: copies are steps as well",
        (("small-epochs", "Is in place better than appended?", "-"),),
    ),
    (
        "The clock is what counts, and augmenting costs little",
        "nothing differed significantly from none; a coreset with cluster weights was worse",
        (
            ("small-time", "Does augmenting everything help?", "="),
            ("small-time", "Fresh random, 30%: better than none?", "="),
            ("small-time", "Coreset, 30%: better than none?", "-"),
        ),
    ),
)


def decision_table() -> list[str]:
    """Return what to choose when, with the first of the differences that say so."""
    lines = ["| when | choose | for example |", "| --- | --- | --- |"]
    for when, what, ((name, words, _), *_) in DECISIONS:
        answer = answer_to(name, words)
        asked, gap = answer.question, answer.gap
        title = load_grid(name).title.split(":")[0].split(" of ")[0]
        lines.append(
            f"| {when} | {what} | {title}: *{asked.first}* over *{asked.second}* "
            f"{signed(gap.mean)} ({signed(gap.low)} to {signed(gap.high)}) |"
        )
    return lines
