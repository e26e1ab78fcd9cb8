"""Train a small network on handwritten digits with Accelerate, on one process or several."""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from augsubset import RandomOps
from augsubset.integrations.accelerate import prepare
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())

    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=32, shuffle=True)
    test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), batch_size=100)

    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*conv, nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = prepare(accelerator, loader, model, RandomOps.randaugment())
    model, optimizer, loader, test_loader = accelerator.prepare(model, optimizer, loader, test_loader)

    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()

        model.eval()
        is_right = []
        with torch.no_grad():
            for x, y in test_loader:
                is_right.append(accelerator.gather_for_metrics(model(x).argmax(1) == y))
        accuracy = torch.cat(is_right).float().mean().item()
        accelerator.print(f"epoch {epoch}: test accuracy {100 * accuracy:.2f}%")
    accelerator.end_training()


if __name__ == "__main__":
    main()
