"""The data of the detection and text scripts, made up."""

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


def sentences(number, seed):
    """Return rows of token ids from 1 on, and classes: each prefers a quarter of the words."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    ids = torch.randint(1, WORDS, (number, 20), generator=generator)
    preferred = ids // CLASSES * CLASSES + labels[:, None]
    is_preferred = torch.rand(ids.shape, generator=generator) < 0.2
    return TensorDataset(torch.where(is_preferred, preferred, ids).clamp(1, WORDS - 1), labels)
