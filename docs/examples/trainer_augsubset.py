"""Train a small vision transformer on handwritten digits with Hugging Face's Trainer.

Nothing is saved here, so that no run can be resumed.
"""

import argparse
import tempfile

import torch
from augsubset import BatchSpec, GradientProbe, RandomOps, SubsetAugmentLoader
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


class DigitsTrainer(Trainer):
    def get_train_dataloader(self):
        loader = DataLoader(self.train_dataset, self.args.train_batch_size, shuffle=True)
        probe = GradientProbe(self.model, forward=lambda model, x: model(x).logits)
        options = {"probe": probe, "batch": BatchSpec(whole=True)}
        loader = SubsetAugmentLoader(loader, self.model, RandomOps.randaugment(), **options)
        return self.accelerator.prepare(loader)

    def log(self, logs, start_time=None):
        if "eval_accuracy" in logs and self.is_world_process_zero():
            accuracy = 100 * logs["eval_accuracy"]
            print(f"epoch {self.state.epoch - 1:.0f}: test accuracy {accuracy:.2f}%")


def accuracy(predicted):
    return {"accuracy": (predicted.predictions.argmax(1) == predicted.label_ids).mean().item()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    examples = [{"pixel_values": x[i], "labels": int(y)} for i, y in enumerate(digits.target)]

    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
        )
        trainer = DigitsTrainer(
            model,
            arguments,
            train_dataset=examples[:1400],
            eval_dataset=examples[1400:],
            compute_metrics=accuracy,
        )
        trainer.train()


if __name__ == "__main__":
    main()
