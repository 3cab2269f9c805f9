"""Commands that read weights or finished reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_deadkernel.analysis.audit import audit
from lightning_deadkernel.analysis.compare import compare
from lightning_deadkernel.cli.status import EXIT_FOUND, PROGRAM, CommandError
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.report.codec import to_json
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.html import to_html
from lightning_deadkernel.report.records import TOLD_BY_WEIGHTS
from lightning_deadkernel.report.report import Report, write_atomically


def run_audit(arguments: argparse.Namespace) -> int:
    """What the weights in a file tell; gives the exit status."""
    report = audit(arguments.checkpoint, key=arguments.key)
    passed = _passed(report, arguments.fail_on)
    _print(report, arguments, full=True)
    return EXIT_FOUND if passed else 0


def run_show(arguments: argparse.Namespace) -> int:
    """A saved report; gives the exit status."""
    report = _load_report(arguments.report)
    passed = _passed(report, arguments.fail_on)
    _print(report, arguments, arguments.full)
    return EXIT_FOUND if passed else 0


def _print(report: Report, arguments: argparse.Namespace, full: bool) -> None:
    if arguments.html:
        write_atomically(Path(arguments.html), to_html(describe(report)))
    if arguments.format == "json":
        print(to_json(report), end="")
    elif arguments.format == "markdown":
        print(report.to_markdown(), end="")
    else:
        print_document(describe(report) if full else describe_briefly(report))


def run_compare(arguments: argparse.Namespace) -> int:
    """Several saved reports side by side; gives the exit status."""
    comparison = compare([_load_report(place) for place in arguments.reports], _run_names(arguments.reports))
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


def _load_report(place: str) -> Report:
    """The report of a file, or of the run in a folder."""
    path = Path(place)
    if path.is_dir():
        inside = [path / "report.json", path / "deadkernel" / "report.json"]
        found = [candidate for candidate in inside if candidate.is_file()]
        if not found:
            raise CommandError(f"{place}: the folder has no report.json, nor has its deadkernel/")
        path = found[0]
    try:
        return Report.load(path)
    except FileNotFoundError as error:
        raise CommandError(f"{place}: no such file or folder") from error


def _passed(report: Report, limits: Sequence[tuple[str, float]]) -> bool:
    """Whether a limit is passed; each is named on standard error. A number that was not observed passes none."""
    numbers = _numbers(report)
    unknown = [name for name, _ in limits if name not in numbers]
    if unknown:
        where = "an audit, which sees weights alone," if report.audited is not None else "--fail-on"
        raise CommandError(f"{where} knows no {unknown[0]!r}, but: {', '.join(numbers)}")
    passed = [(name, limit) for name, limit in limits if numbers[name] > limit]
    for name, limit in passed:
        print(f"{PROGRAM}: {name} is {numbers[name]:g}, above {limit:g}", file=sys.stderr)
    return bool(passed)


def _numbers(report: Report) -> dict[str, float]:
    """What a limit can be set on: the summary, and of each kind of finding how many there are."""
    audited = report.audited is not None
    kinds = [rule.kind for rule in RULES if rule.in_files or not audited]
    found = {kind: float(sum(finding.kind == kind for finding in report.findings)) for kind in kinds}
    stated = {name: value for name, value in report.summary().items() if name in TOLD_BY_WEIGHTS or not audited}
    return {**found, **stated}
