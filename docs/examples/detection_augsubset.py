"""Train a small network to find the one bright square in each image."""

import argparse

import torch
import torch.nn.functional as F
from augsubset import BatchSpec, GradientProbe, SubsetAugmentLoader
from torch import nn
from torch.utils.data import DataLoader

import toy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    loader = DataLoader(toy.squares(1000, seed=0), batch_size=32, shuffle=True)
    test_x, test_boxes = (part.to(device) for part in toy.squares(400, seed=1).tensors)

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    loader = SubsetAugmentLoader(loader, model, toy.flip, batch=BatchSpec(others=[1]), probe=GradientProbe(model, loss="mse"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for epoch in range(args.epochs):
        for x, boxes in loader:
            x, boxes = x.to(device), boxes.to(device)
            loss = F.mse_loss(model(x), boxes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            error = F.l1_loss(model(test_x), test_boxes).item()
        print(f"epoch {epoch}: test error {100 * error:.2f}% of the image's width")


if __name__ == "__main__":
    main()
