"""The loop as README prints it, and datasets to run it over."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.transforms import v2

N = 48
README = Path(__file__).parents[2] / "README.md"
DIFF = README.read_text().split("```diff\n")[1].split("```")[0].splitlines(keepends=True)
LOOP = "".join(line[1:] or line for line in DIFF)
PLAIN = "".join(line[1:] or line for line in DIFF if line[0] != "+")


class Photos(Dataset):
    """As torchvision's: PIL images, targets, and a transform with random parts."""

    def __init__(self, as_dict=False):
        pixels = np.random.default_rng(0).integers(0, 256, (N, 10, 10, 3), dtype=np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        self.targets = [index % 3 for index in range(N)]
        steps = [v2.RandomCrop(8), v2.RandomHorizontalFlip(), v2.ToImage()]
        self.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
        self.as_dict = as_dict

    def __len__(self):
        return N

    def __getitem__(self, index):
        image = self.transform(self.images[index])
        # Draws from all three generators that transforms in the wild draw from.
        image = image * (0.9 + 0.05 * random.random() + 0.05 * float(np.random.rand()))
        if self.as_dict:
            return {"image": image, "label": self.targets[index]}
        return image, self.targets[index]


def tensors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset(x, torch.arange(N) % 3)


DATASETS = {
    "tensors": tensors,
    "subset": lambda: Subset(tensors(), range(5, 45)),
    "photos": Photos,
    "dicts": lambda: Photos(as_dict=True),
}


def run(name, model, num_workers):
    """Train two epochs by the printed loop; return the loader and the number of steps."""
    optimizer, steps = torch.optim.SGD(model.parameters(), 0.05), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    text = LOOP.replace("num_workers=2", f"num_workers={num_workers}")
    text = text.replace("batch_size=128", "batch_size=16")
    scope = {"train_set": DATASETS[name](), "model": model, "optimizer": optimizer, "num_epochs": 2}
    exec(text, scope)
    return scope["loader"], len(steps)
