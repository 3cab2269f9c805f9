"""Where a report goes: files, loggers, console. Rank zero only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_deadkernel.console import print_report
from lightning_deadkernel.loggers import RunLog, report_folder
from lightning_deadkernel.report import Report


class Output:
    """One run's outlets."""

    def __init__(self, options: Any, trainer: Any) -> None:
        self.rank_zero: bool = trainer.is_global_zero
        self.with_figures: bool = options.log_figures
        self.folder: Path | None = None
        if not self.rank_zero:
            return
        if options.save_report and not trainer.fast_dev_run:
            self.folder = report_folder(trainer.loggers, trainer.default_root_dir)
        self.log = RunLog(trainer.loggers, layers=options.log_layers, histograms=options.log_histograms)

    def window(self, reports: list[Report], step: int) -> None:
        """A window has closed: save its report, and log it."""
        if not self.rank_zero:
            return
        report = reports[-1]
        if self.folder is not None:
            report.save(self.folder / "report.json")
            report.save(self.folder / "report.md")
        self.log.log(report, step, text=report.to_markdown())

    def end(self, reports: list[Report]) -> None:
        """Fit has ended: the table on the console."""
        if not self.rank_zero:
            return
        print_report(reports[-1])
        if self.folder is not None:
            rank_zero_info(f"DeadKernelMonitor: the report is in {self.folder}")
