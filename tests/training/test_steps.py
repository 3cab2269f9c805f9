"""Every way of stepping: accumulation, clipping, line searches, several optimizers, short and unforeseen ends."""

from __future__ import annotations

import copy
import pickle
import warnings
from importlib.metadata import version

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from helpers.models import DEAD, Layers, Manual, Tiny, dead, images, loader
from helpers.training import quiet
from helpers.twins import QUIET, assert_identical, left_behind, train, train_twice
from lightning_deadkernel import DeadKernelMonitor
from lightning_deadkernel.errors import DeadKernelWarning


def windows(monitor) -> list[tuple[int, int, int, int | None]]:
    """(index, batches, optimizer steps, samples) of all reports."""
    return [(r.window, r.batches, r.optimizer_steps, r.samples) for r in monitor.reports]


def with_validation(trainer, model, data):
    trainer.fit(model, data, DataLoader(images(16), 8))


# -- accumulation, clipping, schedules --------------------------------------------------------------------------------


@pytest.mark.setting("gradient accumulation, with a leftover", evidence="activation")
@pytest.mark.parametrize(("accumulate", "steps"), [(2, 3), (4, 2)], ids=["even", "with a leftover"])
def test_gradient_accumulation_sees_every_batch_and_counts_steps(accumulate, steps):
    run = train_twice(Tiny, accumulate_grad_batches=accumulate)
    assert windows(run.monitor) == [(0, 0, 0, 0), (1, 6, steps, 48), (2, 6, steps, 48)]
    assert dead(run.report) == DEAD


class OwnClipping(Tiny):
    def configure_gradient_clipping(self, *args, **kwargs):
        """Clips nothing, whatever the Trainer was told."""


@pytest.mark.parametrize(
    ("net", "algorithm", "clip"), [(Tiny, "norm", 0.5), (Tiny, "value", None), (OwnClipping, "norm", None)]
)
def test_the_norm_that_gradients_are_clipped_to_is_told_where_that_is_sure(net, algorithm, clip):
    monitor = quiet()
    options = QUIET | {"max_steps": 1, "callbacks": [monitor]}
    L.Trainer(**options, gradient_clip_val=0.5, gradient_clip_algorithm=algorithm).fit(net(), loader())
    assert monitor.report.run.gradient_clip == clip


@pytest.mark.setting("clipping by norm or value", evidence="activation")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_reported_as_they_are_before_clipping(algorithm):
    clipped = train_twice(Tiny, gradient_clip_val=1e-6, gradient_clip_algorithm=algorithm, max_steps=1)
    plain = train_twice(Tiny, max_steps=1)
    assert clipped.report.gradient_norm == plain.report.gradient_norm
    assert clipped.report["net.conv2"].update_ratio < 0.01 * plain.report["net.conv2"].update_ratio
    assert dead(clipped.report) == DEAD


class Scheduled(Tiny):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], [{"scheduler": step, "interval": "step"}]


@pytest.mark.setting("learning-rate schedulers", evidence="activation")
def test_learning_rate_schedules_go_on_as_without_the_monitor():
    run = train_twice(Scheduled)
    assert dead(run.report) == DEAD


# -- optimizers and steps of all kinds --------------------------------------------------------------------------------


class LineSearch(Tiny):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=3)


@pytest.mark.setting("LBFGS", evidence="activation")
def test_lbfgs_with_several_backwards_a_batch_counts_one_step_a_batch():
    run = train_twice(LineSearch, log_every_n_steps=1)
    assert windows(run.monitor) == [(0, 0, 0, 0), (1, 6, 6, 48), (2, 6, 6, 48)]
    assert run.report.sampled_steps == 6
    assert dead(run.report) == DEAD
    assert run.report["net.conv2"].update_ratio > 0


class Skips(Tiny):
    """Every second step gives None, the first one too."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss if batch_idx % 2 else None


@pytest.mark.setting("`training_step` returns None", evidence="activation")
def test_a_training_step_that_returns_none_is_passed_over():
    run = train_twice(Skips)
    assert dead(run.report) == DEAD


class NeverTrains(Tiny):
    def training_step(self, batch, batch_idx):
        return None


def test_a_training_that_never_has_a_loss_is_one_warning_and_no_report():
    with pytest.warns(DeadKernelWarning, match="no training step gave a loss") as caught:
        run = train_twice(NeverTrains)
    assert len([w for w in caught if issubclass(w.category, DeadKernelWarning)]) == 1
    assert run.monitor.report is None


@pytest.mark.setting("manual optimization", evidence="activation")
def test_manual_optimization_is_seen_like_automatic():
    run = train_twice(Manual)
    assert windows(run.monitor) == [(0, 0, 0, 0), (1, 6, 3, 48), (2, 6, 3, 48)]
    assert dead(run.report) == DEAD
    assert run.report["net.conv1"].gradient_ratio is not None


class ByHand(Manual):
    """Calls `loss.backward()` itself, so that no hook of Lightning's fires."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()


