"""The monitor's options, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Protocol

from lightning_deadkernel.thresholds import Thresholds

WhenCompiled = Literal["sample", "gradients"]
OnFinding = Literal["warn", "ignore", "raise"]


class Options(Protocol):
    """What a run asks of the monitor; see `DeadKernelMonitor` for what each means."""

    every_n_train_steps: int | None
    min_steps: int
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    thresholds: Thresholds
    log_histograms: bool
    log_figures: bool
    log_layers: bool | int
    save_report: bool
    when_compiled: WhenCompiled
    on_finding: OnFinding
    prog_bar: bool
    update_ratio: bool

    def should_sample(self, step: int) -> bool:
        """Whether the costlier statistics are taken on this optimizer step."""
        ...


def check_step_count(option: str, value: Any, or_none: bool) -> None:
    """Raises ValueError for anything but a positive int, or None where that is allowed."""
    if not (value is None and or_none) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        rule = "None or a positive int" if or_none else "a positive int"
        raise ValueError(f"Expected `{option}` to be {rule}, but got {value!r}.")


def check_globs(option: str, patterns: Any) -> None:
    """Raises TypeError for anything but None or a list of strings."""
    if patterns is None:
        return
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"Expected `{option}` to be None or a list of glob patterns, but got {patterns!r}.")


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError for anything but one of the choices."""
    if value not in choices:
        raise ValueError(f"Expected `{option}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def thresholds_of(value: Any) -> Thresholds:
    """The thresholds, or those of a mapping of their names to numbers, as yaml and Hydra give it.

    Raises:
        TypeError: for anything else, and for names that are none.
        ValueError: for a number outside of its interval.
    """
    if isinstance(value, Thresholds):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"Expected `thresholds` to be a Thresholds or a mapping of their names, but got {value!r}.")
    names = [field.name for field in fields(Thresholds)]
    unknown = [name for name in value if name not in names]
    if unknown:
        near = get_close_matches(str(unknown[0]), names, n=3) or names
        raise TypeError(f"`thresholds` has no {unknown[0]!r}; near names: {', '.join(near)}.")
    return Thresholds(**{name: _number(given) for name, given in value.items()})


def _number(value: Any) -> Any:
    """What yaml reads as text though it is a number: 1e-3, without a dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_log_layers(value: Any) -> None:
    """Raises ValueError for anything but a bool or a positive int."""
    if not isinstance(value, bool) and not (isinstance(value, int) and value > 0):
        raise ValueError(f"Expected `log_layers` to be a bool or a positive int, but got {value!r}.")
