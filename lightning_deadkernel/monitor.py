"""The callback: says which Lightning hook does what. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training import options
from lightning_deadkernel.training.checkpoint import parted
from lightning_deadkernel.training.never_raise import warn_internal
from lightning_deadkernel.training.trainer import log_every

if TYPE_CHECKING:
    from lightning_deadkernel.report.plot import Plot
    from lightning_deadkernel.report.report import Report
    from lightning_deadkernel.training.run import Run


class DeadKernelMonitor(Callback):
    """Tells for every kernel of the network whether it is alive, why it is not, and what to do about it.

    It reads what training already built (the autograd graph and the gradients), registers nothing on the model, and
    leaves training bit for bit as it was. A *window* is what a verdict speaks about: one training epoch, or as many as
    make `min_steps` optimizer steps, or `every_n_train_steps` optimizer steps. At a window's end a `Report` is made and
    logged to all loggers of the trainer, and the last one is saved to ``<log_dir>/deadkernel/``.

    Args:
        every_n_train_steps: window length in optimizer steps; None: windows end with epochs.
        include: glob patterns of the names of layers to watch; None: all.
        exclude: glob patterns of the names of layers not to watch.
        thresholds: where the lines of the diagnosis are drawn; a mapping of their names to numbers is taken too.
        log_histograms: log histograms of weights, gradients, firing rates and kernel norms at window ends.
        log_figures: draw and log pictures at the end of fit, and at window ends while that takes no more than a
            fiftieth of the run's time (needs the ``plots`` extra).
        log_layers: log per-layer scalars and histograms: True, of all layers; a number k, of all in a network of at
            most k layers, and in a larger one of the k worst, with the range of each stage. The summary is always
            logged.
        save_report: save report.json, report.md and the pictures to ``<log_dir>/deadkernel/``, however the run ends,
            and at window ends while that takes no more than a hundredth of its time.
        when_compiled: of a model under `torch.compile`, ``"sample"``: sampled steps run eagerly so that activations can
            be read; ``"gradients"``: no step does, and verdicts stop at *zero-gradient*.
        on_finding: ``"warn"``: one warning per new problem; ``"ignore"``: none; ``"raise"``: a `DeadKernelError` at the
            window's end, after the report is saved, if there is a finding of severity warning or error.
        update_ratio: measure ||dW|| / ||W|| on sampled steps, which takes a copy of the weights during that step: of
            all on the first and the last of a window, of two million in turn on the others.
        prog_bar: show the dead fraction and the number of vanishing layers in the progress bar.
        min_steps: optimizer steps that a window of epochs has at least: shorter epochs share one, and the report says
            which they are. Only the first window ends with the first epoch, however short, so that all logged keys are
            there from then on; between two windows `trainer.callback_metrics` keep the last one's values. 1: one window
            per epoch.

    Logged scalars (the key set is constant from the first window on; the separator is the logger's own):
        ``deadkernel/dead_fraction``, ``deadkernel/dead_channels``, ``deadkernel/zero_kernel_fraction``,
        ``deadkernel/starved_fraction``, ``deadkernel/dormant_fraction``, ``deadkernel/weight_sparsity``,
        ``deadkernel/activation_sparsity``, ``deadkernel/min_gradient_ratio``, ``deadkernel/vanishing_layers``,
        also in ``trainer.callback_metrics``, so `EarlyStopping` and `ModelCheckpoint` can monitor them; and per layer
        ``deadkernel.<statistic>/<layer>``, e.g. ``deadkernel.gradient_ratio/conv1``, or, of more layers than
        `log_layers`, ``deadkernel.<statistic>/worst_<rank>`` and ``deadkernel.<statistic>.stages/<stage>_lowest``,
        ``_median`` and ``_highest``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range; in `on_fit_start`, if a pattern matches no layer.
        DeadKernelError: at a window's end, with ``on_finding="raise"``.

    Example::

        monitor = DeadKernelMonitor()
        trainer = Trainer(callbacks=[monitor])
        trainer.fit(model, data)
        print(monitor.report["conv1"].dead)
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
        log_histograms: bool = True,
        log_figures: bool = True,
        log_layers: bool | int = 20,
        save_report: bool = True,
        when_compiled: options.WhenCompiled = "sample",
        on_finding: options.OnFinding = "warn",
        prog_bar: bool = False,
        update_ratio: bool = True,
        min_steps: int = 16,
    ) -> None:
        options.check_step_count("every_n_train_steps", every_n_train_steps, or_none=True)
        options.check_step_count("min_steps", min_steps, or_none=False)
        options.check_globs("include", include)
        options.check_globs("exclude", exclude)
        options.check_choice("when_compiled", when_compiled, get_args(options.WhenCompiled))
        options.check_choice("on_finding", on_finding, get_args(options.OnFinding))
        options.check_log_layers(log_layers)
        self.every_n_train_steps, self.min_steps = every_n_train_steps, min_steps
        self.include, self.exclude = include, exclude
        self.thresholds = options.thresholds_of(thresholds)
        self.log_histograms, self.log_figures, self.log_layers = log_histograms, log_figures, log_layers
        self.save_report = save_report
        self.when_compiled: options.WhenCompiled = when_compiled
        self.on_finding: options.OnFinding = on_finding
        self.prog_bar = prog_bar
        self.update_ratio = update_ratio

        watched = {"every_n_train_steps": every_n_train_steps, "include": include, "exclude": exclude}
        chosen = {option: value for option, value in watched.items() if value is not None}
        self._chosen = str(chosen) if chosen else ""  # once: Lightning asks for the key at every hook
        # a script that imports the class, and a command that shows its options, need not wait for what a fit needs
        from lightning_deadkernel.training.record import Record

        self._record = Record()
        self._run = self._new_run()
        self._log_every = 50
        self._evaluating = self._resumed = False
        self._half_open: dict[str, Any] | None = None

    @property
    def reports(self) -> list[Report]:
        """One report per closed window, oldest first; index 0 is the state at initialisation.

        Of more than 512 windows (fewer where the reports would take more than about 128 MB) the newer half of as many
        is kept, and of the older windows every second, fourth, eighth and so on; `history` has a row for every window.
        """
        return self._record.reports

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per closed window, oldest first: ``window``, ``epoch``, ``global_step``, and the report's summary."""
        return self._record.summaries()

    @property
    def report(self) -> Report | None:
        """The report of the last closed window; None before the first."""
        return self.reports[-1] if self.reports and self.reports[-1].window > 0 else None

    def plot(self, kind: str = "overview") -> Plot:
        """One picture of all windows so far; see `Report.plot` for the kinds and for what is raised."""
        from lightning_deadkernel.report.plot import plot  # not at the top, as `Record`

        return plot(self.reports, kind)

    def should_sample(self, step: int) -> bool:
        """Whether the costlier statistics are taken on this optimizer step.

        They always are on the first and last of a window, and on others so that there are eight, spread over it
        (of a compiled model, whose sampled steps run eagerly, on no others).

        Override it to sample by a rule of your own.

        Args:
            step: optimizer steps taken so far, as loggers count them.
        """
        return self._log_every > 0 and (step + 1) % self._log_every == 0

    def _new_run(self) -> Run:
        from lightning_deadkernel.training.run import Run  # not at the top, as `Record`

        return Run(self, self._record)

    # -- fit -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes what begins: Lightning hands a checkpoint's state to `load_state_dict` also before a test."""
        self._evaluating = stage != "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the table of layers. Raises ValueError for a pattern that matches no layer."""
        self._log_every = log_every(trainer)
        self._run = self._new_run()
        self._run.set_up(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the weights at initialisation, or resumes where a checkpoint left off."""
        if trainer.global_step == 0 and not self._resumed:  # not the training that earlier reports are about
            self._record.clear()
        half_open, self._half_open, self._resumed = self._half_open, None, False
        self._run.start(trainer, half_open)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decides whether this step is a sampled one."""
        self._run.begin_batch(trainer, batch, first_of_epoch=batch_idx == 0)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Reads the graph, and the activations it holds."""
        self._run.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the gradients of this backward into the evidence."""
        self._run.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """On a sampled step: sizes of gradients, and the weights before the step."""
        if self._run.sampled:
            self._run.before_optimizer_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts; on a sampled step, the update ratio. Closes the window where it ends."""
        self._run.end_batch(trainer, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes an epoch's window whose last batch was not foreseen."""
        self._run.end_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes what is open; saves the last report with its pictures."""
        self._run.finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores what was set for a step, and saves what has been seen."""
        self._run.interrupt(trainer, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores what was set for a step, whatever ended the run, prints the table, and lets the model go."""
        self._run.leave()
        self._run, self._evaluating = self._new_run(), False

    # -- checkpoints and copies ----------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Name of this monitor's state in a checkpoint; what it watches tells several of one Trainer apart."""
        return self._key_of(type(self).__qualname__)

    def _key_of(self, name: str) -> str:
        return name + self._chosen

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finds the state of a monitor that had other options, if there is one that no other monitor takes."""
        states = checkpoint.get("callbacks") or {}
        taken = {getattr(callback, "state_key", None) for callback in trainer.callbacks}  # type: ignore[attr-defined]
        others = [key for key in states if key.startswith(DeadKernelMonitor.__qualname__) and key not in taken]
        if self.state_key not in states and len(others) == 1:
            self.load_state_dict(states[others[0]])

    def __getstate__(self) -> dict[str, Any]:
        # a copy watches nothing: the fit, and the model whose `log` Lightning has put here, are the original's
        return {name: value for name, value in self.__dict__.items() if name not in ("_run", "log", "log_dict")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._run = self._new_run()

    def state_dict(self) -> dict[str, Any]:
        """History, reports and the open window, as plain tensors, lists, strings and numbers.

        While training runs on several ranks every rank must call it, as Lightning does.
        """
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint's history; the open window follows when training starts."""
        if self._evaluating:  # a test of old weights does not undo what training has shown
            return
        try:
            self._record.load_state_dict(state_dict)
            self._resumed, self._half_open = True, parted(state_dict.get("open"))
        except Exception as error:  # a damaged state must not keep the training from resuming
            warn_internal(f"could not read its state from the checkpoint and begins anew: {error}.")
