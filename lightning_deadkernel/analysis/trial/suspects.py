"""What may have done it, by the causes that a report names, and to which settings of a command each change applies.

A suspect says what to add to the command, or why nothing can be: a command is read by the names of its settings, and
where several could be meant those that have the optimizer's own values are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_deadkernel.analysis.trial.records import Arm, Untried
from lightning_deadkernel.analysis.trial.target import Target
from lightning_deadkernel.diagnosis.causes import (
    BELOW_RESOLUTION,
    BORN_DEAD,
    CONSTANT_INITIALISATION,
    DECAYED,
    DEPTH,
    EPSILON_DOMINATES,
    FADED,
    HEAVY_TAILS,
    KNOCKED_OUT,
    LOW_ACTIVITY,
    OFF_SCALE_INPUTS,
    OVERFLOW,
    RECKLESS_UPDATES,
    SATURATED,
    SATURATED_DOWNSTREAM,
    SCALE_COLLAPSED,
    SHIFT_NEGATIVE,
    SLINGSHOT,
    SLOW_UPDATES,
    UNDERFLOW,
    UNKNOWN,
    ZERO_AT_INITIALISATION,
    CauseKind,
)
from lightning_deadkernel.diagnosis.death_causes import SHORT_MEMORY
from lightning_deadkernel.report.records import ReportRecord

Settings = Mapping[str, Any]
"""Of a command, by dotted names: ``{"model.init_args.lr": 0.1, ...}``."""

RATES = ("lr", "learning_rate", "max_lr", "base_lr", "peak_lr")
DECAYS = ("weight_decay", "wd", "l2", "l2_penalty")
PENALTIES = ("l1", "l1_lambda", "l1_weight", "l1_penalty", "l1_coefficient", "sparsity_weight")
NORMS = ("norm", "use_norm", "batch_norm", "use_batch_norm", "batchnorm", "use_batchnorm", "use_bn", "layer_norm")
TREATMENTS = "lightning_deadkernel.analysis.treatments"
WARM_UP_SHARE, LEAST_WARM_UP = 10, 10
"""A tenth of the run's steps, ten at least."""
CLIP = 1.0
"""The gradient norm to clip at: what most recipes use."""


class CannotTry(Exception):
    """No setting to change; the message says which was looked for."""


@dataclass(frozen=True)
class Suspicion:
    """What a suspect can look at."""

    settings: Settings
    report: ReportRecord
    target: Target

    def keys(self, names: Sequence[str], holds: Callable[[object], bool]) -> list[str]:
        """Settings of one of these names whose value is as wanted."""
        return [key for key, value in self.settings.items() if key.rpartition(".")[2].lower() in names and holds(value)]

    def numbers(self, names: Sequence[str], *of_optimizer: str) -> dict[str, float]:
        """Positive numbers under one of these names; where some are the optimizer's own values, only those.

        Raises:
            CannotTry: if there is none.
        """
        found = {key: float(str(self.settings[key])) for key in self.keys(names, _is_positive)}
        if not found:
            raise CannotTry(f"the command has no setting called {' or '.join(names[:2])} above 0")
        optimizers = self.report.run.optimizers if self.report.run is not None else ()
        own = [one.settings.get(name) for one in optimizers for name in of_optimizer]
        used = {
            key: value
            for key, value in found.items()
            if any(isinstance(other, (int, float)) and math.isclose(value, other, rel_tol=1e-6) for other in own)
        }
        return used or found


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


@dataclass(frozen=True)
class Suspect:
    """One change to try."""

    name: Callable[[Suspicion], str] | str
    causes: tuple[CauseKind, ...]
    """That it would take away."""
    changes: Callable[[Suspicion], Sequence[str]]
    """What to add to the command. Raises CannotTry where nothing can be."""
    concerns: Callable[[ReportRecord], bool] = lambda report: True
    """Whether it can be to blame at all."""


