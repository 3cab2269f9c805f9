"""Every sentence that the package can print: in plain words, and printed once by a real diagnosis in a golden file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.example_reports import healthy_report, sick_report
from helpers.reports import codes
from helpers.sentences import PACKAGE, Sentence, sentences
from helpers.stories import STORIES, told
from lightning_deadkernel.diagnosis import references
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.report.console import to_text
from lightning_deadkernel.report.describe import describe_briefly
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sentences import moment, verdict, watched_and_not
from lightning_deadkernel.report.states import SHOWN

GOLDEN = Path(__file__).parent / "golden"
WORDS = PACKAGE.parent / "docs" / "words.md"
EVERYWHERE = tuple(sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"))
IN_REPORTS = ("diagnosis", "report/sentences.py", "report/states.py", "report/describe.py")
ELSEWHERE = ("diagnosis/history.py", "diagnosis/references.py")
"""What is damaged in a checkpoint, and titles of papers."""


def _not_to_be_said() -> list[str]:
    table = WORDS.read_text(encoding="utf-8").split("| not this | but this |")[1].split("##")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:] if line.startswith("|")]


NOT_SAID = _not_to_be_said()


def _says(text: str) -> list[str]:
    even = " ".join(text.lower().split())
    return [words for words in NOT_SAID if re.search(rf"\b{re.escape(words)}\b", even)]


def test_the_style_list_is_read() -> None:
    assert {"mend", "is dead of it", "least at", "and no loss"} <= set(NOT_SAID)
    assert _says("Nothing to\nmend here.") == ["mend", "nothing to mend"]
    assert _says("a mended kernel, recommended") == []


@pytest.mark.parametrize("folder", EVERYWHERE)
def test_no_sentence_in_the_source_is_against_the_style_list(folder: str) -> None:
    here = [sentence for sentence in sentences(folder) if not sentence.place.startswith("diagnosis/references")]
    found = {sentence.place: (_says(sentence.text), sentence.text) for sentence in here}
    assert {place: said for place, said in found.items() if said[0]} == {}
    assert [sentence for sentence in here if re.search(r"[\d…] %", sentence.text)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_no_page_of_a_rule_is_against_the_style_list(rule) -> None:  # type: ignore[no-untyped-def]
    assert _says(rule.page.split("## Reference")[0]) == []


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_no_golden_text_is_against_the_style_list(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").split())
    for title in (text for name, text in vars(references).items() if name.isupper()):
        text = text.replace(title.split(", https://")[0], "")
    assert _says(text) == []


def _stories() -> str:
    parts = ["# What is said, and when", ""]
    for name, make in STORIES.items():
        lines = told(make())
        assert lines, f"nothing is said of: {name}"
        parts += [f"## {name}", "", *(f"- {line}" for line in lines), ""]
    return "\n".join(parts)


def _reports() -> dict[str, Report]:
    sick, healthy = sick_report(), healthy_report()
    dead = next(finding for finding in sick.findings if finding.kind == "dead_channels")
    read = healthy.layers[0]
    silent = replace(read, codes=codes(read.channels, {"silent": (0, 3)}))
    return {
        "weights in a file": replace(sick, audited="model.ckpt", window=0, samples=None),
        "at initialisation": replace(healthy, window=0),
        "batches of unknown size": replace(healthy, samples=None),
        "some batches NaN": replace(healthy, non_finite_batches=4),
        "nothing watched": replace(healthy, layers=()),
        "remarks alone": replace(sick, findings=tuple(f for f in sick.findings if f.severity == "info"), problems=()),
        "an older report without problems": replace(sick, problems=(), findings=(dead, replace(dead, channels=(1, 2)))),
        "weaker evidence": replace(
            healthy, layers=(replace(read, evidence="sampled activation"), replace(silent, evidence="weight"))
        ),
        "one layer": replace(healthy, layers=(replace(read, evidence="gradient"),)),
        "two layers": replace(
            healthy, layers=(replace(read, evidence="gradient"), replace(silent, evidence="gradient"))
        ),
    }


def _heads() -> str:
    parts = ["# What a report begins with", ""]
    for name, report in _reports().items():
        lines = (moment(report), verdict(report), watched_and_not(report))
        parts += [f"## {name}", "", *(f"- {line}" for line in lines), ""]
    many = [replace(row, name=f"{row.name}.{k}") for k in range(9) for row in sick_report().layers]
    table = to_text(describe_briefly(replace(sick_report(), layers=tuple(many))), width=120)
    parts += ["## many layers", "", *(f"- {line}" for line in table.splitlines() if line.startswith("... ")), ""]
    brief = to_text(describe_briefly(_reports()["remarks alone"]), width=120)
    parts += [
        "## a training ends with remarks alone",
        "",
        *(f"- {x}" for x in brief.splitlines() if "Further" in x),
        "",
    ]
    return "\n".join([*parts, "## states", "", *(f"- {word.name}: {word.meaning}" for word in SHOWN), ""])


def test_what_is_said_in_each_story_is_the_golden_text(golden: Callable[[str, str], None]) -> None:
    golden("stories.md", _stories())


def test_what_reports_begin_with_is_the_golden_text(golden: Callable[[str, str], None]) -> None:
    golden("heads.md", _heads())


def _in_reports() -> list[Sentence]:
    found = sentences(*IN_REPORTS)
    return [s for s in found if not s.place.startswith(ELSEWHERE) and not s.text.startswith("Expected")]


def test_every_sentence_of_a_report_is_in_a_golden_text() -> None:
    files = [*GOLDEN.glob("*.md"), *GOLDEN.glob("*.txt"), WORDS.parent / "report_schema.md"]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    lines += [" ".join(path.read_text(encoding="utf-8").split()) for path in GOLDEN.glob("*.txt")]
    missing = [f"{s.place}: {s.text}" for s in _in_reports() if not any(s.is_in(line) for line in lines)]
    assert not missing, "no example prints these; tell a story in helpers/stories.py that does:\n" + "\n".join(missing)


def test_a_sentence_that_no_story_tells_is_found() -> None:
    new = Sentence("diagnosis/new.py:1", ("the kernel of ", None, " has left the building"))
    assert not new.is_in("the kernel of conv has never left")
    assert new.is_in("cause: the kernel of conv1 has left the building, they say")
    assert len(_in_reports()) > 150
