"""Augmentations of one's own: functions of a batch and of which rows they are."""

import numpy as np
import torch


def flip(x, rows, boxes):
    """Mirror every second row's image, and its box with it."""
    is_flipped = ((rows.copy + rows.index) % 2 == 0).to(x.device)
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    return (
        torch.where(is_flipped[:, None, None, None], x.flip(3), x),
        torch.where(is_flipped[:, None], mirrored, boxes),
    )


def drop_words(ids, rows):
    """Replace a fifth of the tokens by 0, "unknown": drawn anew for each row and epoch."""
    keys = zip(rows.epoch.tolist(), rows.index.tolist(), rows.copy.tolist(), strict=True)
    draws = [np.random.default_rng([rows.seed, *key]).random(ids.shape[1]) for key in keys]
    is_dropped = torch.from_numpy(np.stack(draws) < 0.2).to(ids.device)
    return ids.masked_fill(is_dropped, 0)