def arms_of(run: Suspicion) -> tuple[list[Arm], list[Untried]]:
    """The changes to try for what a report names as causes, the smallest first, and those that cannot be tried."""
    arms, untried = [], []
    for suspect in SUSPECTS:
        if not {cause.word for cause in suspect.causes} & set(run.target.causes) or not suspect.concerns(run.report):
            continue
        name = suspect.name if isinstance(suspect.name, str) else suspect.name(run)
        try:
            arms.append(Arm(name, "change", tuple(suspect.changes(run))))
        except CannotTry as reason:
            untried.append(Untried(name, f"{reason}: give it as --arm"))
    if not arms and not untried:
        untried.append(Untried(", ".join(run.target.causes), "no change is known to try against it: give one as --arm"))
    return arms, untried


# -- the changes ------------------------------------------------------------------------------------------------------


def _clip(run: Suspicion) -> list[str]:
    key = "trainer.gradient_clip_val"
    if key not in run.settings:
        raise CannotTry(f"the command has no setting {key}")
    return [f"--{key}={_limit(run):g}"]


def _limit(run: Suspicion) -> float:
    now = run.settings.get("trainer.gradient_clip_val")
    return float(str(now)) / 10 if _is_positive(now) else CLIP


def _with_callback(run: Suspicion, name: str, **options: object) -> list[str]:
    if "trainer.callbacks" not in run.settings:
        raise CannotTry("the command has no setting trainer.callbacks")
    added = [f"--trainer.callbacks+={TREATMENTS}.{name}"]
    return added + [f"--trainer.callbacks.{option}={value}" for option, value in options.items()]


def _warm_up(run: Suspicion) -> list[str]:
    return _with_callback(run, "WarmUp", steps=_steps(run))


