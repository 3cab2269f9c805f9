"""From a report to every kind of logger: scalars everywhere, and histograms, pictures and text where they are known.

A new kind of logger is one `Adapter` in one file, and one line in `run_log.ADAPTERS`.
"""

from __future__ import annotations

from lightning_deadkernel.loggers.adapter import Adapter, CustomChart
from lightning_deadkernel.loggers.folder import report_folder
from lightning_deadkernel.loggers.run_log import RunLog
from lightning_deadkernel.loggers.scalars import LAYER_SCALARS, SUMMARY

__all__ = ["LAYER_SCALARS", "SUMMARY", "Adapter", "CustomChart", "RunLog", "report_folder"]
