"""What the rules of vanishing and weak gradients share: who is concerned, and why."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import accumulate

from lightning_deadkernel.diagnosis import causes, references
from lightning_deadkernel.diagnosis.causes import Cause, Evidence
from lightning_deadkernel.diagnosis.context import LayerContext, WindowContext
from lightning_deadkernel.diagnosis.gradient_causes import underflow
from lightning_deadkernel.diagnosis.inputs import from_small_inputs
from lightning_deadkernel.diagnosis.layer_past import PLAIN, step_of_decay
from lightning_deadkernel.diagnosis.rule import Found
from lightning_deadkernel.diagnosis.weight_causes import KERNEL, against_decay, has_worn_away
from lightning_deadkernel.report.records import Severity

SMALL_SCALE = 0.1
"""Scales of norms are initialised to one; a branch whose scale is below a tenth is all but shut."""
PLAIN_RECURRENCES = ("RNN", "RNNCell")
DEEP = 3
"""Layers or activations in a row that may each take their part of a gradient: 0.1 each leaves a thousandth."""
SHRUNK = 0.1
"""What fewer layers must leave of a gradient by the norms of their kernels alone, for depth to be the cause."""
BEHIND = 0.01
"""A layer's step is behind where it is below this share of the network's largest, ||dW|| / ||W|| both: where all are
small alike the learning rate is, and not the gradient."""
KEEPS_SIZE = 2**0.5
"""Norm of a kernel that keeps the size of what passes a rectifier (He et al. 2015)."""
HEALTHY_STEP = 1e-5
"""||dW|| / ||W|| of a step from which on a layer learns well enough, whatever its gradient: a hundredth of the healthy
landmark, ten times the line of slow."""

CAUSES = (
    causes.ZERO_AT_INITIALISATION,
    causes.UNDERFLOW,
    causes.OFF_SCALE_INPUTS,
    causes.SATURATED_DOWNSTREAM,
    causes.IGNORED_BY_LOSS,
    causes.NO_GRADIENT_DOWNSTREAM,
    causes.SATURATED,
    causes.DECAYED,
    causes.DEPTH,
    causes.UNKNOWN,
)


WEAK, VANISHING = 0, 1


def is_vanishing(layer: LayerContext) -> bool:
    """Whether the layer's gradient vanished on enough of the last sampled steps."""
    return layer.small_gradient_shares[VANISHING] >= layer.thresholds.share_of_steps


def is_weak(layer: LayerContext) -> bool:
    """Whether the layer's gradient was weak on enough of the last sampled steps, and not vanishing."""
    return layer.small_gradient_shares[WEAK] >= layer.thresholds.share_of_steps and not is_vanishing(layer)


def is_scale_growing(layer: LayerContext) -> bool:
    """Whether the gradient passes a norm whose scale is small and moves: what holds it back is on its way out."""
    scale = layer.observed.norm_scale
    return (
        scale is not None
        and scale.numel() > 0
        and float(scale.median()) < SMALL_SCALE
        and bool(layer.past.scale_moved.any())
    )


def is_normalised(layer: LayerContext) -> bool:
    """Whether its optimizer divides by the size of the gradient (Adam and its kin), so that a small one makes no small
    step."""
    return layer.observed.optimizer is not None and layer.observed.optimizer not in PLAIN


def _step(layer: LayerContext) -> float | None:
    """||dW|| / ||W|| of a step but for what decay makes of it; None where none was measured."""
    observed = layer.observed
    ratio, decay = observed.update_ratio, observed.weight_decay
    if ratio is None or not decay:
        return ratio
    if observed.decoupled_decay or not is_normalised(layer):
        return max(0.0, ratio - step_of_decay(observed))
    if observed.norms is None:
        return ratio
    # through the gradient of an optimizer that normalises, decay makes the whole step where it is more than the rest
    weights = float(observed.norms.square().sum() / max(1, observed.parameters)) ** 0.5
    return ratio if (observed.gradient_rms or 0.0) > decay * weights else 0.0