def _steps(run: Suspicion) -> int:
    return max(LEAST_WARM_UP, run.report.global_step // WARM_UP_SHARE)


def _uses_decayed_adam(report: ReportRecord) -> bool:
    optimizers = report.run.optimizers if report.run is not None else ()
    return any(one.name == "Adam" and _is_positive(one.settings.get("weight_decay")) for one in optimizers)


def _decoupled(run: Suspicion) -> list[str]:
    changes = []
    for key, value in run.settings.items():
        if isinstance(value, str) and key.endswith(".class_path") and value.endswith(".Adam"):
            changes.append(f"--{key.removesuffix('.class_path')}={value}W")
        elif isinstance(value, str) and value.lower() == "adam" and "optim" in key.lower():
            changes.append(f"--{key}={value}{'W' if value[0].isupper() else 'w'}")
    if not changes:
        raise CannotTry("the command has no setting that names Adam")
    return changes


def _decays(report: ReportRecord) -> bool:
    optimizers = report.run.optimizers if report.run is not None else ()
    return not optimizers or any(_is_positive(one.settings.get("weight_decay")) for one in optimizers)


def _no_decay(run: Suspicion) -> list[str]:
    return [f"--{key}=0" for key in run.numbers(DECAYS, "weight_decay")]


def _shorter_memory(run: Suspicion) -> list[str]:
    pairs = run.keys(("betas",), lambda value: isinstance(value, list) and len(value) == 2 and value[1] > SHORT_MEMORY)
    changes = [f"--{key}=[{run.settings[key][0]:g},{SHORT_MEMORY:g}]" for key in pairs]
    changes += [f"--{key}={SHORT_MEMORY:g}" for key in run.keys(("beta2", "adam_beta2"), _is_positive)]
    if not changes:
        raise CannotTry("the command has no setting called betas or beta2")
    return changes


def _smaller_epsilon(run: Suspicion) -> list[str]:
    return [f"--{key}={value * 1e-6:.6g}" for key, value in run.numbers(("eps", "epsilon"), "eps").items()]


def _no_penalty(run: Suspicion) -> list[str]:
    return [f"--{key}=0" for key in run.numbers(PENALTIES)]


def _rate_times(factor: float) -> Callable[[Suspicion], list[str]]:
    def changes(run: Suspicion) -> list[str]:
        found = run.numbers(RATES, "lr", "initial_lr")
        return [f"--{key}={value * factor:.6g}" for key, value in found.items()]

    return changes


def _in_float32(run: Suspicion) -> list[str]:
    if "trainer.precision" not in run.settings:
        raise CannotTry("the command has no setting trainer.precision")
    return ["--trainer.precision=32-true"]


def _is_narrow(report: ReportRecord) -> bool:
    return report.run is None or not report.run.precision.startswith(("32", "64"))


def _drawn_anew(run: Suspicion) -> list[str]:
    if run.settings.get("ckpt_path"):
        raise CannotTry("the run begins from a checkpoint's weights")
    everywhere = DEPTH.word in run.target.causes
    names = [layer.name for layer in run.report.of_kernels if everywhere or layer.name in _named_layers(run)]
    return _with_callback(run, "HeInitialisation", layers=f"[{','.join(names)}]")


def _standardised(run: Suspicion) -> list[str]:
    names = {str(f.evidence["measured_at"]) for f in run.report.findings if "measured_at" in f.evidence}
    return _with_callback(run, "Standardised", layers=f"[{','.join(sorted(names))}]")


def _named_layers(run: Suspicion) -> set[str]:
    return {layer for layer, _ in run.target.named}


def _rectified(run: Suspicion) -> list[str]:
    changes = []
    for key, value in run.settings.items():
        if isinstance(value, str) and key.endswith(".class_path") and value.endswith((".Sigmoid", ".Tanh")):
            changes.append(f"--{key.removesuffix('.class_path')}={value.rpartition('.')[0]}.ReLU")
        elif isinstance(value, str) and value.lower() in ("sigmoid", "tanh"):
            changes.append(f"--{key}={'ReLU' if value[0].isupper() else 'relu'}")
    if not changes:
        raise CannotTry("the command has no setting that is sigmoid or tanh")
    return changes


def _normed(run: Suspicion) -> list[str]:
    keys = run.keys(NORMS, lambda value: value is False)
    if not keys:
        raise CannotTry("the command has no setting called norm that is false")
    return [f"--{key}=true" for key in keys]


STEPS_TOO_LARGE = (KNOCKED_OUT, RECKLESS_UPDATES, SHIFT_NEGATIVE, UNKNOWN)
SUSPECTS = (
    Suspect(lambda run: f"gradients clipped at {_limit(run):g}", (*STEPS_TOO_LARGE, SLINGSHOT, OVERFLOW), _clip),
    Suspect("standardised data", (OFF_SCALE_INPUTS,), _standardised),
    Suspect(f"Adam's beta2 {SHORT_MEMORY:g}", (SLINGSHOT,), _shorter_memory),
    Suspect("a millionth of Adam's eps", (EPSILON_DOMINATES,), _smaller_epsilon),
    Suspect(lambda run: f"warm-up over {_steps(run):,} steps", STEPS_TOO_LARGE, _warm_up),
    Suspect("AdamW in place of Adam", (DECAYED, SCALE_COLLAPSED, HEAVY_TAILS, UNKNOWN), _decoupled, _uses_decayed_adam),
    Suspect("no weight decay", (DECAYED, SCALE_COLLAPSED, HEAVY_TAILS, UNKNOWN), _no_decay, _decays),
    Suspect("no L1 term", (HEAVY_TAILS, SCALE_COLLAPSED, FADED), _no_penalty),
    Suspect("float32", (BELOW_RESOLUTION, UNDERFLOW, OVERFLOW), _in_float32, _is_narrow),
    Suspect(
        "a tenth of the learning rate",
        (*STEPS_TOO_LARGE, SLINGSHOT, OVERFLOW, DECAYED, FADED, SATURATED, LOW_ACTIVITY),
        _rate_times(0.1),
    ),
    Suspect("ten times the learning rate", (SLOW_UPDATES,), _rate_times(10)),
    Suspect(
        "He initialisation", (BORN_DEAD, CONSTANT_INITIALISATION, ZERO_AT_INITIALISATION, DEPTH, SATURATED), _drawn_anew
    ),
    Suspect("ReLU in place of sigmoid or tanh", (DEPTH, SATURATED, SATURATED_DOWNSTREAM), _rectified),
    Suspect("with norms", (DEPTH, BORN_DEAD, SATURATED, FADED), _normed),
)
"""The smallest change first: what touches only outlying steps, then one term of each step, then all steps, then the
network itself."""
