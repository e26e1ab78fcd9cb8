"""Train a small network on handwritten digits with Lightning."""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from augsubset import RandomOps
from augsubset.integrations.lightning import SubsetAugmentCallback, prepare
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        conv = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        self.net = nn.Sequential(*conv, nn.Linear(256, 10))
        digits = load_digits()
        x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
        y = torch.tensor(digits.target)
        self.train_set = TensorDataset(x[:1400], y[:1400])
        self.test_set = TensorDataset(x[1400:], y[1400:])

    def forward(self, x):
        return self.net(x)

    def train_dataloader(self):
        loader = DataLoader(self.train_set, batch_size=32, shuffle=True, num_workers=2)
        loader = prepare(self.trainer, loader, self, RandomOps.randaugment())
        return loader

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def val_dataloader(self):
        return DataLoader(self.test_set, batch_size=500, num_workers=2)

    def validation_step(self, batch):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), sync_dist=True)

    def on_validation_epoch_end(self):
        accuracy = self.trainer.callback_metrics["accuracy"].item()
        self.print(f"epoch {self.current_epoch}: test accuracy {100 * accuracy:.2f}%")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        callbacks=[SubsetAugmentCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Digits())


if __name__ == "__main__":
    main()