def explained(
    context: WindowContext, layers: Sequence[LayerContext], share: int, margin: float, harmful: Severity
) -> Iterator[Found]:
    """What there is to say of the layers whose gradient is small.

    Args:
        context: the network's.
        layers: those concerned.
        share: `WEAK` or `VANISHING`.
        margin: where no step was measured, a gradient of this times the line of weak and more is worth knowing, and no
            more.
        harmful: the severity where it keeps a layer from learning.
    """
    if not layers:
        return
    explain, largest_at = Explainer(context), context.window.largest_gradient_at
    for layer in layers:
        ratio = layer.observed.gradient_ratio or 0.0
        harm = explain.does_harm(layer, ratio < margin * layer.thresholds.weak_gradient)
        evidence: Evidence = {
            "gradient_ratio": ratio,
            "depth": layer.observed.depth,
            "share_of_steps": layer.small_gradient_shares[share],
            **({} if largest_at is None else {"largest_gradient_at": largest_at}),
        }
        yield Found(layer, harmful if harm else "info", explain.cause(layer), evidence)


class Nearer:
    """A number of each layer, those next to the loss first: how many layers, and their sum, up to any depth."""

    def __init__(self, numbers: Iterable[tuple[LayerContext, float]]) -> None:
        pairs = [(layer.observed.depth, number) for layer, number in numbers]
        self._depths = [depth for depth, _ in pairs]
        self._sums = list(accumulate((number for _, number in pairs), initial=0.0))

    def until(self, depth: int) -> tuple[int, float]:
        """Of the layers that are no farther from the loss."""
        count = bisect_right(self._depths, depth)
        return count, self._sums[count]


