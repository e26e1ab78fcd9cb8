"""What is asked of every grid that has both arms: the comparisons that the text makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Question", "questions"]


@dataclass(frozen=True)
class Question:
    """A comparison that the text makes: is the first arm better than the second, as named?"""

    words: str
    first: str
    second: str


def _asked(rows: Sequence[tuple[str, str, str]]) -> list[Question]:
    return [Question(*row) for row in rows]


_OF_NO_SHARE = _asked(
    (
        ("Does augmenting everything help?", "full, appended", "none"),
        ("Is in place better than appended?", "full, in place", "full, appended"),
        (
            "Augmenting everything: better than as many steps without?",
            "full, appended",
            "none, as many steps as full",
        ),
        (
            "Is one copy appended better than two in place?",
            "one copy appended",
            "two copies in place",
        ),
        ("Does one copy appended help?", "one copy appended", "none"),
        ("Do two copies in place help?", "two copies in place", "none"),
        (
            "Adaptive budget or fresh random of 30%?",
            "adaptive budget, error 0.1",
            "random each epoch 30%",
        ),
        (
            "The coreset: better than none in as many steps?",
            "coreset",
            "none, as many steps as 30%",
        ),
        # Of the ablations.
        *(
            (
                f"{change[0].upper()}{change[1:]}: better than the coreset as it is?",
                change,
                "coreset",
            )
            for change in (
                *("similarity exp", "similarity shifted_sq", "weights uniform"),
                *("weights unscaled", "weights capped at 2.0", "gradients of the last layer"),
                *("recycled probe", "R = 1", "R = 5", "R = 30", "selected from epoch 10"),
                "base frozen",
            )
        ),
    )
)

# SHARE stands for each share that the arms have, and for none, where their names do without.
_OF_A_SHARE = _asked(
    (
        ("Random, SHARE: better than none?", "random SHARE", "none"),
        ("Fresh random, SHARE: better than none?", "random each epoch SHARE", "none"),
        ("Max-loss, SHARE: better than none?", "max-loss SHARE", "none"),
        ("Coreset, SHARE: better than none?", "coreset SHARE", "none"),
        *(
            (
                f"{rule[0].upper()}{rule[1:]}, SHARE: better than none in as many steps?",
                f"{rule} SHARE",
                "none, as many steps as SHARE",
            )
            for rule in (
                *("random", "random each epoch", "max-loss", "coreset"),
                *("coreset, uniform weights", "coreset, weights of mean 1", "not learned early"),
            )
        ),
        *(
            (
                f"{rule[0].upper()}{rule[1:]}, SHARE: better than everything in place?",
                f"{rule} SHARE",
                "full, in place, as many steps as SHARE",
            )
            for rule in ("random", "max-loss", "coreset")
        ),
        (
            "Everything in place: better than none, in as many steps as SHARE?",
            "full, in place, as many steps as SHARE",
            "none, as many steps as SHARE",
        ),
        ("Random, SHARE: better when fresh?", "random each epoch SHARE", "random SHARE"),
        ("Coreset or random, SHARE, as old?", "coreset SHARE", "random SHARE"),
        ("Coreset or fresh random, SHARE?", "coreset SHARE", "random each epoch SHARE"),
        ("Max-loss or random, SHARE, as old?", "max-loss SHARE", "random SHARE"),
        ("Max-loss or fresh random, SHARE?", "max-loss SHARE", "random each epoch SHARE"),
        ("Coreset or max-loss, SHARE?", "coreset SHARE", "max-loss SHARE"),
        (
            "Not learned early or fresh random, SHARE?",
            "not learned early SHARE",
            "random each epoch SHARE",
        ),
        (
            "Coreset, SHARE: uniform or cluster weights?",
            "coreset, uniform weights SHARE",
            "coreset SHARE",
        ),
        (
            "Coreset of uniform weights or random, SHARE?",
            "coreset, uniform weights SHARE",
            "random SHARE",
        ),
        (
            "Coreset, SHARE: weights of mean 1 or cluster sizes?",
            "coreset, weights of mean 1 SHARE",
            "coreset SHARE",
        ),
        (
            "Coreset, weights of mean 1, or random, SHARE?",
            "coreset, weights of mean 1 SHARE",
            "random SHARE",
        ),
        (
            "Coreset, weights of mean 1, SHARE: better than none?",
            "coreset, weights of mean 1 SHARE",
            "none",
        ),
        (
            "Coreset, weights of mean 1, or max-loss, SHARE?",
            "coreset, weights of mean 1 SHARE",
            "max-loss SHARE",
        ),
        # As old as each other: an epoch.
        *(
            question
            for rule in ("Coreset", "Max-loss")
            for question in (
                (
                    f"{rule} or random, both each epoch, SHARE?",
                    f"{rule.lower()} each epoch SHARE",
                    "random each epoch SHARE",
                ),
                (
                    f"{rule}, SHARE: better each epoch?",
                    f"{rule.lower()} each epoch SHARE",
                    f"{rule.lower()} SHARE",
                ),
            )
        ),
        ("Random, SHARE: better weighted n / k?", "random, weighted n / k SHARE", "random SHARE"),
        (
            "Rotating coreset or fresh random, SHARE?",
            "rotating coreset SHARE",
            "random each epoch SHARE",
        ),
        ("Random, SHARE: better in place?", "random SHARE, in place", "random SHARE"),
        ("Coreset, SHARE: better in place?", "coreset SHARE, in place", "coreset SHARE"),
        (
            "Coreset or random, SHARE, in place?",
            "coreset SHARE, in place",
            "random SHARE, in place",
        ),
        (
            "Max-loss or random, SHARE, in place?",
            "max-loss SHARE, in place",
            "random SHARE, in place",
        ),
        # In place: by share, by how fresh, by weights.
        *(
            (words, f"{first} SHARE, in place", second)
            for words, first, second in (
                (
                    "Fresh random, SHARE, in place: better than as old?",
                    "random each epoch",
                    "random SHARE, in place",
                ),
                ("Fresh random, SHARE, in place: better than none?", "random each epoch", "none"),
                (
                    "Fresh random, SHARE, or everything in place?",
                    "random each epoch",
                    "full, in place",
                ),
                (
                    "Coreset, SHARE, in place: uniform or cluster weights?",
                    "coreset, uniform weights",
                    "coreset SHARE, in place",
                ),
                (
                    "Rotating coreset, SHARE, in place: uniform or cluster weights?",
                    "rotating coreset, uniform",
                    "rotating coreset, clusters SHARE, in place",
                ),
                (
                    "Rotating coreset, uniform, or fresh random, SHARE, in place?",
                    "rotating coreset, uniform",
                    "random each epoch SHARE, in place",
                ),
            )
        ),
        ("Score-proportional or max-loss, SHARE?", "score-proportional SHARE", "max-loss SHARE"),
        ("Gradient matching or coreset, SHARE?", "gradient-matching SHARE", "coreset SHARE"),
        # Of the frontier.
        *(
            (f"{words} or fresh random, SHARE?", f"{rule} SHARE", "random each epoch SHARE")
            for words, rule in (
                ("InfoBatch", "infobatch"),
                ("Gradient matching", "gradient-matching"),
                ("Score-proportional", "score-proportional"),
                ("Rotating coreset, uniform", "rotating coreset, uniform"),
                ("Rotating coreset, clusters", "rotating coreset, clusters"),
                ("Coreset until it drifts", "coreset until it drifts"),
            )
        ),
        (
            "Rotating coreset, SHARE: uniform or cluster weights?",
            "rotating coreset, uniform SHARE",
            "rotating coreset, clusters SHARE",
        ),
        # Where only the subset is trained on.
        *(
            question
            for rule in ("Coreset", "Random")
            for arm in (rule.lower(),)
            for question in (
                (
                    f"{rule} alone, SHARE: does augmenting help?",
                    f"{arm} SHARE, augmented",
                    f"{arm} SHARE, not augmented",
                ),
                (
                    f"{rule} alone, SHARE: better augmented than in as many steps without?",
                    f"{arm} SHARE, augmented",
                    f"{arm} SHARE, not augmented, as many steps",
                ),
            )
        ),
        *(
            (
                f"{first} or random, SHARE, {state}?",
                f"{first.lower()} SHARE, {state}",
                f"random SHARE, {state}",
            )
            for first, state in (
                ("Coreset", "augmented"),
                ("Coreset", "not augmented"),
                ("Coreset", "not augmented, as many steps"),
                ("Max-loss", "augmented"),
            )
        ),
        *(
            question
            for state in ("augmented", "not augmented")
            for question in (
                (
                    f"Coreset or fresh random, SHARE, {state}?",
                    f"coreset SHARE, {state}",
                    f"random each epoch SHARE, {state}",
                ),
                (
                    f"Random alone, SHARE, {state}: better when fresh?",
                    f"random each epoch SHARE, {state}",
                    f"random SHARE, {state}",
                ),
            )
        ),
        (
            "Coreset or random, both each epoch, SHARE, augmented?",
            "coreset each epoch SHARE, augmented",
            "random each epoch SHARE, augmented",
        ),
        (
            "Coreset alone, SHARE: uniform or cluster weights?",
            "coreset, uniform weights SHARE, augmented",
            "coreset SHARE, augmented",
        ),
    )
)


def questions(arms: Iterable[str]) -> list[Question]:
    """Return what is asked of these arms: the questions that have both of theirs."""
    known = dict.fromkeys(arms)
    shares = dict.fromkeys(found for arm in known for found in re.findall(r"[\d.]+%", arm))
    asked = [
        *_OF_NO_SHARE,
        *(_of(question, share) for share in ("", *shares) for question in _OF_A_SHARE),
    ]
    return [each for each in asked if each.first in known and each.second in known]


def _of(question: Question, share: str) -> Question:
    """Return a question of one share, or without."""

    def filled(text: str) -> str:
        return (
            text.replace("SHARE", share)
            if share
            else text.replace(", SHARE", "").replace(" SHARE", "")
        )

    return Question(*(filled(each) for each in (question.words, question.first, question.second)))
