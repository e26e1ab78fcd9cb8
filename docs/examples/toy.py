"""Made-up data of the detection and text scripts, and an augmentation of your own for each."""

import numpy as np
import torch
from torch.utils.data import TensorDataset

SIZE, WORDS, CLASSES = 24, 500, 4


def squares(number, seed):
    """Return images of noise with a bright square, and its (x1, y1, x2, y2) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.rand(number, 3, SIZE, SIZE, generator=generator)
    side = torch.randint(6, 13, (number, 1), generator=generator)
    corner = (torch.rand(number, 2, generator=generator) * (SIZE - side + 1)).long()
    boxes = torch.cat([corner, corner + side], 1)
    for image, (x1, y1, x2, y2) in zip(images, boxes.tolist(), strict=True):
        image[:, y1:y2, x1:x2] += 0.5
    return TensorDataset(images, boxes / SIZE)


def flip(x, rows, boxes):
    """Mirror every second row's image, and its box with it."""
    is_flipped = ((rows.copy + rows.index) % 2 == 0).to(x.device)
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    return (
        torch.where(is_flipped[:, None, None, None], x.flip(3), x),
        torch.where(is_flipped[:, None], mirrored, boxes),
    )


def sentences(number, seed):
    """Return rows of token ids from 1 on, and classes: each prefers a quarter of the words."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    ids = torch.randint(1, WORDS, (number, 20), generator=generator)
    preferred = ids // CLASSES * CLASSES + labels[:, None]
    is_preferred = torch.rand(ids.shape, generator=generator) < 0.2
    return TensorDataset(torch.where(is_preferred, preferred, ids).clamp(1, WORDS - 1), labels)


def drop_words(ids, rows):
    """Replace a fifth of the tokens by 0, "unknown": drawn anew for each row and epoch."""
    keys = zip(rows.epoch.tolist(), rows.index.tolist(), rows.copy.tolist(), strict=True)
    draws = [np.random.default_rng([rows.seed, *key]).random(ids.shape[1]) for key in keys]
    is_dropped = torch.from_numpy(np.stack(draws) < 0.2).to(ids.device)
    return ids.masked_fill(is_dropped, 0)
