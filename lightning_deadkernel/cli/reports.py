"""Commands that read weights or finished reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from lightning_deadkernel.analysis.against import since
from lightning_deadkernel.analysis.audit import audit, read_state
from lightning_deadkernel.analysis.compare import compare
from lightning_deadkernel.cli.status import EXIT_FOUND, PROGRAM, CommandError
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.report.codec import to_json
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.document import Section
from lightning_deadkernel.report.html import to_html
from lightning_deadkernel.report.junit import to_junit
from lightning_deadkernel.report.markdown import to_markdown
from lightning_deadkernel.report.records import TOLD_BY_WEIGHTS
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.report.sarif import to_sarif
from lightning_deadkernel.report.sentences import listed


def run_audit(arguments: argparse.Namespace) -> int:
    """What the weights in a file tell; gives the exit status."""
    if arguments.model is None:
        report = audit(arguments.checkpoint, key=arguments.key)
    else:  # Lightning and the model's own packages take seconds to import
        model, forward = import_module("lightning_deadkernel.cli.model").model_of(arguments.model)
        report = import_module("lightning_deadkernel.analysis.audit_model").audit_model(
            arguments.checkpoint, model, forward, key=arguments.key
        )
    earlier = arguments.against
    if earlier is None:
        return _print(report, arguments, Path(arguments.checkpoint), full=True)
    if arguments.format not in ("table", "markdown"):
        raise CommandError("--against is told as a table or as markdown, not as " + arguments.format)
    now, before = (read_state(path, arguments.key)[0] for path in (arguments.checkpoint, earlier))
    return _print(report, arguments, Path(arguments.checkpoint), full=True, beside=since(now, before, earlier))


def run_show(arguments: argparse.Namespace) -> int:
    """A saved report; gives the exit status."""
    path = report_file(arguments.report)
    return _print(load_report(path), arguments, path, arguments.full)


def _print(report: Report, arguments: argparse.Namespace, path: Path, full: bool, beside: Section | None = None) -> int:
    limits = _limits(report, arguments.fail_on)
    whole, plain = (describe(report, each_kernel=each) for each in (True, False))
    if beside is not None:
        whole, plain = (replace(d, blocks=(*d.blocks[:1], beside, *d.blocks[1:])) for d in (whole, plain))
    if arguments.html:
        write_atomically(Path(arguments.html), to_html(whole))
    if arguments.format == "json":
        print(to_json(report), end="")
    elif arguments.format == "markdown":
        print(to_markdown(plain), end="")
    elif arguments.format == "junit":
        print(to_junit(report, limits), end="")
    elif arguments.format == "sarif":
        print(to_sarif(report, path.as_posix()), end="")
    else:
        print_document(plain if full else describe_briefly(report))
    passed = [(name, limit, value) for name, limit, value in limits if value > limit]
    for name, limit, value in passed:
        print(f"{PROGRAM}: {name} is {value:g}, above {limit:g}", file=sys.stderr)
    return EXIT_FOUND if passed else 0


def run_compare(arguments: argparse.Namespace) -> int:
    """Several saved reports side by side; gives the exit status."""
    comparison = compare(
        [load_report(report_file(place)) for place in arguments.reports], _run_names(arguments.reports)
    )
    if arguments.format == "markdown":
        print(comparison.to_markdown(), end="")
    else:
        print_document(comparison.document())
    return 0


def _run_names(places: Sequence[str]) -> list[str] | None:
    """What tells the paths apart, e.g. seed0 and seed1 of runs/seed0/version_0 and runs/seed1/version_0.

    None, for plain numbers, where nothing does.
    """
    parts = [list(Path(place).resolve().parts) for place in places]
    for end in (0, -1):
        while all(len(own) > 1 for own in parts) and len({own[end] for own in parts}) == 1:
            for own in parts:
                del own[end]
    names = ["/".join(own) for own in parts]
    return names if len(set(names)) == len(names) else None


def report_file(place: str) -> Path:
    """The report's file, or that of the run in a folder. Raises CommandError where a folder has none."""
    path = Path(place)
    if not path.is_dir():
        beside = path.with_suffix(".json")
        return beside if path.suffix in (".html", ".md") and beside.is_file() else path
    inside = [path / "report.json", path / "deadkernel" / "report.json"]
    found = [candidate for candidate in inside if candidate.is_file()]
    if not found:
        runs = [file.parents[1] for depth in (1, 2) for file in path.glob("*/" * depth + "deadkernel/report.json")]
        below = f"; there are runs in it: {listed(sorted(map(str, runs)))}" if runs else ""
        raise CommandError(f"{place}: the folder has no report.json, nor has its deadkernel/{below}")
    return found[0]


def load_report(path: Path) -> Report:
    """The report. Raises CommandError where there is no such file, and ValueError where it is none."""
    try:
        return Report.load(path)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such file or folder") from error


def _limits(report: Report, asked: Sequence[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """Name, limit and value of each limit that was asked for. A number that was not observed passes none."""
    numbers = _numbers(report)
    unknown = [name for name, _ in asked if name not in numbers]
    if unknown:
        where = "an audit, which sees weights alone," if report.audited is not None else "--fail-on"
        raise CommandError(f"{where} knows no {unknown[0]!r}, but: {', '.join(numbers)}")
    return [(name, limit, numbers[name]) for name, limit in asked]


def _numbers(report: Report) -> dict[str, float]:
    """What a limit can be set on: the summary, and of each kind of finding how many there are."""
    audited, modelled = report.audited is not None, any(layer.activation for layer in report.layers)
    kinds = [rule.kind for rule in RULES if rule.in_files or not audited or (rule.with_model and modelled)]
    found = {kind: float(sum(finding.kind == kind for finding in report.findings)) for kind in kinds}
    stated = {name: value for name, value in report.summary().items() if name in TOLD_BY_WEIGHTS or not audited}
    return {**found, **stated}