class BehindTheBack(ByHand):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()


@pytest.mark.setting("manual optimization by `loss.backward()`", evidence="weights only, one warning")
@pytest.mark.parametrize("make", [ByHand, BehindTheBack])
def test_a_users_own_backward_is_one_warning_and_weights_alone_are_watched(make):
    with pytest.warns(DeadKernelWarning, match="manual_backward") as caught:
        run = train_twice(make, monitor=quiet(on_finding="warn"))
    assert len([w for w in caught if "manual_backward" in str(w.message)]) == 1
    assert dead(run.report) == {}
    assert run.report["net.conv1"].zero_kernels == [3]
    assert run.report["net.conv1"].zero_gradient == []
    assert run.report["net.conv1"].evidence == "weight"


class Twice(Manual):
    """Two optimizer steps in one batch."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


@pytest.mark.setting("manual optimization", evidence="activation")
def test_two_steps_in_one_batch_are_measured_one_by_one():
    run = train_twice(Twice, max_epochs=1, log_every_n_steps=1)
    once = train_twice(Tiny, max_epochs=1, log_every_n_steps=1)
    assert (run.report.optimizer_steps, run.report.sampled_steps) == (12, 12)
    assert run.report["net.conv2"].update_ratio < 1.8 * once.report["net.conv2"].update_ratio
    assert dead(run.report) == DEAD


class Gan(L.LightningModule):
    """Two networks that step in turn; the generator's gradients stay while the discriminator steps, and go stale."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 64))
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 1))
        with torch.no_grad():
            for layer in (self.generator[0], self.generator[2], self.discriminator[1]):
                layer.bias.fill_(3.0)
            self.generator[2].weight.abs_()
            self.generator[0].bias[1] = -100
            self.generator[2].bias[7] = -100
            self.discriminator[1].bias[4] = -100

    def training_step(self, batch, batch_idx):
        x, _ = batch
        first, second = self.optimizers()
        z = torch.randn(len(x), 4)
        if batch_idx == 0:  # afterwards its gradients are stale
            self.toggle_optimizer(first)
            first.zero_grad()
            self.manual_backward(self.discriminator(self.generator(z)).mean())
            first.step()
            self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(F.softplus(-self.discriminator(x)).mean())
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [torch.optim.Adam(m.parameters(), 1e-3) for m in (self.generator, self.discriminator)]


@pytest.mark.setting("GAN with two optimizers, stale gradients", evidence="activation")
def test_a_gan_has_both_networks_dead_channels_and_its_stale_gradients_are_no_evidence():
    run = train_twice(Gan, monitor=quiet(every_n_train_steps=2), max_epochs=1, log_every_n_steps=1)
    first, rest = run.monitor.reports[1], run.monitor.reports[2:]
    assert dead(first, "") == {"generator.0": [1], "generator.2": [7], "discriminator.1": [4]}
    assert len(rest) >= 2
    for report in rest:
        assert dead(report, "") == {"discriminator.1": [4]}
        for layer in ("generator.0", "generator.2", "generator.4"):
            assert report[layer].excluded == "not used in this window"


class Heads(Tiny):
    """One head on even batches, the other on odd ones, which are never sampled."""

    def make_net(self):
        net = Layers()
        net.other = nn.Linear(8, 3)
        return net

    def training_step(self, batch, batch_idx):
        net = self.net
        if batch_idx % 2:
            net.head, net.other = net.other, net.head
        loss = self.loss(batch)
        if batch_idx % 2:
            net.head, net.other = net.other, net.head
        return loss


def test_a_layer_that_is_used_on_unsampled_steps_alone_is_watched():
    run = train_twice(Heads, data=lambda: loader(40), log_every_n_steps=50)
    assert run.report["net.other"].excluded is None
    assert run.report["net.other"].states == ["active"] * 3
    assert dead(run.report) == DEAD


# -- weight averaging -------------------------------------------------------------------------------------------------


