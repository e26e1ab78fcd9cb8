"""Train a bag of embeddings to tell texts of four kinds apart."""

import argparse

import torch
import torch.nn.functional as F
from augsubset import SubsetAugmentLoader
from torch import nn
from torch.utils.data import DataLoader

import toy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    loader = DataLoader(toy.sentences(2000, seed=0), batch_size=32, shuffle=True)
    test_ids, test_y = (part.to(device) for part in toy.sentences(1000, seed=1).tensors)

    torch.manual_seed(0)
    layers = [nn.EmbeddingBag(toy.WORDS, 32), nn.Linear(32, toy.CLASSES)]
    model = nn.Sequential(*layers).to(device)
    loader = SubsetAugmentLoader(loader, model, toy.drop_words)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for epoch in range(args.epochs):
        for ids, y in loader:
            ids, y = ids.to(device), y.to(device)
            loss = F.cross_entropy(model(ids), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            accuracy = (model(test_ids).argmax(1) == test_y).float().mean().item()
        print(f"epoch {epoch}: test accuracy {100 * accuracy:.2f}%")


if __name__ == "__main__":
    main()
