"""Pages of the site that are made from the code, when the site is built (a hook of mkdocs).

The front page is the README, extending is CONTRIBUTING.md, a page of findings is the docstring of its rule,
and the table of states is the one that the code reads: what is said in one place is not written in two.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lightning_deadkernel.diagnosis.rule import Rule
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.report.states import FROZEN_FLAG, SHOWN, ZERO_KERNEL_FLAG

ROOT = Path(__file__).parent.parent
REPOSITORY_FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md")
"""What the front page links to and the site does not hold: named there, not linked."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every rule has its place under "Findings"."""
    (findings,) = (entry for entry in config["nav"] if isinstance(entry, dict) and "Findings" in entry)
    findings["Findings"] += [{rule.kind: f"findings/{rule.kind}.md"} for rule in RULES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made."""
    made = {
        "index.md": front_page(),
        "extending.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "findings/index.md": findings_page(),
        **{f"findings/{rule.kind}.md": finding_page(rule) for rule in RULES},
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The table of states, where a page asks for it."""
    return markdown.replace("<!-- states -->", states_table())


def front_page() -> str:
    """The README, as seen from the folder of the docs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(rf"\[([^]]+)\]\((?:{'|'.join(map(re.escape, REPOSITORY_FILES))})\)", r"`\1`", text)


def finding_page(rule: Rule) -> str:
    """What it finds, why it matters, what to do, reference; and every cause that may be named."""
    summary, _, rest = rule.page.strip().partition("\n")
    causes = "\n".join(f"- {cause.word}" for cause in rule.causes)
    reference = rest.index("## Reference")
    linked = re.sub(r"(?<![<(])(https?://\S+)", r"<\1>", rest[reference:])
    return f"# `{rule.kind}`\n\n{summary}\n{rest[:reference]}## Causes that it may name\n\n{causes}\n\n{linked}\n"


def findings_page() -> str:
    """All kinds of findings, a line each."""
    rows = [f"| [`{rule.kind}`]({rule.kind}.md) | {rule.page.strip().splitlines()[0]} |" for rule in RULES]
    return "\n".join(["# Findings", "", "| kind | what it is |", "| --- | --- |", *rows, ""])


def states_table() -> str:
    """Every state and flag, the worst first."""
    words = sorted((*SHOWN, ZERO_KERNEL_FLAG, FROZEN_FLAG), key=lambda word: (bool(word.bit), -word.gravity))
    rows = [f"| **{word.name}** | {'flag' if word.bit else 'state'} | {word.meaning} |" for word in words]
    return "\n".join(["| word | is a | a kernel that |", "| --- | --- | --- |", *rows])