@pytest.mark.setting("weight averaging (EMA, SWA)", evidence="activation")
@pytest.mark.parametrize(
    "averaging",
    [
        pytest.param(
            lambda: [callbacks.EMAWeightAveraging(decay=0.9)],
            marks=pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning 2.6 brought it"),
        ),
        lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1)],
    ],
    ids=["EMA", "SWA"],
)
def test_callbacks_that_swap_weights_get_along(averaging):
    run = train_twice(Tiny, callbacks=averaging, max_epochs=3, fit=with_validation)
    assert [r.window for r in run.monitor.reports] == [0, 1, 2, 3]
    assert dead(run.report) == DEAD


# -- where windows end ------------------------------------------------------------------------------------------------


@pytest.mark.setting("`overfit_batches`, `limit_train_batches`", evidence="activation")
def test_overfitting_one_batch_and_limiting_batches_close_one_window_an_epoch():
    run = train_twice(Tiny, overfit_batches=2)
    assert windows(run.monitor)[1:] == [(1, 2, 2, 16), (2, 2, 2, 16)]
    run = train_twice(Tiny, limit_train_batches=4)
    assert windows(run.monitor)[1:] == [(1, 4, 4, 32), (2, 4, 4, 32)]
    assert dead(run.report) == DEAD


@pytest.mark.setting("`max_steps` in mid-epoch", evidence="activation")
def test_max_steps_in_mid_epoch_closes_one_window_with_all_its_batches():
    run = train_twice(Tiny, max_steps=9, max_epochs=-1)
    assert windows(run.monitor)[1:] == [(1, 6, 6, 48), (2, 3, 3, 24)]
    assert run.report.global_step == 9


def test_windows_by_steps_run_over_epochs_and_the_last_may_be_short():
    run = train_twice(Tiny, monitor=quiet(every_n_train_steps=5))
    assert windows(run.monitor)[1:] == [(1, 5, 5, 40), (2, 5, 5, 40), (3, 2, 2, 16)]
    assert all(dead(report) == DEAD for report in run.monitor.reports[1:])


class Sampled(DeadKernelMonitor):
    """Notes the batches of which it takes the costlier statistics."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches = [*getattr(self, "batches", []), *([batch_idx] if self._run.sampled else [])]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def sampled_batches(batches, **options):
    monitor = Sampled(log_figures=False, save_report=False, on_finding="ignore")
    data = DataLoader(images(2 * batches), 2)
    train(Tiny, data=lambda: data, monitor=monitor, **{"max_epochs": 1, "log_every_n_steps": 1000, **options})
    return monitor.batches


@pytest.mark.setting("epochs shorter than `log_every_n_steps`", evidence="activation")
def test_epochs_shorter_than_log_every_n_steps_have_eight_steps_sampled_that_are_spread_over_them():
    assert sampled_batches(3) == [0, 1, 2]
    assert sampled_batches(8) == list(range(8))
    assert sampled_batches(22) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert sampled_batches(22, log_every_n_steps=0) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert sampled_batches(30, max_steps=15) == [0, 2, 4, 6, 8, 10, 12, 14]
    # the first batch of a window, from which no step is taken, and eight that end in one
    assert sampled_batches(64, accumulate_grad_batches=4) == [0, 3, 11, 19, 27, 39, 47, 55, 63]


def test_windows_by_steps_have_eight_sampled_steps_each():
    run = train_twice(Tiny, monitor=quiet(every_n_train_steps=12), log_every_n_steps=1000, max_epochs=4)
    assert [report.sampled_steps for report in run.monitor.reports[1:]] == [8, 8]


def test_of_an_epoch_of_unknown_length_steps_are_sampled_ever_further_apart():
    monitor = Sampled(log_figures=False, save_report=False, on_finding="ignore")
    train(Tiny, data=lambda: DataLoader(Stream(), 1), monitor=monitor, max_epochs=1, log_every_n_steps=1000)
    assert monitor.batches[:6] == [0, 1, 2, 4, 8, 16]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([images(20)[i] for i in range(20)])


@pytest.mark.setting("`IterableDataset` without length, `dataloader_iter`", evidence="activation")
def test_an_iterable_dataset_without_length_closes_its_window_at_the_epochs_end():
    run = train_twice(Tiny, data=lambda: DataLoader(Stream(), 8))
    assert windows(run.monitor)[1:] == [(1, 3, 3, 20), (2, 3, 3, 20)]
    assert dead(run.report) == DEAD


class OwnIterator(Tiny):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


@pytest.mark.setting("`IterableDataset` without length, `dataloader_iter`", evidence="activation")
def test_a_step_that_draws_its_own_batches_has_them_counted():
    run = train_twice(OwnIterator)
    assert windows(run.monitor)[1:] == [(1, 6, 6, 48), (2, 6, 6, 48)]


class Odd(Tiny):
    """A batch whose size nobody can tell."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["pair"].values, batch_idx)


