"""Train the interpretable ResNet-18 with Lightning (pip install lightning).

python tests/examples/train_lightning.py
"""

from __future__ import annotations

import lightning
import torch
from resnet18 import InterpretableResNet, pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ipcnn_ray import LandmarkTracking, receptive_field


class Classifier(lightning.LightningModule):
    """The network, its loss, and landmark tracking on the validation pictures."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.net = InterpretableResNet(classes=3, image_size=image_size)
        field = receptive_field(nn.Sequential(self.net.body, self.net.conv))
        self.tracking = LandmarkTracking(image_size, field=field, top_images=20)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels, _ = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        filter_loss = self.net.layer.filter_loss()  # of the batches of all processes
        self.log_dict({"loss": loss, "filter_loss": filter_loss}, prog_bar=True)
        return loss + 0.01 * filter_loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels, landmarks = batch
        self.tracking.update(self.net.maps(images), landmarks, labels)

    def on_validation_epoch_end(self) -> None:
        self.log("landmark_tracking", self.tracking.compute().mean)  # of the pictures of all processes
        self.tracking.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(images: int = 192, epochs: int = 3, image_size: int = 96, batch_size: int = 16) -> dict[str, float]:
    """Train and return the logged metrics."""
    torch.manual_seed(0)
    train = DataLoader(
        TensorDataset(*pictures(images, image_size=image_size)), batch_size, shuffle=True, drop_last=True
    )
    other = DataLoader(TensorDataset(*pictures(48, image_size=image_size, seed=1)), batch_size)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(image_size), train, other)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    print(main())
