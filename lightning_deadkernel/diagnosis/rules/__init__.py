"""One module for each kind of finding, of the kind's name; modules with a leading underscore are shared by some.

To add a rule, add its module: the kinds, the causes, the titles and the pages are read from here.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lightning_deadkernel.diagnosis.rule import Rule

RULES: tuple[Rule, ...] = tuple(
    getattr(import_module(f"{__name__}.{module.name}"), module.name)
    for module in sorted(iter_modules(__path__), key=lambda module: module.name)
    if not module.name.startswith("_")
)
"""Every rule, by name."""

KINDS: tuple[str, ...] = tuple(rule.kind for rule in RULES)
"""Every `Finding.kind`."""

CAUSES: tuple[str, ...] = tuple(dict.fromkeys(cause.word for rule in RULES for cause in rule.causes))
"""Every word that may begin `Finding.cause`."""
