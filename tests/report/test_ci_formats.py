"""JUnit and SARIF: what services for continuous integration read of a report."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from helpers.example_reports import healthy_report, malicious_report, sick_report
from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.junit import NETWORK, to_junit
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.sarif import to_sarif


@pytest.mark.parametrize(
    "report", [sick_report(), healthy_report(), malicious_report()], ids=["sick", "healthy", "malicious"]
)
def test_junit_has_a_test_a_layer_which_fails_by_what_was_found_in_it(report: Report) -> None:
    suite = ElementTree.fromstring(to_junit(report))
    tests = suite.findall("testcase")
    layers = {finding.layer or NETWORK for finding in report.findings if finding.severity != "info"}
    assert {test.get("name") for test in tests} >= {layer.name for layer in report.layers if layer.name.isprintable()}
    failed = [test for test in tests if test.find("failure") is not None]
    skipped = [test for test in tests if test.find("skipped") is not None]
    assert len(failed) == len(layers)
    assert len(skipped) == sum(layer.excluded is not None and layer.name not in layers for layer in report.layers)
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == tuple(
        str(len(cases)) for cases in (tests, failed, skipped)
    )
    bad = [finding for finding in report.findings if finding.severity != "info"]
    assert len(suite.findall("testcase/failure")) == len(bad)
    for finding in bad:
        assert any(failure.get("type") == finding.kind for failure in suite.findall("testcase/failure"))


def test_a_limit_is_a_test_of_its_own() -> None:
    suite = ElementTree.fromstring(to_junit(healthy_report(), [("dead_fraction", 0.1, 0.25), ("zero_kernels", 3, 3)]))
    passed = {test.get("name"): test.find("failure") for test in suite.findall("testcase")}
    assert passed["zero_kernels <= 3"] is None
    failure = passed["dead_fraction <= 0.1"]
    assert failure is not None
    assert failure.get("message") == "dead_fraction is 0.25, above 0.1"
    assert suite.get("failures") == "1"


@pytest.mark.parametrize(
    "report", [sick_report(), healthy_report(), malicious_report()], ids=["sick", "healthy", "malicious"]
)
def test_sarif_has_a_result_a_finding_with_its_place(report: Report) -> None:
    log = json.loads(to_sarif(report, "runs/a model #1.json"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(dict.fromkeys(rule["id"] for rule in rules))
    assert len(run["results"]) == len(report.findings)
    levels = {"info": "note", "warning": "warning", "error": "error"}
    for result, finding in zip(run["results"], report.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.kind
        assert result["level"] == levels[finding.severity]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "runs/a%20model%20%231.json"
        assert ("logicalLocations" in result["locations"][0]) == (finding.layer is not None)
        assert all(line.isprintable() for line in result["message"]["text"].split("\n"))
    if report.findings:
        assert printable(report.findings[0].advice) in run["results"][0]["message"]["text"]
