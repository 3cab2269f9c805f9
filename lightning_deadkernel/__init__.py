"""One callback that tells of every kernel of a network whether it is alive, why it is not, and what to do about it."""

from lightning_deadkernel.errors import DeadKernelError, DeadKernelWarning
from lightning_deadkernel.monitor import DeadKernelMonitor
from lightning_deadkernel.report.records import Finding, LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.thresholds import Thresholds

__version__ = "0.1.0"

__all__ = [
    "DeadKernelError",
    "DeadKernelMonitor",
    "DeadKernelWarning",
    "Finding",
    "LayerReport",
    "Report",
    "Thresholds",
]
