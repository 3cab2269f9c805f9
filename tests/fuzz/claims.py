"""What the monitor says after a real fit, against the oracle."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from fuzz.network import Loader, Network, batches, build
from fuzz.ops import OPS
from fuzz.oracle import Oracle, probed
from fuzz.programs import Program
from helpers.training import ACCELERATOR
from lightning_deadkernel import DeadKernelMonitor, Report, revive
from lightning_deadkernel.errors import DeadKernelInternalWarning
from lightning_deadkernel.report.records import LayerReport


@dataclass(frozen=True)
class Disagreement:
    """One claim that does not hold."""

    kind: str
    layer: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.layer}: {self.what}"


@dataclass
class Outcome:
    """A network after its training."""

    net: Network
    random_states: torch.Tensor
    """Of torch's generator: as each step found it, and at the end."""
    report: Report | None
    warned: list[str]


def fit(program: Program, watched: bool) -> Outcome:
    """Trains through Lightning, with the monitor or without."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    net = build(program)
    monitor = DeadKernelMonitor(log_figures=False, log_histograms=False, save_report=False, on_finding="ignore")
    options: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1 if _every_step(program) else 50,  # of three steps the first and the last at least
    }
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        torch.manual_seed(0)
        trainer = L.Trainer(callbacks=[monitor] if watched else [], **options)
        trainer.fit(net, Loader(batches(program)))
    internal = [str(w.message) for w in caught if issubclass(w.category, DeadKernelInternalWarning)]
    return Outcome(net, torch.stack([*net.random_states, torch.get_rng_state()]), monitor.report, internal)


def _every_step(program: Program) -> bool:
    """Whether each step is a sampled one: in every second network."""
    return program.seed % 2 == 1


def disagreements(program: Program) -> list[Disagreement]:
    """All claims about one network that do not hold."""
    try:
        seen = fit(program, True)
    except Exception as error:
        return [Disagreement("the fit failed", "", f"{type(error).__name__}: {error}")]
    found = [Disagreement("internal warning", "", text) for text in seen.warned]
    found += _training(program, seen)
    if seen.report is None:
        return [*found, Disagreement("no report", "", "the monitor made none")]
    oracle = Oracle(program)
    for layer in seen.report.layers:
        known = layer.name in oracle.truths and not (layer.name in oracle.turned and layer.name not in program.live())
        if known and layer.excluded is None:
            found += _states(layer, oracle)
    certified = _certificates(program, seen)
    return [*found, *certified, *_savings(seen.report, oracle), *_revival(program, seen, seen.report)]


FAR = (1.0, -1.0, 1e3, -1e3)
"""Times the inputs of the training, which certificates hold for as well as for these."""


def _certificates(program: Program, seen: Outcome) -> Iterator[Disagreement]:
    """No channel that is certified fires on any other input, with the weights at the end."""
    assert seen.report is not None
    certified = {layer.name: layer.certified_dead for layer in seen.report.layers if layer.certified_dead}
    if not certified:
        return
    torch.manual_seed(1)
    for index, batch in enumerate(batches(program)):
        for far in FAR:
            other = {name: far * value if value.is_floating_point() else value for name, value in batch.items()}
            probes = probed(seen.net, other, index)
            for layer, fires in probes.found["fires"]:
                wrong = [channel for channel in certified.get(layer, ()) if float(fires[channel]) != 0]
                if wrong:
                    yield Disagreement("certified though it fires", layer, f"channels {wrong} at {far} times the input")
    seen.net.watcher = None


def _training(program: Program, seen: Outcome) -> list[Disagreement]:
    """Weights, buffers and random numbers are those of a training without the monitor."""
    found: list[Disagreement] = []
    for _ in range(4):  # a sum can differ from run to run by where its numbers lie in memory: not in all of them
        found = list(_differences(seen, fit(program, False)))
        if not found:
            break
        seen = fit(program, True)
    return found


def _differences(seen: Outcome, plain: Outcome) -> Iterator[Disagreement]:
    other = plain.net.state_dict()
    for name, value in seen.net.state_dict().items():
        if not torch.equal(value.nan_to_num(), other[name].nan_to_num()):
            yield Disagreement("training differs", name, "it is not what it is without the monitor")
    if not torch.equal(seen.random_states, plain.random_states):
        yield Disagreement("training differs", "", "random numbers were drawn")


WITHOUT_MEAN = {"standardised", "rms_norm", "variance", "std", "less its mean", "gradient_penalty"}

CHOICES = {"maximum_of_two", "minimum_of_two", "by_samples"}
"""Where one of two values is taken: what is read behind may be that of the other."""

OVERWRITTEN = {"relu_of_a_slice", "written_over_half"}
"""Behind which what was written over still counts."""

UNTOLD = {"geglu", "swiglu", "reglu", "glu", "tanh_times_sigmoid", "gate", "mul"}
"""Where values have no activation of their own: of a value whose gate is shut, that it may be dead is all that is said.
"""


def _states(layer: LayerReport, oracle: Oracle) -> Iterator[Disagreement]:
    truth = oracle.truths[layer.name]
    states = layer.states
    if len(states) != len(truth.kernel_gradient):
        yield Disagreement(
            "channels", layer.name, f"{len(states)} are reported, of which there are {len(truth.kernel_gradient)}"
        )
        return

    def where(*wanted: str) -> list[int]:
        return [channel for channel, state in enumerate(states) if state in wanted]

    def say(kind: str, channels: list[int], what: str) -> Iterator[Disagreement]:
        if channels:
            read = f"read by {layer.evidence}, {layer.activation}" + (f", note: {layer.note}" if layer.note else "")
            yield Disagreement(kind, layer.name, f"channels {channels} {what} ({read}; states {states})")

    def nonzero(values: torch.Tensor | None, channels: list[int]) -> list[int]:
        return [] if values is None else [channel for channel in channels if float(values[channel]) != 0]

    dead = where("dead")
    yield from say("dead with a gradient at the kernel", nonzero(truth.kernel_gradient, dead), "have one")
    # exactly 0 for want of a bias and of inputs, or by its mean, it stays so, if some activations pass a gradient there
    still: list[int] = []
    if truth.low is not None and (
        not truth.has_bias or any(op.name == "minus_batch_mean" for op in oracle.program.ops)
    ):
        still = (truth.constant() & ((truth.low == 0) | truth.has_bias)).nonzero().flatten().tolist()
    yield from say(
        "dead with a gradient at the output",
        nonzero(truth.output_gradient, sorted(set(dead) - set(still))),
        "have one",
    )
    if layer.name not in _left_out_at_times(oracle) | oracle.hidden:
        yield from say("dead though it fires", nonzero(truth.fires, dead), "make some rectifier positive, or meet none")
    if truth.low is not None:
        kept = sorted(set(dead) - set(oracle.may_go(layer.name, dead)))
        yield from say("dead though it matters", kept, "change the output when they are replaced")
    silenced = where("starved", "zero-gradient")
    penalised = any(op.name == "penalty" and op.options["layer"] == layer.name for op in oracle.program.ops)
    counted = any(op.name == "multi_margin" for op in oracle.program.ops)  # of samples, whose sum at a bias may be 0
    if penalised and (counted or layer.name in oracle.turned):  # what else comes back is taken for the penalty's
        silenced = []
    if _every_step(oracle.program):  # the kernels' own gradients are looked at on sampled steps only
        wrong = nonzero(truth.kernel_gradient, silenced)
        yield from say(f"called {_words(states, wrong)} with a gradient", wrong, "have one")
    active = where("active", "frozen")
    if truth.output_gradient is not None and truth.fires is not None and truth.passes is not None:
        mute = [c for c in active if not float(truth.output_gradient[c]) and not float(truth.kernel_gradient[c])]
        mute = sorted(set(mute) - set(_behind_a_shift(layer.name, oracle)))
        yield from say("active without a gradient", mute, "have none at the output nor at the kernel")
        never = [c for c in active if not float(truth.fires[c]) and not float(truth.passes[c])]
        never = [] if layer.name in oracle.turned else sorted(set(never) - set(_behind_a_shift(layer.name, oracle)))
        yield from say("active though it never fired", never, "make no rectifier positive, and pass no activation")
    shut = truth.shut()
    hidden = layer.name in oracle.hidden | oracle.turned
    if shut is not None and not hidden and layer.evidence in ("activation", "sampled activation"):
        without = (shut & (truth.kernel_gradient == 0)).nonzero().flatten().tolist()
        ops = {op.name for op in oracle.program.ops}
        said = {"dead", "unknown", "excluded", *(("zero-gradient",) if ops & UNTOLD else ())}
        shifted = _behind_a_shift(layer.name, oracle)  # at exactly 0 some rectifiers let a shift learn
        missed = [c for c in without if states[c] not in said and not (states[c] == "silent" and c in shifted)]
        missed = [] if ops & (CHOICES | OVERWRITTEN) else missed
        yield from say(f"shut by rectifiers, called {_words(states, missed)}", missed, "never passed any of them")


def _behind_a_shift(layer: str, oracle: Oracle) -> list[int]:
    """Channels that are constant, or cut off by a scale of zero, where the shift of a norm may learn in their place."""
    truth, ops = oracle.truths[layer], oracle.program.ops
    penalised = any(op.name == "penalty" and op.options["layer"] == layer for op in ops)
    ways = {op.options.get("way") for op in ops} | {op.name for op in ops}
    cancelled = any(op.name.startswith("minus_") for op in ops) or bool(ways & WITHOUT_MEAN)  # a bias, by the mean
    shifting = [op for op in ops if op.name.endswith("_norm") and op.name != "rms_norm"]
    held = {layer}
    for op in ops:
        if held.intersection(op.args) and op.name in OPS and OPS[op.name].group == "shape":
            held.add(op.target)
    norms = {op.target for op in shifting if not penalised or held.intersection(op.args)}
    if penalised and (
        layer in oracle.turned or (not norms and (not truth.has_bias or cancelled))
    ):  # nothing tells the gradient of the loss from the penalty's
        return list(range(len(truth.kernel_gradient)))
    if truth.arrives is None or not norms:
        return []
    count = len(truth.kernel_gradient)
    if any(op.name == "group_norm" and op.args == (layer,) and op.options["groups"] == count for op in ops):
        return list(range(count))  # a value that is alone is nothing without its mean
    scaled = {c for op in ops if op.name == "scale_zero" and op.args[0] in norms for c in op.options["channels"]}
    return [*scaled, *map(int, (truth.constant() | (truth.arrives == 0)).nonzero().flatten())]


def _left_out_at_times(oracle: Oracle) -> set[str]:
    """Layers that fire on steps on which nothing reads them: before a branch that is there on some steps only."""
    found = {op.args[1] for op in oracle.program.ops if op.name == "stochastic_depth"}
    for op in reversed(oracle.program.ops):
        if op.target in found or any("inplace" in op.name and name in found for name in op.args):
            found.update(op.args)
    return found


def _words(states: list[str], channels: list[int]) -> str:
    return ", ".join(sorted({states[channel] for channel in channels}))


def _savings(report: Report, oracle: Oracle) -> Iterator[Disagreement]:
    """No more channels are said to be removable than may go."""
    if report.savings is None or not report.savings.channels:
        return
    removable = 0
    for layer in report.layers:
        truth = oracle.truths.get(layer.name)
        if truth is None or truth.low is None or len(layer.states) != len(truth.kernel_gradient):
            removable += layer.channels
            continue
        quiet = (truth.kernel_gradient == 0).nonzero().flatten().tolist()
        removable += len(oracle.may_go(layer.name, quiet))
    if report.savings.channels > removable:
        yield Disagreement("savings", "", f"{report.savings.channels} channels are said to go, {removable} may")


def _revival(program: Program, seen: Outcome, report: Report) -> Iterator[Disagreement]:
    """Dead kernels that are drawn anew leave the losses of the batches of the window as they are."""
    if any(op.name == "halt" for op in program.ops):  # what reads a detached copy is in no graph
        return
    before = _losses(program, seen.net)
    revived = revive(seen.net, report, seen.net.trainer.optimizers).revived
    after = _losses(program, seen.net)
    if revived and not torch.allclose(before, after, rtol=1e-4, atol=1e-6):
        yield Disagreement("revival", ", ".join(revived), f"{dict(revived)}: the losses {before} became {after}")


def _losses(program: Program, net: Network) -> torch.Tensor:
    net.watcher, kept = None, {name: value.clone() for name, value in net.state_dict().items()}
    losses = []
    for number, batch in enumerate(batches(program)):
        net.run_step(batch, number)
        losses.append(net.data_loss.detach().double())  # what a penalty asks of the weights is another matter
    net.load_state_dict(kept)
    return torch.stack(losses)