class Explainer:
    """Tells why a gradient is small. What is asked of the whole network is worked out once."""

    def __init__(self, context: WindowContext) -> None:
        layers = sorted(context.layers, key=lambda layer: layer.observed.depth)
        self._flat = Nearer((layer, _is_mostly_flat(layer)) for layer in layers if layer.observed.gating == "bounded")
        self._norms = Nearer(
            (layer, float(layer.observed.norms.mean()))
            for layer in layers
            if layer.observed.norms is not None and layer.observed.depth > 0
        )
        self.blocking = _passed(layers, {layer.name for layer in layers if _is_wholly_flat(layer)})
        """Layer -> wholly saturated layers of which every path from it to the loss passes one."""
        outputs = [layer for layer in layers if layer.is_output]
        loudest = max(map(_from_the_loss, outputs), default=0.0)
        line = context.thresholds.weak_gradient
        self.faint = {layer.name for layer in outputs if _from_the_loss(layer) < line * loudest}
        """Outputs to which the loss sends next to nothing beside what it sends to another."""
        self.behind_faint = _passed(layers, self.faint)
        """Layer -> such outputs of which every path from it to the loss passes one."""
        worn = {layer.name: layer for layer in layers if bool(has_worn_away(layer).all())}
        self.worn = {name: [worn[one] for one in passed] for name, passed in _passed(layers, set(worn)).items()}
        """Layer -> layers that decay has worn away of which every path from it to the loss passes one."""
        self._largest_step = max((_step(layer) or 0.0 for layer in layers), default=0.0)

    def does_harm(self, layer: LayerContext, clear: bool) -> bool:
        """Whether the small gradient keeps the layer from learning: its steps are small, and behind those of others.

        Steps alone prove nothing: what weight decay makes of them is not counted.

        Args:
            layer: whose gradient is small.
            clear: what to say where no step was measured, under an optimizer whose steps are as large as its gradients.
        """
        if is_scale_growing(layer):
            return False
        step = _step(layer)
        if step is None:
            return clear and not is_normalised(layer)
        return step < HEALTHY_STEP and step <= BEHIND * self._largest_step

    def cause(self, layer: LayerContext) -> Cause:
        """The first cause whose premise holds."""
        observed = layer.observed
        ratio, plain, bounded = observed.gradient_ratio or 0.0, observed.plain_ahead, observed.bounded_ahead
        text = f"its gradient is {ratio:.1e} of the network's largest"
        if is_scale_growing(layer):
            assert observed.norm_scale is not None
            scale = float(observed.norm_scale.median())
            return causes.ZERO_AT_INITIALISATION.because(
                f"{text}, as it passes a norm whose scale (gamma) has a median of {scale:.1e} and moves",
                "Nothing to fix where the scale was set to zero on purpose (residual branches): the gradient grows with"
                " it.",
                references.WARMUP,
                {"scale": scale},
            )
        cause = underflow(observed, above=f"{text}, and ")
        if cause is not None:
            return cause
        cause = from_small_inputs(layer, f"{text}: ", ratio, layer.thresholds.weak_gradient)
        if cause is not None:
            return cause
        if _is_wholly_flat(layer):
            return causes.SATURATED.because(
                f"{text}: most inputs of each of its channels lie on the flat end of {observed.activation}",
                f"Put a norm before the activation, scale the initial weights down (Xavier initialisation) or lower"
                f" {layer.rate}.",
                references.GLOROT,
            )
        if self.blocking[layer.name]:
            names = ", ".join(sorted(self.blocking[layer.name]))
            return causes.SATURATED_DOWNSTREAM.because(
                f"{text}: every path from it to the loss passes {names}, all of whose channels lie on a flat end",
                f"Bring {names} off its flat end first; this layer is sound.",
                references.GLOROT,
                {"consumers": names},
            )
        if layer.name in self.faint:
            return causes.IGNORED_BY_LOSS.because(
                f"{text}: only the loss reads this layer, and sends back next to nothing of what it sends to another"
                " output: its part of the loss has a weight of next to zero, or is of another scale",
                f"Check the term of the loss that {layer.name} enters: raise its weight, or bring its targets to about"
                " unit size.",
                references.AUTOGRAD_DOCS,
            )
        if self.behind_faint[layer.name]:
            names = ", ".join(sorted(self.behind_faint[layer.name]))
            return causes.NO_GRADIENT_DOWNSTREAM.because(
                f"{text}: every path from it to the loss passes {names}, to which the loss sends next to nothing",
                f"Look at the part of the loss that {names} enters first; this layer is sound.",
                references.AUTOGRAD_DOCS,
                {"consumers": names},
            )
        if bounded >= DEEP:
            nearer, flat = self._flat.until(observed.depth)
            if 2 * flat > nearer:
                return causes.SATURATED.because(
                    f"{text}: {bounded} sigmoid or tanh activations lie on every path from it to the loss, and"
                    f" {flat:.0f} of the {nearer} such layers that are no farther from it have most of their inputs on"
                    " a flat end",
                    "Put a norm before each activation, scale the initial weights down (Xavier initialisation), or use"
                    " ReLU or GELU in hidden layers.",
                    references.GLOROT,
                    {"bounded_layers": bounded},
                )
            return causes.DEPTH.because(
                f"{text}: {bounded} sigmoid or tanh activations lie on every path from it to the loss, and each"
                " multiplies by its slope (at most 0.25 for sigmoid)",
                _advice(
                    layer,
                    "Use fewer recurrent layers, or a LayerNorm or skips between them."
                    if observed.rows == "gate"
                    else "Use ReLU or GELU in hidden layers, put a norm before each activation, or add skips.",
                ),
                references.GLOROT,
                {"bounded_layers": bounded},
            )
        if self.worn[layer.name]:
            names = ", ".join(sorted(one.name for one in self.worn[layer.name]))
            one = self.worn[layer.name][0]
            now, first = float(one.observed.norms.mean()), float(one.past.first_norm.mean())  # type: ignore[union-attr]
            return causes.DECAYED.because(
                f"{text}: every path from it to the loss passes {names}, whose kernels weight decay"
                f" {one.observed.weight_decay:g} has worn down (of {one.name} a mean norm of {first:.2g} at the start,"
                f" {now:.2g} now)",
                f"{against_decay(one, KERNEL)}.",
                references.ADAMW,
                {"first_norm": first, "norm": now},
            )
        norm = self._norm_nearer(layer)
        if plain >= DEEP or (norm / KEEPS_SIZE) ** plain < SHRUNK:
            small = f"; kernels there have a norm of {norm:.2g}, where {KEEPS_SIZE:.2g} keeps the size under ReLU"
            return causes.DEPTH.because(
                f"{text}: on every path to the loss it passes {plain} layer{'s' * (plain != 1)} that no norm follows"
                f" and no skip bypasses{small * (norm < KEEPS_SIZE)}",
                _advice(
                    layer,
                    "Use He initialisation (kaiming_normal_ with nonlinearity='relu'; torch's default is smaller), put"
                    " a norm after each layer, or add skips.",
                ),
                references.HE,
                {"layers_without_norm": plain},
            )
        gated = observed.rows == "gate"
        if gated or observed.kind in PLAIN_RECURRENCES:  # whose shortest path is that of the last step
            return causes.UNKNOWN.because(
                f"{text}; what it reads at early steps of a sequence is heard through an activation and the recurrent"
                " weights once for each later step, and the product of these fades",
                _advice(
                    layer,
                    "See whether sequences end in steps without content (padding, zeros): read the last true step of"
                    " each, or the mean of all. Else shorten them, or start the recurrent weights orthogonal"
                    + (", or use an LSTM or a GRU." if not gated else "."),
                ),
                references.GLOROT,
            )
        return causes.UNKNOWN.because(
            f"{text}; ruled out: a chain of sigmoid or tanh activations ({bounded} on the shortest path to the loss), a"
            f" saturated layer on every path, a chain of layers without norm or skip ({plain} of them)",
            _advice(
                layer,
                "Compare the rms of the weights and activations of this layer with its neighbours', and look for a"
                " small factor on the way to the loss (a LayerScale, a branch's weight): one of them may be off scale.",
            ),
            references.GLOROT,
        )

    def _norm_nearer(self, layer: LayerContext) -> float:
        """Mean norm of the kernels between the layer and the output; that which keeps the size of gradients without
        any."""
        count, norms = self._norms.until(layer.observed.depth - 1)
        return norms / count if count else KEEPS_SIZE


