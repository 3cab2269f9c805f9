"""A report as SARIF 2.1.0, which code scanning shows beside the file that was looked at.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from lightning_deadkernel.errors import printable
from lightning_deadkernel.report.records import Finding, ReportRecord

_LEVELS = {"info": "note", "warning": "warning", "error": "error"}


def to_sarif(report: ReportRecord, artifact: str) -> str:
    """One result a finding.

    Args:
        report: what to tell.
        artifact: the file it is about, as a path with forward slashes, relative to the repository where it lies in one.

    Returns:
        A JSON document, ending in a newline.
    """
    rules = {finding.kind: _rule(finding) for finding in reversed(report.findings)}
    name = "lightning-deadkernel"
    driver = {"name": name, "version": version(name), "rules": list(rules.values())}
    results = [_result(finding, list(rules).index(finding.kind), artifact) for finding in report.findings]
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=True) + "\n"


def _rule(finding: Finding) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": finding.kind, "shortDescription": {"text": finding.kind.replace("_", " ")}}
    if address := re.search(r"https?://\S+", finding.reference):
        rule["helpUri"] = address[0]
    return rule


def _result(finding: Finding, index: int, artifact: str) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(artifact)}}}
    if finding.layer is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": printable(finding.layer), "kind": "member"}]
    said = (finding.headline, finding.cause, finding.advice, finding.reference)
    return {
        "ruleId": finding.kind,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": "\n".join(printable(text) for text in said if text)},
        "locations": [location],
    }