class Pair:
    def __init__(self, values):
        self.values = values


def test_samples_are_none_where_a_batch_cannot_be_measured():
    wrap = lambda rows: {"pair": Pair(torch.utils.data.default_collate(rows))}  # noqa: E731
    run = train_twice(Odd, data=lambda: DataLoader(images(), 8, shuffle=True, collate_fn=wrap))
    assert run.report.samples is None
    assert dead(run.report) == DEAD


class EndsEarly(Tiny):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


def test_an_epoch_that_the_module_ends_early_is_closed_with_what_it_had():
    run = train_twice(EndsEarly)
    assert windows(run.monitor)[1:] == [(1, 3, 3, 24), (2, 3, 3, 24)]


class Stops(Tiny):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.should_stop = self.global_step == 8


def test_should_stop_closes_the_window_and_training_ends_as_without_the_monitor():
    run = train_twice(Stops)
    assert windows(run.monitor)[1:] == [(1, 6, 6, 48), (2, 2, 2, 16)]


# -- validation and metrics -------------------------------------------------------------------------------------------


@pytest.mark.setting("validation, sanity check, `val_check_interval`", evidence="activation")
def test_validation_batches_are_never_counted_nor_seen():
    run = train_twice(Tiny, fit=with_validation, val_check_interval=2, num_sanity_val_steps=1)
    assert windows(run.monitor)[1:] == [(1, 6, 6, 48), (2, 6, 6, 48)]
    assert dead(run.report) == DEAD


@pytest.mark.setting("`EarlyStopping`, `ModelCheckpoint` on `deadkernel/*`")
@pytest.mark.parametrize("fit", [None, with_validation], ids=["without validation", "with validation"])
def test_early_stopping_and_checkpoints_can_watch_the_dead_fraction(tmp_path, fit):
    stop = EarlyStopping("deadkernel/dead_fraction", patience=0, check_on_train_epoch_end=fit is None, strict=True)
    keep = ModelCheckpoint(tmp_path / "kept", "{epoch}-{deadkernel/dead_fraction:.3f}", "deadkernel/dead_fraction")
    run = train(Tiny, quiet(), callbacks=lambda: [stop, keep], fit=fit, max_epochs=5, enable_checkpointing=True)
    assert run.trainer.current_epoch == 2, "the dead fraction does not fall, so patience is over after two epochs"
    assert float(stop.best_score) == pytest.approx(3 / 15)
    assert "dead_fraction=0.200" in keep.best_model_path
    assert float(run.trainer.callback_metrics["deadkernel/dead_fraction"]) == pytest.approx(3 / 15)


