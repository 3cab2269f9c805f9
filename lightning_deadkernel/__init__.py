"""One callback that tells of every kernel of a network whether it is alive, why it is not, and what to do about it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_deadkernel.analysis.revive import Revival, revive
    from lightning_deadkernel.analysis.trial.trial import Trial
    from lightning_deadkernel.analysis.trial.why import why
    from lightning_deadkernel.errors import DeadKernelError, DeadKernelWarning
    from lightning_deadkernel.figures.feature_maps import plot_feature_maps
    from lightning_deadkernel.monitor import DeadKernelMonitor
    from lightning_deadkernel.report.records import Finding, LayerReport, Problem
    from lightning_deadkernel.report.report import Report
    from lightning_deadkernel.thresholds import Thresholds

__version__ = "0.2.0"

__all__ = [
    "DeadKernelError",
    "DeadKernelMonitor",
    "DeadKernelWarning",
    "Finding",
    "LayerReport",
    "Problem",
    "Report",
    "Revival",
    "Thresholds",
    "Trial",
    "plot_feature_maps",
    "revive",
    "why",
]

_HOMES = {
    "DeadKernelError": "errors",
    "DeadKernelMonitor": "monitor",
    "DeadKernelWarning": "errors",
    "Finding": "report.records",
    "LayerReport": "report.records",
    "Problem": "report.records",
    "Report": "figures",  # which teaches it to draw itself
    "Revival": "analysis.revive",
    "Thresholds": "thresholds",
    "Trial": "analysis.trial.trial",
    "plot_feature_maps": "figures.feature_maps",
    "revive": "analysis.revive",
    "why": "analysis.trial.why",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: Lightning takes seconds, which the command's help need not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
