"""The callback: says which Lightning hook does what. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_deadkernel.diagnosis.history import History
from lightning_deadkernel.errors import DeadKernelError, DeadKernelWarning
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.graph.layers import LayerTable, check_patterns
from lightning_deadkernel.observation import Window
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds
from lightning_deadkernel.training import checkpoint as resume
from lightning_deadkernel.training import compile as compiled
from lightning_deadkernel.training import distributed as ranks
from lightning_deadkernel.training import options
from lightning_deadkernel.training import trainer as trainer_facts
from lightning_deadkernel.training.isolate import alarm, guarded
from lightning_deadkernel.training.outputs import Output
from lightning_deadkernel.training.window_end import close_window, speak

NO_HOOKS = (
    "no backward hook fired (is `loss.backward()` called instead of `self.manual_backward(loss)`?): "
    "only the weights are watched."
)


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
        update_ratio: measure ||dW|| / ||W|| on sampled steps, which takes a copy of the weights during that step: of
            all on the first and the last of a window, of two million in turn on the others.
        prog_bar: show the dead fraction and the number of vanishing layers in the progress bar.

    Logged scalars (the key set is constant from the first window on; the separator is the logger's own):
        ``deadkernel/dead_fraction``, ``deadkernel/dead_channels``, ``deadkernel/zero_kernel_fraction``,
        ``deadkernel/starved_fraction``, ``deadkernel/dormant_fraction``, ``deadkernel/weight_sparsity``,
        ``deadkernel/activation_sparsity``, ``deadkernel/min_gradient_ratio``, ``deadkernel/vanishing_layers``,
        also in ``trainer.callback_metrics``, so `EarlyStopping` and `ModelCheckpoint` can monitor them; and per layer
        ``deadkernel.<statistic>/<layer>``, e.g. ``deadkernel.gradient_ratio/conv1``.

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
        update_ratio: bool = True,
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
        self.update_ratio = update_ratio

        self.reports: list[Report] = []
        """One report per closed window, oldest first; index 0 is the state at initialisation."""
        self._history = History()
        self._said: set[tuple[str, str | None]] = set()
        self._packed: dict[int, Tensor] = {}
        self._warned: set[str] = set()
        self._observer: Observer | None = None
        self._output: Output | None = None
        self._window = Window(0, 0, 0, 0, 0, 0, 0)
        self._world = 1
        self._begun = 0
        self._before_batch = 0
        self._log_every = 50
        self._sampled = self._last = False
        self._running = False
        """From the start of training until it ends or all ranks have given up: at the same moment on all of them."""
        self._broken: str | None = None
        """Why this rank has given up."""
        self._stance = compiled.Stance()
        self._evaluating = self._resumed = False
        self._restored: dict[str, Any] | None = None

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes what begins: Lightning hands a checkpoint's state to `load_state_dict` also before a test."""
        self._evaluating = stage != "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the table of layers. Raises ValueError for a pattern that matches no layer."""
        self._broken, self._observer, self._output = None, None, None
        self._warned = set()
        self._make_observer(trainer, pl_module)
        if self._observer is not None:
            check_patterns("include", self.include, self._observer.table.names)
            check_patterns("exclude", self.exclude, self._observer.table.names)

    @guarded
    def _make_observer(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_every = trainer_facts.log_every(trainer)
        self._world = ranks.world_size(trainer)
        table = LayerTable.of(pl_module, self.include, self.exclude)
        self._observer = Observer(pl_module, table, self.when_compiled, self._layer_lost)
        self._observer.sampler.update_ratio = self.update_ratio
        self._observer.several_optimizers = len(trainer.optimizers) > 1
        self._observer.reader.compiled = compiled.is_compiled(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the weights at initialisation, or resumes where a checkpoint left off."""
        self._running = True
        if trainer.global_step == 0 and not self._resumed:  # not the training that earlier reports are about
            self.reports, self._history, self._said = [], History(), set()
            self._packed.clear()
        self._open_window(trainer)
        self._take_up(trainer, pl_module)
        self._resumed, self._restored = False, None
        if not self.reports:
            self._close(trainer)

    @guarded
    def _take_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._output = Output(self, trainer)
        observer = self._observer
        if observer is None:
            return
        if not observer.reader.watched:
            reasons = "; ".join(sorted({str(layer.excluded) for layer in observer.table.layers})) or "it has none"
            self._warn(f"no convolution or linear layer of {type(pl_module).__name__} can be watched: {reasons}.")
        resume.take_up(self._history, self._restored, observer, self._window, self._warn, trainer.is_global_zero)
        self._begun -= self._window.optimizer_steps
        if self.reports and not observer.checksums:
            observer.changed_since_last()

    def _open_window(self, trainer: Trainer) -> None:
        number = self.reports[-1].window + 1 if self.reports else 0
        self._window = Window(number, trainer.current_epoch, trainer.global_step, 0, 0, 0, 0)
        self._begun = trainer.global_step
        if self._observer is not None:
            self._observer.open_window()

    # -- one batch -----------------------------------------------------------------------------------------------

    @guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decides whether this step is a sampled one."""
        self._stance.restore()  # a batch that was skipped has not ended
        self._sampled = False
        observer, window = self._observer, self._window
        if observer is None:
            return
        self._before_batch = taken = trainer.global_step
        self._last = self._is_last(trainer, taken + 1)
        wanted = self.should_sample(trainer_facts.logger_step(trainer)) or window.sampled_steps == 0 or self._last
        first = window.batches == 0 or observer.wants_to_look()
        self._sampled = first or (wanted and trainer_facts.will_step(trainer))
        if self._sampled and observer.reader.compiled and self.when_compiled == "sample":
            self._stance.force_eager()

    def _is_last(self, trainer: Trainer, steps: int) -> bool:
        """Whether the window is foreseen to end with a batch that brings the optimizer to so many steps."""
        if trainer_facts.epoch_ends(trainer, steps):
            return True
        length = self.every_n_train_steps
        return length is not None and steps - self._begun >= length

    @guarded
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Reads the graph, and the activations it holds."""
        observer = self._observer
        if observer is not None:
            observer.before_backward(loss, self._sampled)

    @guarded
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the gradients of this backward into the evidence."""
        observer = self._observer
        if observer is not None:
            observer.after_backward(self._sampled)

    @guarded
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """On a sampled step: sizes of gradients, and the weights before the step."""
        observer = self._observer if self._sampled else None
        if observer is not None:
            scaler = trainer_facts.scaler(trainer)
            scale_left = trainer_facts.scale_left(scaler, optimizer)
            observer.before_step(optimizer, scaler, scale_left, trainer_facts.is_half(trainer), self._last)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts; on a sampled step, the update ratio. Closes the window where it ends."""
        self._stance.restore()
        if not self._running:
            return
        taken = trainer.global_step
        self._count(taken, batch)
        if self._sampled:
            self._measure_update()
        if self.every_n_train_steps is None:
            ends = trainer_facts.epoch_ends(trainer, taken)
        else:
            ends = self._window.optimizer_steps >= self.every_n_train_steps
        if ends:
            self._end_window(trainer)

    def _count(self, taken: int, batch: Any) -> None:
        window, size = self._window, trainer_facts.batch_size(batch)
        window.batches += 1
        window.samples = None if size is None or window.samples is None else window.samples + size
        window.optimizer_steps = taken - self._begun
        window.sampled_steps += taken - self._before_batch if self._sampled else 0

    @guarded
    def _measure_update(self) -> None:
        observer = self._observer
        if observer is not None:
            observer.after_step()

    # -- window ends ---------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes an epoch's window whose last batch was not foreseen."""
        self._stance.restore()
        if self.every_n_train_steps is None:
            self._end_window(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes what is open; prints the table, and saves the last report with its pictures."""
        self._end_window(trainer)
        if self.report is not None:
            self._put_out(lambda output: output.end(self.reports))
        elif self._running:
            self._warn("no training step gave a loss: there is nothing to report.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores what was set for a step, and saves what has been seen."""
        self._stance.restore()
        # Another rank may not be here: nothing collective may be called, now or by a checkpoint that is saved next.
        if self._world == 1 and not isinstance(exception, DeadKernelError) and self._window.batches:
            self._close(trainer)
        self._running, self._observer = False, None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores what was set for a step, whatever ended the run, and lets the model go."""
        self._stance.restore()
        self._running, self._observer, self._output, self._evaluating = False, None, None, False

    def _end_window(self, trainer: Trainer) -> None:
        if self._running and self._window.batches:
            before = len(self.reports)
            self._close(trainer)
            if len(self.reports) > before:
                self._speak(self.reports[-1])

    @guarded
    def _close(self, trainer: Trainer) -> None:
        """From the evidence to a report in every place that wants it."""
        observer, window = self._observer, self._window
        if not self._running:
            return
        if ranks.agree(self._world, observer, window, self._broken) is not None or observer is None:
            self._running, self._observer = False, None
            return
        if window.index and not observer.backwards:
            if trainer.lightning_module.automatic_optimization:
                self._open_window(trainer)  # no step had a loss: weight averaging ends with such an epoch
                return
            self._warn(NO_HOOKS, "backward")
        window.epoch, window.global_step = trainer.current_epoch, trainer.global_step
        tensors = self.log_histograms or self.log_figures
        try:
            report = close_window(
                window, observer, self._history, self.thresholds, trainer.optimizers, self._world, tensors
            )
        except Exception:
            self._open_window(trainer)  # the other ranks have closed theirs: all meet again at the end of the next
            raise
        self.reports[-1:] = [*(last.compact() for last in self.reports[-1:]), report]
        self._open_window(trainer)
        self._put_out(lambda output: output.window(self.reports, trainer_facts.logger_step(trainer)))
        if report.window:
            trainer_facts.publish(trainer, report, self.prog_bar)
            if observer.reader.watched and not report.watched:
                self._warn("no watched layer is in the graph of the loss: see the report's last section.", "loss")

    @guarded
    def _speak(self, report: Report) -> None:
        self._said |= speak(report, self._said, self.on_finding)

    # -- trouble -------------------------------------------------------------------------------------------------

    def _give_up(self, where: str, error: Exception) -> None:
        """Ends this rank's watch; the others learn of it when the window ends."""
        self._stance.restore()
        self._observer, self._sampled = None, False
        if self._broken is None:
            self._broken = f"{type(error).__name__}: {error}"
            alarm(f"failed in {where.strip('_')} and stops watching: {self._broken}.")

    def _layer_lost(self, name: str, reason: str) -> None:
        alarm(f"no longer watches {name}: {reason}.")

    def _put_out(self, write: Callable[[Output], None]) -> None:
        """Files and loggers. Where they fail the watch itself goes on."""
        if self._output is None:
            return
        try:
            write(self._output)
        except Exception as error:  # a full disk, a broken font: nothing of that may reach the training
            self._output = None
            alarm(f"could not write its report, and writes no more: {type(error).__name__}: {error}.")

    def _warn(self, text: str, once: str | None = None) -> None:
        if once is None or once not in self._warned:
            self._warned.add(once or "")
            rank_zero_warn(f"DeadKernelMonitor: {text}", category=DeadKernelWarning)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """History, reports and the open window, as plain tensors, lists, strings and numbers.

        While training runs on several ranks every rank must call it, as Lightning does.
        """
        try:
            state = resume.pack(self.reports, self._history, self._said, self._packed)
            if self._running:
                state["open"] = resume.pack_open(self._window, self._observer, self._world, self._broken)
        except Exception as error:  # a checkpoint without the monitor's part is better than none
            self._give_up("state_dict", error)
            return {}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint's history; the open window follows when training starts."""
        if self._evaluating:  # a test of old weights does not undo what training has shown
            return
        try:
            self.reports, self._history, self._said = resume.unpack(state_dict)
            self._packed.clear()
            self._resumed, self._restored = True, state_dict.get("open")
        except Exception as error:  # a damaged state must not keep the training from resuming
            alarm(f"could not read its state from the checkpoint and begins anew: {error}.")
