"""The callback: says which Lightning hook does what. It measures nothing itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_deadkernel import compiled, options, ranks, resume, trainer_facts
from lightning_deadkernel.diagnosis import diagnose, headline, new_findings, savings
from lightning_deadkernel.errors import DeadKernelError, DeadKernelInternalWarning, DeadKernelWarning
from lightning_deadkernel.guard import guarded
from lightning_deadkernel.history import History
from lightning_deadkernel.layers import LayerTable, check_patterns
from lightning_deadkernel.observer import Observer
from lightning_deadkernel.output import Output
from lightning_deadkernel.readout import read_window
from lightning_deadkernel.report import Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.window import Window


class DeadKernelMonitor(Callback):
    """Tells for every kernel of the network whether it is alive, why it is not, and what to do about it.

    It reads what training already built (the autograd graph and the gradients), registers nothing on the model, and
    leaves training bit for bit as it was. A *window* is what a verdict speaks about: one training epoch, or
    `every_n_train_steps` optimizer steps. At a window's end a `Report` is made, logged to all loggers of the trainer
    and saved to ``<log_dir>/deadkernel/``.

    Args:
        every_n_train_steps: window length in optimizer steps; None: one window per training epoch.
        include: glob patterns of the names of layers to watch; None: all.
        exclude: glob patterns of the names of layers not to watch.
        thresholds: where the lines of the diagnosis are drawn.
        log_histograms: log histograms of weights, gradients, firing rates and kernel norms at window ends.
        log_figures: draw and log pictures at window ends and at the end of fit (needs the ``plots`` extra).
        log_layers: log per-layer scalars; a number k logs those of the k worst layers. The summary is always logged.
        save_report: save report.json, report.md and the pictures to ``<log_dir>/deadkernel/``.
        when_compiled: of a model under `torch.compile`, ``"sample"``: sampled steps run eagerly so that activations can
            be read; ``"gradients"``: no step does, and verdicts stop at *zero-gradient*.
        on_finding: ``"warn"``: one warning per new finding; ``"ignore"``: none; ``"raise"``: a `DeadKernelError` at the
            window's end, after the report is saved, if there is a finding of severity warning or error.
        prog_bar: show the dead fraction and the number of vanishing layers in the progress bar.

    Logged scalars (the key set is constant from the first window on; the separator is the logger's own):
        ``deadkernel/dead_fraction``, ``deadkernel/dead_channels``, ``deadkernel/zero_kernel_fraction``,
        ``deadkernel/starved_fraction``, ``deadkernel/dormant_fraction``, ``deadkernel/weight_sparsity``,
        ``deadkernel/activation_sparsity``, ``deadkernel/min_gradient_ratio``, ``deadkernel/vanishing_layers``,
        also in ``trainer.callback_metrics``, so `EarlyStopping` and `ModelCheckpoint` can monitor them; and per layer
        ``deadkernel.<statistic>/<layer>``, e.g. ``deadkernel.dead_fraction/conv1``, ``deadkernel.gradient_ratio/conv1``.

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
        log_layers: bool | int = True,
        save_report: bool = True,
        when_compiled: options.WhenCompiled = "sample",
        on_finding: options.OnFinding = "warn",
        prog_bar: bool = False,
    ) -> None:
        options.check_step_count(every_n_train_steps)
        options.check_globs("include", include)
        options.check_globs("exclude", exclude)
        options.check_choice("when_compiled", when_compiled, get_args(options.WhenCompiled))
        options.check_choice("on_finding", on_finding, get_args(options.OnFinding))
        options.check_thresholds(thresholds)
        options.check_log_layers(log_layers)
        self.every_n_train_steps = every_n_train_steps
        self.include, self.exclude = include, exclude
        self.thresholds = thresholds
        self.log_histograms, self.log_figures, self.log_layers = log_histograms, log_figures, log_layers
        self.save_report = save_report
        self.when_compiled: options.WhenCompiled = when_compiled
        self.on_finding: options.OnFinding = on_finding
        self.prog_bar = prog_bar

        self.reports: list[Report] = []
        """One report per closed window, oldest first; index 0 is the state at initialisation."""
        self._history = History()
        self._said: set[tuple[str, str | None]] = set()
        self._warned: set[str] = set()
        self._observer: Observer | None = None
        self._output: Output | None = None
        self._window = Window(0, 0, 0, 0, 0, 0, 0)
        self._sampled = False
        self._broken: str | None = None
        self._stance = compiled.Stance()
        self._restored: dict[str, Any] | None = None
        self._begun = 0
        self._log_every = 50

    @property
    def report(self) -> Report | None:
        """The report of the last closed window; None before the first."""
        return self.reports[-1] if self.reports and self.reports[-1].window > 0 else None

    def should_sample(self, step: int) -> bool:
        """Whether the costlier statistics are taken on this optimizer step; the first and last of a window always are.

        Override it to sample by a rule of your own.

        Args:
            step: optimizer steps taken so far, as loggers count them.
        """
        return self._log_every > 0 and (step + 1) % self._log_every == 0

    # -- fit -----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the table of layers. Raises ValueError for a pattern that matches no layer."""
        table = LayerTable.of(pl_module, self.include, self.exclude)
        check_patterns("include", self.include, table.names)
        check_patterns("exclude", self.exclude, table.names)
        self._start(trainer, pl_module, table)

    @guarded
    def _start(self, trainer: Trainer, pl_module: LightningModule, table: LayerTable) -> None:
        self._log_every = trainer_facts.log_every(trainer)
        self._broken = None
        self._warned = set()
        self._output = None
        if not table.watched:
            reasons = "; ".join(sorted({str(layer.excluded) for layer in table.layers})) or "it has none"
            self._warn(f"no convolution or linear layer of {type(pl_module).__name__} can be watched: {reasons}.")
        self._observer = Observer(pl_module, table, self.when_compiled, self._layer_lost)
        self._observer.several_optimizers = len(trainer.optimizers) > 1
        self._observer.reader.compiled = compiled.is_compiled(trainer, pl_module)

    @guarded
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the weights at initialisation, or resumes where a checkpoint left off."""
        observer = self._watching()
        if observer is None:
            return
        self._output = Output(self, trainer)
        self._open(trainer)
        channels = {layer.name: layer.channels for layer in observer.table.watched}
        lost = self._history.restrict(channels)
        if lost:
            self._warn(f"the history of {', '.join(lost)} does not fit the model any more and begins anew.")
        if self._restored is not None:
            resume.restore(self._restored, observer, self._window, self._warn, trainer.is_global_zero)
            self._restored = None
        if self.reports or any(layer.excluded is None and layer.main.is_meta for layer in observer.table.layers):
            observer.changed_since_last() if not observer.checksums else None
            return
        initial = Window(0, trainer.current_epoch, trainer.global_step, 0, 0, 0, 0)
        self._finish(trainer, initial, observer)

    def _open(self, trainer: Trainer) -> None:
        number = (self.reports[-1].window if self.reports else 0) + 1
        self._window = Window(number, trainer.current_epoch, trainer.global_step, 0, 0, 0, 0)
        self._begun = trainer.global_step
        if self._observer is not None:
            self._observer.open_window()

    # -- one batch -----------------------------------------------------------------------------------------------

    @guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts samples, and decides whether this step is a sampled one."""
        observer = self._watching()
        if observer is None:
            return
        window = self._window
        size = trainer_facts.batch_size(batch)
        window.samples = None if size is None or window.samples is None else window.samples + size
        steps = trainer_facts.will_step(trainer)
        first = window.batches == 0 or (steps and window.sampled_steps == 0)
        self._sampled = first or (
            steps and (self.should_sample(trainer_facts.logger_step(trainer)) or self._is_last(trainer))
        )
        window.batches += 1
        if self._sampled and observer.reader.compiled and self.when_compiled == "sample":
            self._stance.force_eager()

    def _is_last(self, trainer: Trainer) -> bool:
        """Whether the window is foreseen to end with this batch."""
        if trainer_facts.is_last_batch(trainer):
            return True
        return (
            self.every_n_train_steps is not None and trainer.global_step + 1 - self._begun >= self.every_n_train_steps
        )

    @guarded
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Reads the graph, and the activations it holds."""
        observer = self._watching()
        if observer is None:
            return
        if loss.grad_fn is None:
            self._warn("the loss has no graph: nothing can be seen of what it depends on.", "graph")
        observer.before_backward(loss, self._sampled)

    @guarded
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the gradients of this backward into the evidence."""
        observer = self._watching()
        if observer is not None:
            observer.after_backward(self._sampled)

    @guarded
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """On a sampled step: sizes of gradients, and the weights before the step."""
        observer = self._watching()
        if observer is not None and self._sampled:
            scaler = trainer_facts.scaler(trainer)
            scale = trainer_facts.scale_left(scaler, optimizer)
            observer.before_step(optimizer, scale, scaler is not None, trainer_facts.is_half(trainer))
            self._window.sampled_steps += 1

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """On a sampled step: the update ratio. Closes the window where it ends."""
        self._stance.restore()
        observer = self._watching(even_broken=True)
        if observer is None:
            return
        if self._sampled and self._broken is None:
            observer.after_step()
        self._window.optimizer_steps = trainer.global_step - self._begun
        if self.every_n_train_steps is None:
            ends = trainer_facts.is_last_batch(trainer)
        else:
            ends = self._window.optimizer_steps >= self.every_n_train_steps
        if ends:
            self._close(trainer, pl_module)

    @guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes an epoch's window whose last batch was not foreseen."""
        if self.every_n_train_steps is None:
            self._close(trainer, pl_module)

    @guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes what is open; prints the table, and saves the last report with its pictures."""
        self._close(trainer, pl_module)
        if self._output is not None and self.report is not None:
            self._output.end(self.reports)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores what was set for a step, and saves what has been seen."""
        self._stance.restore()
        # Another rank may not be here: nothing collective may be called.
        if trainer.world_size == 1 and not isinstance(exception, DeadKernelError) and trainer.training:
            self._close_after_exception(trainer, pl_module)

    @guarded
    def _close_after_exception(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watching() is not None:
            self._window.optimizer_steps = trainer.global_step - self._begun
            try:
                self._close(trainer, pl_module, loudly=False)
            except DeadKernelError:  # the user's own exception is the one to be seen
                return

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores what was set for a step, whatever ended the run, and lets the model go."""
        self._stance.restore()
        self._observer = None
        self._output = None

    # -- window ends ---------------------------------------------------------------------------------------------

    def _close(self, trainer: Trainer, pl_module: LightningModule, loudly: bool = True) -> None:
        observer = self._watching(even_broken=True)
        if observer is None or self._window.batches == 0:
            return
        if ranks.agree(trainer, observer, self._window, self._broken) is not None:
            self._observer = None
            return
        window = self._window
        if not observer.backwards and window.optimizer_steps:
            self._warn(
                "no backward hook fired (is `loss.backward()` called instead of `self.manual_backward(loss)`?): "
                "only the weights are watched.",
                "backward",
            )
        window.epoch, window.global_step = trainer.current_epoch, trainer.global_step
        window.notes = self._notes(observer)
        self._finish(trainer, window, observer)
        self._open(trainer)
        if loudly:
            self._speak(self.reports[-1])

    def _finish(self, trainer: Trainer, window: Window, observer: Observer) -> None:
        """From the evidence to a report in every place that wants it."""
        observer.evidence.close()
        with ranks.reduced(trainer, observer.evidence):
            observed = observer.evidence.segments()
        wants = self.log_histograms or self.log_figures
        window, tensors = read_window(observer, window, trainer.optimizers, self.thresholds, wants, observed)
        layers, findings = diagnose(window, self._history, self.thresholds)
        report = Report(
            window=window.index,
            epoch=window.epoch,
            global_step=window.global_step,
            samples=window.samples,
            batches=window.batches,
            optimizer_steps=window.optimizer_steps,
            sampled_steps=window.sampled_steps,
            layers=layers,
            findings=findings,
            savings=savings(window, layers),
            notes=window.notes,
            gradient_norm=window.gradient_norm,
            skipped_steps=window.skipped_steps,
            tensors=tensors,
        )
        if self.reports:
            self.reports[-1] = self.reports[-1].compact()
        self.reports.append(report)
        if window.index:
            trainer_facts.publish(trainer, report, self.prog_bar)
        if self._output is not None:
            self._output.window(self.reports, trainer_facts.logger_step(trainer))

    def _notes(self, observer: Observer) -> tuple[str, ...]:
        notes = [
            f"{layer}: what follows cannot be read ({op}); its states rest on gradients"
            for op, layer in observer.reader.unknown_ops.items()
        ]
        if observer.reader.compiled:
            notes.append(
                "the model is compiled: activations were read on sampled steps, which ran eagerly"
                if self.when_compiled == "sample"
                else "the model is compiled: no activation was read, states rest on gradients"
            )
        if not observer.backwards:
            notes.append("no backward hook fired: only the weights were watched")
        return tuple(notes)

    def _speak(self, report: Report) -> None:
        fresh = [finding for finding in new_findings(report.findings, self._said) if finding.severity != "info"]
        self._said.update((finding.kind, finding.layer) for finding in fresh)
        if self.on_finding == "raise":
            worst = next((finding for finding in report.findings if finding.severity != "info"), None)
            if worst is not None:
                raise DeadKernelError(f"{worst.kind}: {headline(worst)}. {worst.cause} {worst.advice}")
        if self.on_finding == "warn":
            for finding in fresh:
                rank_zero_warn(f"{headline(finding)}. {finding.advice}", category=DeadKernelWarning)

    # -- trouble -------------------------------------------------------------------------------------------------

    def _watching(self, even_broken: bool = False) -> Observer | None:
        return self._observer if even_broken or self._broken is None else None

    def _give_up(self, where: str, error: Exception) -> None:
        self._stance.restore()
        if self._broken is None:
            self._broken = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"DeadKernelMonitor failed in {where} and stops watching; training goes on. {self._broken}",
                DeadKernelInternalWarning,
                stacklevel=3,
            )

    def _layer_lost(self, name: str, reason: str) -> None:
        warnings.warn(
            f"DeadKernelMonitor no longer watches {name}: {reason}. Training goes on.",
            DeadKernelInternalWarning,
            stacklevel=3,
        )

    @rank_zero_only
    def _warn(self, text: str, once: str | None = None) -> None:
        if once is None or once not in self._warned:
            self._warned.add(once or "")
            rank_zero_warn(f"DeadKernelMonitor: {text}", category=DeadKernelWarning)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """History, reports and the open window, as plain tensors, lists, strings and numbers."""
        return resume.pack(self.reports, self._history, self._said, self._window, self._watching())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint's history; the open window follows when training starts."""
        try:
            self.reports, self._history, self._said = resume.unpack(state_dict)
            self._restored = state_dict.get("open")
        except Exception as error:  # a damaged state must not keep the training from resuming
            warnings.warn(
                f"DeadKernelMonitor could not read its state from the checkpoint and begins anew: {error}",
                DeadKernelInternalWarning,
                stacklevel=2,
            )
