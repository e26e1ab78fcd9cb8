"""Train a ResNet18 on CIFAR-10 with crop and flip."""

import argparse

import torch
import torch.nn.functional as F
from augsubset import RandomOps, SubsetAugmentLoader
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="data")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    normalize = [ToTensor(), Normalize(MEAN, STD)]
    augment = [RandomCrop(32, padding=4), RandomHorizontalFlip()]
    train_set = CIFAR10(args.root, train=True, transform=Compose(augment + normalize))
    test_set = CIFAR10(args.root, train=False, transform=Compose(normalize))
    loader = DataLoader(train_set, batch_size=128, shuffle=True, num_workers=args.workers)
    test_loader = DataLoader(test_set, batch_size=500, num_workers=args.workers)

    model = resnet18(num_classes=10).to(device)
    loader = SubsetAugmentLoader(loader, model, RandomOps.randaugment(), denormalize=(MEAN, STD))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()

        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in test_loader:
                correct += (model(x.to(device)).argmax(1).cpu() == y).sum().item()
        print(f"epoch {epoch}: test accuracy {100 * correct / len(test_set):.2f}%")


if __name__ == "__main__":
    main()
