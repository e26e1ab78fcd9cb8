"""What is asked of every grid that has both arms: the comparisons that the text makes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUESTIONS", "Question"]


@dataclass(frozen=True)
class Question:
    """A comparison that the text makes: is the first arm better than the second, as named?"""

    words: str
    first: str
    second: str


# What is asked of every grid that has both arms.
QUESTIONS = [
    Question(*each)
    for each in (
        ("Does augmenting everything help?", "full, appended", "none"),
        ("Is in place better than appended?", "full, in place", "full, appended"),
        *(
            tuple(part.replace("SHARE", share) for part in question)
            for share in ("10%", "30%")
            for question in (
                ("Random, SHARE: better than none?", "random each epoch SHARE", "none"),
                ("Random, SHARE: better when fresh?", "random each epoch SHARE", "random SHARE"),
                ("Coreset or random, SHARE, as old?", "coreset SHARE", "random SHARE"),
                ("Coreset or fresh random, SHARE?", "coreset SHARE", "random each epoch SHARE"),
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
            )
        ),
        ("Random, 30%: better weighted n / k?", "random, weighted n / k 30%", "random 30%"),
        (
            "Rotating coreset or fresh random, 30%?",
            "rotating coreset 30%",
            "random each epoch 30%",
        ),
        ("Random, 30%: better in place?", "random 30%, in place", "random 30%"),
        ("Coreset, 30%: better in place?", "coreset 30%, in place", "coreset 30%"),
        ("Coreset or random, 30%, in place?", "coreset 30%, in place", "random 30%, in place"),
        ("Max-loss or random, 30%, in place?", "max-loss 30%, in place", "random 30%, in place"),
        ("Score-proportional or max-loss, 30%?", "score-proportional 30%", "max-loss 30%"),
        ("InfoBatch or fresh random, 30%?", "infobatch 30%", "random each epoch 30%"),
        ("Gradient matching or coreset, 30%?", "gradient-matching 30%", "coreset 30%"),
        ("Coreset alone: does augmenting help?", "coreset, augmented", "coreset, not augmented"),
        ("Random alone: does augmenting help?", "random, augmented", "random, not augmented"),
        ("Coreset or random, augmented?", "coreset, augmented", "random, augmented"),
        ("Coreset or random, not augmented?", "coreset, not augmented", "random, not augmented"),
        ("Max-loss or random, augmented?", "max-loss, augmented", "random, augmented"),
        # Of the frontier.
        *(
            (f"{rule[0].upper()}{rule[1:]} or fresh random, {share}?", f"{rule} {share}", fresh)
            for share, fresh in (("10%", "random each epoch 10%"), ("30%", "random each epoch 30%"))
            for rule in (
                *("rotating coreset, uniform", "rotating coreset, clusters"),
                "coreset until it drifts",
            )
        ),
        *(
            (f"{rule[0].upper()}{rule[1:]} or fresh random, 10%?", f"{rule} 10%", fresh)
            for rule in ("infobatch", "gradient-matching", "score-proportional")
            for fresh in ("random each epoch 10%",)
        ),
        (
            "Adaptive budget or fresh random of 30%?",
            "adaptive budget, error 0.1",
            "random each epoch 30%",
        ),
        *(
            (
                f"Rotating coreset, {share}: uniform or cluster weights?",
                f"rotating coreset, uniform {share}",
                f"rotating coreset, clusters {share}",
            )
            for share in ("10%", "30%")
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
]
