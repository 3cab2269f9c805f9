"""One fit: what is done at each point of it, and where each window goes. The same on all ranks.

Past 300 lines because every point of a fit is here in the order in which Lightning reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

from lightning_deadkernel.errors import DeadKernelError, warn
from lightning_deadkernel.evidence.observer import Observer
from lightning_deadkernel.evidence.open_window import Checksums
from lightning_deadkernel.graph.layers import LayerTable, check_patterns
from lightning_deadkernel.report.records import RunDescription
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.training.checkpoint import joined
from lightning_deadkernel.training.compile import Stance
from lightning_deadkernel.training.description import describe_run
from lightning_deadkernel.training.distributed import exchange, world_size
from lightning_deadkernel.training.layers_of_now import say_since, take_up
from lightning_deadkernel.training.never_raise import collector_waits, never_raise, warn_internal
from lightning_deadkernel.training.options import Options
from lightning_deadkernel.training.outputs import Outputs
from lightning_deadkernel.training.record import Record
from lightning_deadkernel.training.schedule import Schedule
from lightning_deadkernel.training.trainer import (
    batch_size,
    is_compiled,
    is_half,
    logger_step,
    loss_scales,
    publish,
    will_step,
)
from lightning_deadkernel.training.window_end import close_window, warn_new_problems


class Run:
    """One fit under watch."""

    def __init__(self, options: Options, record: Record) -> None:
        self.options, self.record = options, record
        self.stance = Stance()
        self.watching = False
        """This rank gathers evidence: from its `set_up` until the fit ends or something fails."""
        self.running = False
        """From the start of training until it ends or all ranks have given up: at the same moment on all of them."""
        self.sampled = False
        """The costlier statistics are taken on this step."""
        self.by_hand = False
        """The optimization is manual: hooks may be called from within `training_step`."""
        self._finished = False
        """The training has come to its end."""
        self._failed: str | None = None
        """Why this rank has given up."""
        self._world = 1
        self._warned: set[str] = set()
        self._outputs: Outputs | None = None
        self._schedule: Schedule
        self._observer: Observer
        self._description: RunDescription

    # -- the start -----------------------------------------------------------------------------------------------

    def set_up(self, trainer: Any, model: nn.Module) -> None:
        """Makes the table of layers. Raises ValueError for a pattern that matches no layer."""
        self.watching = True
        self._observe(trainer, model)
        if self.watching:
            check_patterns("include", self.options.include, list(self._observer.reader.facts))
            check_patterns("exclude", self.options.exclude, list(self._observer.reader.facts))

    @never_raise
    def _observe(self, trainer: Any, model: nn.Module) -> None:
        self.by_hand = not trainer.lightning_module.automatic_optimization
        self._world = world_size(trainer)
        self._observer = Observer(
            model,
            LayerTable.of(model, self.options.include, self.options.exclude),
            toggles=not trainer.lightning_module.automatic_optimization,
            several_optimizers=len(trainer.optimizers) > 1,
            compiled=is_compiled(trainer, model),
            reads_compiled=self.options.when_compiled == "sample",
            update_ratio=self.options.update_ratio,
            layer_lost=lambda name, reason: warn_internal(f"no longer watches {name}: {reason}."),
            layers_changed=lambda before, names: self._take_up(trainer, before, names),
        )

    def start(self, trainer: Any, half_open: dict[str, Any] | None) -> None:
        """Takes the weights at initialisation, or takes up a checkpoint's `half_open` window."""
        self._check_layers()  # other callbacks may have changed some before training starts
        self.running = True
        try:
            self._outputs = Outputs(self.options, trainer)
        except Exception as error:
            self._warn_of_outputs(error)
        first = self.record.next_index <= 1
        self._schedule = Schedule(self.options.every_n_train_steps, self.options.min_steps, trainer, first)
        if half_open is not None:
            try:  # also on a rank that has failed: all meet at the same windows' ends
                self._schedule.take_up(half_open)
            except Exception as error:
                self.fail("taking up the open window", error)
        self._begin(trainer, half_open)
        if not self.record.reports:
            self._close(trainer)
        elif self.record.next_index > 1:
            self._show(trainer, self.record.reports[-1])

    @never_raise
    def _begin(self, trainer: Any, half_open: dict[str, Any] | None) -> None:
        observer, window = self._observer, self._observer.window
        self._description = describe_run(trainer, observer.model, self._world)
        watched = observer.reader.watched
        if not watched:
            reasons = (
                "; ".join(sorted({str(facts.excluded) for facts in observer.reader.facts.values()})) or "it has none"
            )
            self._warn(f"no convolution or linear layer of {type(observer.model).__name__} can be watched: {reasons}.")
        known = observer.reader.facts
        lost = self.record.restrict({name: facts.layer.channels for name, facts in known.items()})
        if lost:
            self._warn(f"the history of {', '.join(lost)} does not fit the model any more and begins anew.")
        say_since(observer, self.record, trainer)
        observer.begin_window(
            self.record.next_index, window.compare_weights(watched)[1] if self.record.reports else None
        )
        if half_open is None or window.load_state_dict(half_open, trainer.is_global_zero):
            return
        self._schedule.open_window(first=self.record.next_index <= 1)
        if half_open["counts"]["batches"]:
            self._warn("the layers are not those of the checkpoint: the open window begins anew.")

    # -- layers that come, change and go -------------------------------------------------------------------------

    @never_raise
    def _check_layers(self) -> None:
        self._observer.check_layers()

    def _take_up(self, trainer: Any, before: LayerTable, names: dict[str, str]) -> None:
        if self.running:
            take_up(self._observer, self.record, trainer, before, names, self.options.thresholds)

    # -- one batch -----------------------------------------------------------------------------------------------

    @never_raise
    def begin_batch(self, trainer: Any, batch: Any, first_of_epoch: bool) -> None:
        """Decides whether this step is a sampled one. At an epoch's beginning layers are frozen, unfrozen and
        replaced."""
        if self.sampled:  # a batch that was skipped has not ended
            self.stance.restore()
        observer, schedule = self._observer, self._schedule
        counts, compiled = observer.window.counts, observer.reader.compiled
        schedule.begin_batch(counts.sampled_steps, first_of_epoch)
        # a compiled model runs eagerly on a sampled step: of those no more than asked for
        eagerly = compiled and self.options.when_compiled == "sample"
        due = schedule.due if not eagerly else counts.sampled_steps == 0
        wanted = self.options.should_sample(logger_step(trainer)) or due or schedule.last
        first = counts.batches == 0 or (compiled and observer.wants_to_look())
        self.sampled = first or (wanted and will_step(trainer))
        if self.sampled or first_of_epoch:
            observer.check_layers()
        if self.sampled or not observer.window.settled:
            observer.window.rows = batch_size(batch)
        if self.sampled and eagerly:
            self.stance.force_eager()

    @never_raise
    def before_backward(self, loss: Tensor) -> None:
        """Reads the graph, and the activations it holds."""
        for_pictures = self.sampled and self._schedule.last and self.options.log_figures
        self._observer.before_backward(loss, self.sampled, for_pictures)

    @never_raise
    def after_backward(self) -> None:
        """Takes the gradients of this backward into the evidence."""
        self._observer.after_backward(self.sampled)

    @never_raise
    def before_optimizer_step(self, trainer: Any, optimizer: Any) -> None:
        """On a sampled step: sizes of gradients, and the weights before the step."""
        scales = loss_scales(trainer, optimizer)
        self._observer.window.steps.before_step(optimizer, *scales, is_half(trainer), self._schedule.last)

    def end_batch(self, trainer: Any, batch: Any) -> None:
        """Counts; on a sampled step, the update ratio. Closes the window where it ends."""
        if self.sampled:
            self.stance.restore()
        if not self.running:
            return
        steps, taken = self._schedule.end_batch()
        if self.watching:
            self._observer.window.add_batch(batch_size(batch), steps, taken if self.sampled else 0)
        if self.sampled:
            self._after_step()
        if self._schedule.ended:
            self.end_window(trainer)

    @never_raise
    def _after_step(self) -> None:
        self._observer.window.steps.after_step()

    def end_epoch(self, trainer: Any) -> None:
        """Closes an epoch's window whose last batch was not foreseen."""
        self.stance.restore()
        if self._schedule.ends_with_epoch():
            self.end_window(trainer)

    # -- window ends ---------------------------------------------------------------------------------------------

    def end_window(self, trainer: Any) -> None:
        """Closes the window if anything happened in it, and tells what is new. Every rank must call it."""
        if self.running and self._schedule.batches:
            closed = self._close(trainer)
            if closed is not None:
                self._tell(closed)

    def finish(self, trainer: Any) -> None:
        """The training has ended: closes what is open, saves the last report with its pictures."""
        self.end_window(trainer)
        if self.record.next_index > 1:
            self._finished = True
            self._write(lambda outputs: outputs.end(self.record.reports))
        elif self.running:
            self._warn("no training step gave a loss: there is nothing to report.")

    def interrupt(self, trainer: Any, exception: BaseException) -> None:
        """Restores what was set for a step, and saves what has been seen."""
        self.stance.restore()
        # Another rank may not be here: nothing collective may be called, now or by a checkpoint that is saved next.
        if self._world == 1 and self.watching and not isinstance(exception, DeadKernelError):
            self._close_interrupted(trainer)
        self.end()
        self._write(lambda outputs: outputs.last_word(self.record.reports, in_full=False))

    @never_raise
    def _close_interrupted(self, trainer: Any) -> None:
        """Closes the open window, also where its closing is what was interrupted."""
        if self._is_open() and self._observer.window.counts.batches:
            self._close(trainer)
        elif self.record.reports:
            self._publish(trainer, self.record.reports[-1])

    def _is_open(self) -> bool:
        """Whether the window is not in the record yet: an interrupt may have come between that and the next one."""
        return self._observer.window.index == self.record.next_index

    def end(self) -> None:
        """Restores what was set for a step, and saves what is not saved yet; from here on nothing is done."""
        self.stance.restore()
        self._write(lambda outputs: outputs.save(self.record.reports))
        self.running = self.watching = False

    def leave(self) -> None:
        """All has ended, and the progress bar with it: tells what was found and where the report is."""
        self.end()
        if self._finished:
            self._write(lambda outputs: outputs.last_word(self.record.reports, in_full=True))

    @collector_waits()
    def _close(self, trainer: Any) -> Report | None:
        """From the evidence to a report in every place that wants it; None where there is none."""
        try:
            everyone = self._exchange()
            report = self._report(trainer, everyone) if everyone else None
        except Exception as error:
            self.fail("closing a window", error)
            self._schedule.open_window()  # the other ranks' next: all meet again at its end
            return None
        if everyone is None:
            self.running = self.watching = False
        if report is not None:
            self._publish(trainer, report)
        return report

    def _exchange(self, in_step: bool = False) -> list[dict[str, Any]] | None:
        """What every rank has to tell; None where any has failed. What is excluded on one becomes so on all."""
        everyone = exchange(self._world, self._to_tell(in_step))
        if any(other["failed"] for other in everyone):
            return None
        try:
            if any(other["layers"] != everyone[0]["layers"] for other in everyone):
                raise RuntimeError("the ranks train different layers")
            for other in everyone:
                self._observer.exclude(other["excluded"])
            self._observer.window.prepare(everyone)
        except Exception as error:
            self.fail("closing a window", error)
        # once more: in what follows they wait for one another
        return None if any(other["failed"] for other in exchange(self._world, {"failed": self._failed})) else everyone

    def _to_tell(self, in_step: bool) -> dict[str, Any]:
        """This rank's part of an exchange. A fault in it is told as well: the others wait for this rank."""
        if self.watching:
            try:
                self._observer.check_layers(in_step)
                facts = self._observer.reader.facts.items()
                excluded = {name: known.excluded for name, known in facts if known.excluded}
                layers = [(layer.name, layer.channels) for layer in self._observer.window.steps.layers]
                shared = self._observer.window.to_share()
                return {"failed": self._failed, "layers": layers, "excluded": excluded} | shared
            except Exception as error:
                self.fail("closing a window", error)
        return {"failed": self._failed}

    def _report(self, trainer: Any, everyone: list[dict[str, Any]]) -> Report | None:
        window = self._observer.window
        seen = window.merge(everyone)
        if window.index and not seen.counts.backwards and trainer.lightning_module.automatic_optimization:
            self._reopen(None)  # no step had a loss: weight averaging ends with such an epoch
            return None
        history = self.record.copy_of_history()
        report, checksums = close_window(
            self._observer,
            seen,
            history,
            self._schedule.epochs(),
            trainer.global_step,
            trainer.optimizers,
            self.options,
            self._description,
            self.record.gone,
        )
        self.record.append(report, history)
        self._reopen(checksums)
        return report

    def _reopen(self, checksums: Checksums | None) -> None:
        self._observer.begin_window(self.record.next_index, checksums)
        self._schedule.open_window()

    @never_raise
    def _publish(self, trainer: Any, report: Report) -> None:
        self._write(lambda outputs: outputs.window(self.record.reports, logger_step(trainer)))
        if report.window:
            self._show(trainer, report)
            if self._observer.reader.watched and not report.watched:
                self._warn("no watched layer is in the graph of the loss: see the report's last section.", "loss")

    @never_raise
    def _show(self, trainer: Any, report: Report) -> None:
        publish(trainer, report, self.options.prog_bar)

    @never_raise
    def _tell(self, report: Report) -> None:
        self.record.add_warned(warn_new_problems(report, self.record.warned, self.options.on_finding))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of the closed windows and the open one. While training runs every rank must call it."""
        try:
            state: dict[str, Any] = {}
            if self.running:
                everyone = self._exchange(in_step=True)
                is_open = everyone is not None and self._is_open()
                state["open"] = None
                if everyone and is_open:
                    first_epoch = {"first_epoch": self._schedule.first_epoch}
                    state["open"] = joined(self._observer.window.state_dict(everyone) | first_epoch)
            return self.record.state_dict() | state
        except Exception as error:  # a checkpoint without the monitor's part is better than none
            self.fail("state_dict", error)
            return {}

    # -- trouble -------------------------------------------------------------------------------------------------

    def fail(self, where: str, error: Exception) -> None:
        """Ends this rank's watch; the others learn of it when the window ends."""
        self.stance.restore()
        self.watching = self.sampled = False
        if self._failed is None:
            self._failed = f"{type(error).__name__}: {error}"
            warn_internal(f"failed in {where.strip('_')} and stops watching: {self._failed}.")

    @collector_waits()
    def _write(self, write: Callable[[Outputs], None]) -> None:
        """Files and loggers. Where they fail the watch itself goes on."""
        if self._outputs is not None:
            try:
                write(self._outputs)
            except Exception as error:  # a full disk, a broken font: nothing of that may reach the training
                self._warn_of_outputs(error)

    def _warn_of_outputs(self, error: Exception) -> None:
        if "outputs" not in self._warned:
            self._warned.add("outputs")
            warn_internal(f"could not write its report: {type(error).__name__}: {error}.")

    def _warn(self, text: str, once: str | None = None) -> None:
        if once is None or once not in self._warned:
            self._warned.add(once or "")
            rank_zero_only(warn)(f"DeadKernelMonitor: {text}")