@pytest.mark.setting("`EarlyStopping`, `ModelCheckpoint` on `deadkernel/*`")
def test_a_checkpoint_within_the_epoch_can_watch_the_dead_fraction_of_the_last_window(tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", monitor="deadkernel/dead_channels", every_n_train_steps=3, mode="max")
    train(Tiny, quiet(every_n_train_steps=3), callbacks=lambda: [keep], enable_checkpointing=True)
    assert float(keep.best_model_score) == 3


# -- several fits, several trainers -----------------------------------------------------------------------------------


@pytest.mark.setting("`fast_dev_run`", evidence="activation", note="writes no file")
def test_fast_dev_run_writes_nothing(tmp_path):
    run = train(Tiny, DeadKernelMonitor(on_finding="ignore"), fast_dev_run=2, default_root_dir=tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []
    assert run.report.batches == 2


@pytest.mark.setting("several fits, two trainers, Tuner", evidence="activation")
def test_a_second_fit_of_the_same_trainer_goes_on_in_the_same_history():
    def fit(trainer, model, data):
        trainer.fit(model, data)
        trainer.fit_loop.max_epochs = 4
        trainer.fit(model, data)

    run = train_twice(Tiny, fit=fit)
    assert windows(run.monitor) == [(0, 0, 0, 0), *((i, 6, 6, 48) for i in (1, 2, 3, 4))]


class Wide(Tiny):
    def make_net(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.setting("several fits, two trainers, Tuner", evidence="activation")
def test_a_new_training_with_the_same_callback_begins_a_new_history():
    monitor = quiet()
    first = train(Tiny, monitor)
    before = monitor.reports
    second = train(Wide, monitor)
    assert [report.window for report in monitor.reports] == [0, 1, 2]
    assert [layer.name for layer in second.report.layers] == ["net.1", "net.3"]
    assert first.monitor is second.monitor
    assert before[0]["net.conv1"].channels == 4, "the first training's reports are not written over"


@pytest.mark.setting("several fits, two trainers, Tuner", evidence="activation")
def test_two_trainers_in_one_process_each_keep_their_own():
    class Outer(Tiny):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == 3:
                inner.append(train(Wide, quiet()))
                L.seed_everything(4, verbose=False)

    inner: list = []
    run = train(Outer, quiet())
    assert [layer.name for layer in inner[0].report.layers] == ["net.1", "net.3"]
    assert dead(run.report) == DEAD
    assert windows(run.monitor)[1:] == [(1, 6, 6, 48), (2, 6, 6, 48)]


class Tunable(Tiny):
    batch_size = 4

    def __init__(self):
        super().__init__()
        self.lr = 0.01

    def train_dataloader(self):
        return loader(batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(images(16), 8)


@pytest.mark.setting("several fits, two trainers, Tuner", evidence="activation")
@pytest.mark.slow
def test_the_learning_rate_finder_and_the_batch_size_finder_leave_no_trace_in_the_reports():
    def fit(trainer, model, data):
        tuner = Tuner(trainer)
        tuner.scale_batch_size(model, max_trials=2, steps_per_trial=2, init_val=4)
        tuner.lr_find(model, num_training=6, min_lr=1e-5, max_lr=1e-3)
        model.lr = 0.01
        trainer.fit(model)

    run = train_twice(Tunable, fit=fit, logger=False, enable_checkpointing=True)
    size = run.model.batch_size
    assert windows(run.monitor) == [(0, 0, 0, 0), *((i, 48 // size, 48 // size, 48) for i in (1, 2))]
    assert dead(run.report) == DEAD


def test_the_monitor_can_be_pickled_and_copied_before_and_after_a_fit():
    monitor = quiet()
    copy.deepcopy(monitor)
    train(Tiny, pickle.loads(pickle.dumps(monitor)))
    train(Tiny, monitor)
    for twin in (pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)):
        assert [report.compact() for report in twin.reports] == [report.compact() for report in monitor.reports]


def test_warnings_are_none_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadKernelWarning)
        train(Tiny, quiet(), callbacks=lambda: [LearningRateMonitor()], logger=True)


def test_the_comparison_itself_notices_one_bit():
    run = train(Tiny, None, max_steps=1)
    before = left_behind(run.trainer, run.model)
    with torch.no_grad():
        run.model.net.conv1.weight.view(-1).view(torch.int32)[0] ^= 1
    with pytest.raises(AssertionError, match=r"net\.conv1\.weight"):
        assert_identical(left_behind(run.trainer, run.model), before)
    assert QUIET["max_epochs"] == 2


def test_a_report_says_whose_training_it_is():
    class WithAdam(Tiny):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=3e-4, betas=(0.8, 0.99), weight_decay=0.02)

    run = train(WithAdam, quiet()).report.run
    assert (run.model, run.precision, run.ranks) == ("WithAdam", "32-true", 1)
    (optimizer,) = run.optimizers
    assert (optimizer.name, optimizer.groups) == ("Adam", 1)
    assert optimizer.settings["lr"] == 3e-4
    assert optimizer.settings["weight_decay"] == 0.02
    assert [optimizer.settings[f"betas[{i}]"] for i in range(2)] == [0.8, 0.99]
    assert run.versions["torch"] == version("torch")
    assert run.started <= run.ended


class Sigmoids(Tiny):
    """So deep that the first layers' gradients vanish from the first step on."""

    def make_net(self):
        hidden = [module for _ in range(12) for module in (nn.Linear(16, 16), nn.Sigmoid())]
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *hidden, nn.Linear(16, 3))


def test_with_one_step_an_epoch_a_verdict_on_gradients_waits_for_eight_and_says_so():
    data = lambda: loader(batch_size=48)  # noqa: E731
    run = train_twice(Sigmoids, data=data, max_epochs=9)
    found = [{finding.kind for finding in report.findings} for report in run.monitor.reports[1:]]
    assert ["vanishing_gradient" in kinds for kinds in found] == [False] * 7 + [True] * 2
    notes = [[note for note in report.notes if "not said yet" in note] for report in run.monitor.reports[1:]]
    assert [len(note) for note in notes] == [1] * 7 + [0] * 2
    assert "sampled on 3 steps, and that takes 8" in notes[2][0]
