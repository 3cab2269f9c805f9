"""`pytorch_lightning` beside `lightning`: the same code under another name, so that no class is an instance of both."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from helpers.models import DEAD, Layers, Tiny, dead, images
from helpers.training import quiet
from helpers.twins import train, train_twice

pl = pytest.importorskip("pytorch_lightning")


class Other(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Layers()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def with_validation(trainer, model, data):
    trainer.fit(model, data, DataLoader(images(16), 8))


@pytest.mark.setting("`pytorch_lightning` as namespace, from its release 2.6 on", evidence="activation")
def test_a_trainer_of_pytorch_lightning_takes_the_monitor_with_the_same_result():
    run = train_twice(Other, trainer_class=pl.Trainer, fit=with_validation)
    assert dead(run.report) == DEAD
    assert run.report.samples == 48
    plain = train(Tiny, quiet(), fit=with_validation)
    assert [layer.codes for layer in run.report.layers] == [layer.codes for layer in plain.report.layers]


def test_its_early_stopping_checkpoints_and_loggers_work_with_the_monitor(tmp_path):
    stop = pl.callbacks.EarlyStopping("deadkernel/dead_fraction", patience=0, strict=True)
    logger = pl.loggers.CSVLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch|pytorch_lightning|lightning")
        run = train(
            Other,
            quiet(save_report=True),
            trainer_class=pl.Trainer,
            callbacks=lambda: [stop],
            logger=logger,
            enable_checkpointing=True,
            max_epochs=5,
            fit=with_validation,
        )
    assert run.trainer.current_epoch == 2
    assert "deadkernel/dead_fraction" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert (tmp_path / "lightning_logs/version_0/deadkernel/report.json").exists()


def test_it_resumes_from_its_checkpoint(tmp_path):
    first = train(Other, quiet(), trainer_class=pl.Trainer, max_epochs=1)
    first.trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = train(
        Other,
        quiet(),
        trainer_class=pl.Trainer,
        fit=lambda trainer, model, data: trainer.fit(model, data, ckpt_path=tmp_path / "one.ckpt"),
    )
    assert [report.window for report in second.monitor.reports] == [0, 1, 2]
