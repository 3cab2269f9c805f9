"""From a report to every kind of logger: scalars everywhere, and histograms, pictures and text where they are known.

A new kind of logger is one file here with an `Adapter` that names the logger it serves. It is imported whether or not
the logger's package is installed, so it imports that package where it uses it.
"""

from __future__ import annotations

import importlib
import pkgutil

from lightning_deadkernel.loggers.adapter import Adapter, CustomChart
from lightning_deadkernel.loggers.folder import report_folder
from lightning_deadkernel.loggers.run_log import RunLog
from lightning_deadkernel.loggers.scalars import LAYER_SCALARS, SUMMARY

__all__ = ["LAYER_SCALARS", "SUMMARY", "Adapter", "CustomChart", "RunLog", "report_folder"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
