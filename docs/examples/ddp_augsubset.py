"""Train a small network on handwritten digits on several ranks: torchrun this script."""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from augsubset import RandomOps, SubsetAugmentLoader
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train_set = TensorDataset(x[:1400], y[:1400])
    test_x, test_y = x[1400:].to(device), y[1400:].to(device)
    sampler = DistributedSampler(train_set)
    loader = DataLoader(train_set, batch_size=32, sampler=sampler)

    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = DistributedDataParallel(nn.Sequential(*conv, nn.Linear(256, 10)).to(device))
    loader = SubsetAugmentLoader(loader, model, RandomOps.randaugment())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        if dist.get_rank() == 0:
            with torch.no_grad():
                accuracy = (model.module(test_x).argmax(1) == test_y).float().mean().item()
            print(f"epoch {epoch}: test accuracy {100 * accuracy:.2f}%")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
