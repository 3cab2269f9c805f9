"""One fault costs one part: a fault in each place where a report leaves the monitor, one at a time, in a real fit.

The places are found from the registries of pictures and loggers. While a place is broken, everything else is made as
without the fault; the fault is told once; the place is tried again at the next window; training stays as it is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure

from helpers.models import DEAD, Tiny, dead
from helpers.training import quiet
from helpers.twins import Run, assert_identical, train
from lightning_deadkernel import figures
from lightning_deadkernel.errors import DeadKernelWarning
from lightning_deadkernel.figures import PICTURES
from lightning_deadkernel.loggers import Adapter, run_log
from lightning_deadkernel.loggers.adapter import adapter_of
from lightning_deadkernel.report import arrays, codec, report
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.training import outputs

HEALED = 3
"""The window from which on a broken place works."""
AT_END = {"report.html", "files", "table"}
"""What is made once, when the fit ends."""
Event = tuple[str, str, int]
"""What was made: where, what, and at which window."""


class Kept(Logger):
    """A logger that keeps nothing; its class is named as one of those that the adapters are for."""

    name, version = "kept", 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


LOGGERS: dict[str, type[Logger]] = {
    "Adapter": Kept,
    **{
        kind.__name__: type(serves, (Kept,), {"__module__": f"{package}.made_up"})
        for (package, serves), kind in reversed(Adapter.known.items())
    },
}
"""Name of an adapter -> a class of loggers that it is for."""
CALLS = ("charts", "describe", "scalars", "histograms", "text", "pictures", "files")
CHANNELS = "report.<hash>.npz"
FILES = ["report.json", CHANNELS, "report.md", "report.html", *(f"{name}.png" for name in PICTURES)]


class Fit:
    """A fit that notes what was made, with at most one place broken.

    Args:
        patch: to replace with what does the work.
        broken: (where, what) of the one that fails before window `HEALED`; what is made at the end always does.
    """

    def __init__(self, patch: pytest.MonkeyPatch, broken: tuple[str, str] | None = None) -> None:
        self.patch, self.broken = patch, broken
        self.made: list[Event] = []
        self.monitor = quiet(log_figures=True, save_report=True)
        patch.setattr(codec, "MOST_CHANNELS", 0)
        patch.setattr(arrays, "SHORT", 0)
        for budget in ("DRAWING", "WRITING"):
            patch.setattr(outputs, budget, (1e9, 0.0))
        for module in (outputs, report):
            patch.setattr(module, "write_atomically", self.write)
        patch.setattr(outputs, "print_document", self.noting("console", "table"))
        patch.setattr(figures, "pngs", lambda papers: dict.fromkeys(papers, b"\x89PNG"))
        for name in PICTURES:
            patch.setitem(PICTURES, name, self.noting("picture", name, Figure()))
        patch.setattr(run_log, "adapter_of", self.adapter_of)

    @property
    def window(self) -> int:
        return self.monitor.reports[-1].window

    def note(self, where: str, what: str) -> None:
        """One thing is about to be made."""
        if (where, what) == self.broken and (self.window < HEALED or what in AT_END):
            raise OSError(f"injected into {what}")
        self.made.append((where, what, self.window))

    def noting(self, where: str, what: str, given: Any = None) -> Callable[..., Any]:
        def stands_in(*args: Any, **kwargs: Any) -> Any:
            self.note(where, what)
            return given

        stands_in.__name__ = what
        return stands_in

    def write(self, path: Path, content: str | bytes) -> None:
        self.note("file", CHANNELS if path.suffix == ".npz" else path.name)
        write_atomically(path, content)

    def adapter_of(self, logger: Any) -> Adapter:
        adapter = adapter_of(logger)
        name = type(adapter).__name__
        self.note(name, "adapter")
        for call in CALLS:
            setattr(adapter, call, self.noting(name, call))
        return adapter

    def run(self) -> Run:
        loggers = [made() for made in LOGGERS.values()]
        return train(Tiny, self.monitor, max_epochs=HEALED, logger=loggers, log_every_n_steps=2)


@pytest.fixture(autouse=True)
def _an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training without the monitor."""
    loggers = [made() for made in LOGGERS.values()]
    return train(Tiny, None, max_epochs=HEALED, logger=loggers, log_every_n_steps=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> set[Event]:
    """All that is made where nothing is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        fit = Fit(patch)
        fit.run()
    return set(fit.made)


SEAMS = [
    *(("file", name) for name in FILES),
    *(("picture", name) for name in PICTURES),
    *((name, call) for name in LOGGERS for call in ("adapter", *CALLS)),
    ("console", "table"),
]


def depends_on(event: Event, seam: tuple[str, str]) -> bool:
    """Whether what was made is the seam's own, or cannot be made without it."""
    where, what, _ = event
    if (where, what) == seam:
        return True
    if seam == ("file", CHANNELS):
        return (where, what) == ("file", "report.json")
    if seam[0] == "picture":
        return (where, what) == ("file", f"{seam[1]}.png")
    return seam[1] == "adapter" and where == seam[0]


def test_everything_is_made_where_nothing_is_broken(whole: set[Event]) -> None:
    made = {(where, what) for where, what, _ in whole}
    assert made == set(SEAMS)
    every = {("file", "report.json"), ("Adapter", "scalars"), *(("picture", name) for name in PICTURES)}
    assert {(where, what, window) for where, what in every for window in (1, 2, 3)} <= whole


@pytest.mark.parametrize("seam", SEAMS, ids=" ".join)
def test_one_fault_costs_one_part_and_is_told_once_and_tried_again(
    seam: tuple[str, str],
    whole: set[Event],
    plain: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = Fit(monkeypatch, seam)
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        run = fit.run()
    made = set(fit.made)
    assert {event for event in whole - made if not depends_on(event, seam)} == set(), "all else is made"
    assert {event for event in made - whole if not depends_on(event, seam)} == set()
    assert not {event for event in made if (event[0], event[1]) == seam and event[2] < HEALED}
    assert ((*seam, HEALED) in made) == (seam[1] not in AT_END), "it is tried again"
    said = [str(w.message) for w in caught if issubclass(w.category, DeadKernelWarning)]
    said += [record.getMessage() for record in caplog.records if "DeadKernelMonitor" in record.getMessage()]
    (told,) = [text for text in said if "injected into" in text]
    name = {CHANNELS: "report.json", "table": "the table"}.get(seam[1], seam[1])
    assert (LOGGERS[seam[0]].__name__ if seam[0] in LOGGERS else name) in told
    assert [closed.window for closed in fit.monitor.reports] == list(range(HEALED + 1))
    assert dead(fit.monitor.report) == DEAD
    assert_identical(run.left_behind, plain.left_behind)
    if seam != ("file", "report.json"):
        (path,) = Path().rglob("report.json")
        assert Report.load(path).window == HEALED


WORDS: dict[str, tuple[Any, str, set[str]]] = {
    "to JSON": (report, "to_files", {"report.json", CHANNELS}),
    "to Markdown": (Report, "to_markdown", {"report.md", "text"}),
    "to HTML": (report, "to_html", {"report.html"}),
    "for the console": (outputs, "describe_briefly", {"table"}),
    "to scalars": (run_log, "summary_scalars", {"charts", "describe", "scalars"}),
    "to histograms": (run_log, "within_share", {"histograms"}),
    "to pictures of loggers": (run_log, "_picture_key", {"pictures"}),
    "to a folder": (outputs, "report_folder", {*FILES, "files"}),
}
"""What turns the report into its forms: where, and what is made of it."""


@pytest.mark.parametrize("step", WORDS)
def test_a_form_that_cannot_be_made_costs_that_form_alone(
    step: str, whole: set[Event], plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, own = WORDS[step]
    fit = Fit(monkeypatch)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(owner, name, broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit.run()
    made = set(fit.made)
    assert made <= whole
    assert {what for _, what, _ in whole - made} == own
    assert len([w for w in caught if "injected" in str(w.message)]) == 1
    assert_identical(run.left_behind, plain.left_behind)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can make a file")
def test_a_folder_that_is_there_and_takes_no_files_is_told_once_and_ends_the_files_and_not_the_watch(
    whole: set[Event], plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Fit(monkeypatch)
    monkeypatch.setattr(outputs, "report_folder", lambda *args: Path("/proc/self"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit.run()
    (told,) = [str(w.message) for w in caught if issubclass(w.category, DeadKernelWarning)]
    assert "could not write the report's folder" in told
    assert {what for _, what, _ in whole - set(fit.made)} == {*FILES, "files"}
    assert [closed.window for closed in fit.monitor.reports] == list(range(HEALED + 1))
    assert_identical(run.left_behind, plain.left_behind)
