"""A report as JUnit XML, which most services for continuous integration show as a list of tests."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.records import Finding, ReportRecord

NETWORK = "the network"


def to_junit(report: ReportRecord, limits: Sequence[tuple[str, float, float]] = ()) -> str:
    """One test a layer, and one a limit.

    A layer fails by what was found in it of severity *warning* or *error*, and is skipped, with the reason, where it
    was not watched. What is found is not always a reason to stop: whether the command fails is for the limits to say.

    Args:
        report: what to tell.
        limits: name, limit and value of each number that was not to be passed.

    Returns:
        An XML document, ending in a newline.
    """
    suite = ElementTree.Element("testsuite", name="lightning-deadkernel")
    for name, limit, value in limits:
        test = _test(suite, "limits", f"{name} <= {limit:g}")
        if value > limit:
            _failure(test, "limit", f"{name} is {value:g}, above {limit:g}", "")
    bad: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.severity != "info":
            bad.setdefault(finding.layer or NETWORK, []).append(finding)
    reasons = {layer.name: layer.excluded for layer in report.layers}
    for name in dict.fromkeys((*reasons, *bad)):
        test = _test(suite, "layers", name)
        for finding in bad.get(name, ()):
            _failure(test, finding.kind, finding.title, f"{finding.cause}\n{finding.advice}\n{finding.reference}")
        if (reason := reasons.get(name)) and name not in bad:
            ElementTree.SubElement(test, "skipped", message=printable(reason))
    for count, tag in (("tests", "testcase"), ("failures", "testcase/failure/.."), ("skipped", "testcase/skipped")):
        suite.set(count, str(len(suite.findall(tag))))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _test(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"lightning-deadkernel.{group}", name=printable(name))


def _failure(test: ElementTree.Element, kind: str, message: str, text: str) -> None:
    failure = ElementTree.SubElement(test, "failure", type=kind, message=printable(message))
    failure.text = "\n".join(printable(line) for line in text.splitlines())
