"""Situations that people have reported, each a short run with the right answer: what is told first, and nothing false.

A situation is a function that trains a network as it was reported, asserts what is known of it independently (a forward
pass by hand, a closed form), and returns the monitor. Its decorator holds what the report must say. The folders
`situations/` and `healthy/` hold them by theme; `test_situations.py` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from lightning_deadkernel import DeadKernelMonitor, Report
from lightning_deadkernel.report.records import Finding

SITUATIONS: dict[str, Situation] = {}
"""By name, which is a sentence."""
HANDFUL = 4
"""Problems that a user reads; more is a list."""


@dataclass(frozen=True)
class Situation:
    """One reported situation and what a report of it must say."""

    run: Callable[[], DeadKernelMonitor]
    source: str
    """Where people report it: an address, or a paper."""
    first: tuple[str, ...]
    """Patterns of which one fits the first problem's first finding, ``"kind layer: cause"``; empty where nothing is
    above info in any window. A finding of the whole network has the layer ``network``."""
    advice: tuple[str, ...]
    """What the first problem's advice must hold."""
    besides: tuple[str, ...]
    """Patterns of what else may be said above info, in any window, since it is true as well."""
    never: tuple[str, ...]
    """What no finding above info may say, in its cause or its advice."""

    def check(self) -> None:
        """Train, and compare what is said with what is right."""
        monitor = self.run()
        report = monitor.report
        assert report is not None
        allowed = self.first + self.besides
        said = {(held.window, label(f)): f for held in monitor.reports for f in serious(held)}
        untrue = [
            f"window {window}: {what} | {finding.cause} | {finding.evidence}"
            for (window, what), finding in said.items()
            if not _fits(what, allowed)
        ]
        assert not untrue, "said above info, and not true:\n" + "\n".join(untrue)
        for finding in said.values():
            for text in self.never:
                assert text.lower() not in f"{finding.cause} {finding.advice}".lower(), (text, finding)
        for held in monitor.reports:
            _contradict_nothing(held)
        if not self.first:
            assert report.verdict.startswith("Nothing"), report.verdict
            return
        assert report.problems, f"nothing above info is said: {report.verdict} {[label(f) for f in report.findings]}"
        root = report.problems[0].findings[0]
        assert _fits(label(root), self.first), f"told first: {label(root)} | {root.cause}"
        for text in self.advice:
            assert text in report.problems[0].advice, f"{text!r} is not in: {report.problems[0].advice}"
        assert report.verdict.lower().startswith(report.problems[0].title.lower()), report.verdict
        assert len(report.problems) <= HANDFUL, [problem.title for problem in report.problems]


def situation(
    source: str,
    first: str | tuple[str, ...] = (),
    advice: tuple[str, ...] = (),
    besides: tuple[str, ...] = (),
    never: tuple[str, ...] = (),
) -> Callable[[Callable[[], DeadKernelMonitor]], Callable[[], DeadKernelMonitor]]:
    """Enter a function as a situation under its own name; see `Situation` for what is given."""

    def entered(run: Callable[[], DeadKernelMonitor]) -> Callable[[], DeadKernelMonitor]:
        assert run.__name__ not in SITUATIONS, f"two situations are named {run.__name__}"
        firsts = (first,) if isinstance(first, str) else first
        SITUATIONS[run.__name__] = Situation(run, source, firsts, advice, besides, never)
        return run

    return entered


def gather() -> None:
    """Import every file of situations, which enters them."""
    here = Path(__file__).parent
    for path in sorted((*here.glob("situations/*.py"), *here.glob("healthy/*.py"))):
        if not path.name.startswith(("_", "test_", "conftest")):
            import_module(f"reports.{path.parent.name}.{path.stem}")


def serious(report: Report) -> list[Finding]:
    """What is said above info."""
    return [finding for finding in report.findings if finding.severity != "info"]


def label(finding: Finding) -> str:
    """A finding as `Situation.first` has it: ``"dead_channels net.1: knocked out"``."""
    return f"{finding.kind} {finding.layer or 'network'}: {finding.cause_word}"


def _contradict_nothing(report: Report) -> None:
    """No advice to act on beside one to leave the same layer alone, and none to go both ways."""
    advice: dict[str | None, str] = {}
    for finding in serious(report):
        advice[finding.layer] = f"{advice.get(finding.layer, '')} {finding.advice}"
    for layer, text in advice.items():
        assert not ("Lower the learning rate" in text and "Raise the learning rate" in text), (layer, text)
        assert "Nothing to fix" not in text, (layer, text)
    outputs = {layer.name for layer in report.watched if layer.depth == 0 and report.window}
    for finding in serious(report):
        if finding.layer in outputs and finding.kind in ("dead_channels", "zero_kernels", "saturated_channels"):
            assert "wider" not in finding.advice, finding
            assert "pruned" not in finding.advice, finding


def _fits(what: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(what, pattern) for pattern in patterns)


class Eye(L.Callback):
    """What truly fired and what truly had a gradient in the last epoch, by hooks and by looking at every step.

    Args:
        activations: names of activation modules whose outputs are looked at.
        axis: of their channels.
    """

    def __init__(self, *activations: str, axis: int = 1) -> None:
        self.activations, self.axis = activations, axis
        self.fired: dict[str, Tensor] = {}
        """Activation -> (C,) bool: some output of the last epoch was positive."""
        self.gradient: dict[str, Tensor] = {}
        """Parameter -> (C,) largest |gradient| of the last epoch, by the first axis."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name in self.activations:
            module.get_submodule(name).register_forward_hook(self._look(name))

    def _look(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positive = (output.detach() > 0).movedim(self.axis, 0).flatten(1).any(1)
            self.fired[name] = self.fired.get(name, torch.zeros_like(positive)) | positive

        return look

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.fired.clear()
        self.gradient.clear()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                largest = parameter.grad.detach().abs().flatten(1 if parameter.dim() > 1 else 0)
                largest = largest.amax(1) if parameter.dim() > 1 else largest
                self.gradient[name] = torch.maximum(self.gradient.get(name, torch.zeros_like(largest)), largest)

    def never(self, activation: str) -> list[int]:
        """Channels of an activation none of whose outputs was positive in the last epoch."""
        return (~self.fired[activation]).nonzero().flatten().tolist()

    def without_gradient(self, parameter: str) -> list[int]:
        """Rows of a parameter whose gradient was exactly zero on every step of the last epoch."""
        return (self.gradient[parameter] == 0).nonzero().flatten().tolist()


def dead(report: Report, names: Iterable[str] = ()) -> dict[str, list[int]]:
    """The report's dead channels by layer; of the given layers, or of all that have any."""
    return {name: report[name].dead for name in names} if names else dict(report.dead_channels)