def _advice(layer: LayerContext, first: str) -> str:
    """What to do, and what else helps under the user's own optimizer."""
    if is_normalised(layer) or layer.observed.optimizer is None:
        return first
    return f"{first} AdamW in place of {layer.observed.optimizer} makes up for small gradients."


def _passed(layers: Sequence[LayerContext], some: Set[str]) -> dict[str, frozenset[str]]:
    """Layer -> those of `some` of which every path from it to the loss passes one; empty where a path passes none.

    Args:
        layers: of the network, those next to the loss first.
        some: names of layers.
    """
    if not some:  # as almost always, and a layer of a residual network may have all later ones as consumers
        return dict.fromkeys((layer.name for layer in layers), frozenset())
    passed: dict[str, frozenset[str]] = {}
    for layer in layers:
        read_by = [consumer.layer for consumer in layer.observed.consumers or ()]
        behind = [frozenset({name}) if name in some else passed.get(name, frozenset()) for name in read_by]
        passed[layer.name] = frozenset().union(*behind) if all(behind) else frozenset()
    return passed


def _from_the_loss(layer: LayerContext) -> float:
    """The largest gradient at an output's shift, which the size of its inputs does not change; 0 if none was seen."""
    gradient = layer.observed.gradient
    return 0.0 if gradient is None or not gradient.numel() else float(gradient.nan_to_num(0.0).max())


def _is_mostly_flat(layer: LayerContext) -> bool:
    share = layer.observed.saturated_share
    return share is not None and share.numel() > 0 and float(share.mean()) > layer.thresholds.saturated_share


def _is_wholly_flat(layer: LayerContext) -> bool:
    if layer.wholly("saturated"):
        return True
    share = layer.observed.saturated_share
    return share is not None and share.numel() > 0 and bool((share > layer.thresholds.saturated_share).all())
