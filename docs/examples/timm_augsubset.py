"""Train one of timm's networks on handwritten digits."""

import argparse

import timm
import torch
import torch.nn.functional as F
from augsubset import RandomOps, SubsetAugmentLoader
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    x = F.interpolate(x, (16, 16)).expand(-1, 3, -1, -1)
    y = torch.tensor(digits.target)
    train_set = TensorDataset(x[:1400], y[:1400])
    test_x, test_y = x[1400:].to(device), y[1400:].to(device)
    loader = DataLoader(train_set, batch_size=32, shuffle=True, drop_last=True)

    torch.manual_seed(0)
    model = timm.create_model(args.model, pretrained=False, num_classes=10).to(device)
    loader = SubsetAugmentLoader(loader, model, RandomOps.randaugment())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        model.eval()
        with torch.no_grad():
            accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
        print(f"epoch {epoch}: test accuracy {100 * accuracy:.2f}%")


if __name__ == "__main__":
    main()
