"""What one window showed, as plain CPU tensors: the only input of the diagnosis.

These dataclasses are the waist of the package. To their left tensors live on the device and are tied to a running
training; to their right nothing knows of autograd, modules or Lightning, so rules can be tested with values made by
hand. Past 300 lines because it is a list of fields, each with its sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Gating = Literal["rectifier", "leaky", "smooth", "bounded"]
"""How an activation behaves on its off side: exactly zero output and slope (rectifier), a small slope (leaky), a slope
that fades out (smooth), or flat ends on both sides (bounded)."""

Rows = Literal["kernels", "gate", "projection", "table", "codes", "experts"]
"""What the rows of a weight are: kernels; those of one gate of a recurrent layer, or of one projection of attention,
that stand among others in one tensor; entries of a table that is looked up, or of a codebook; whole experts."""
OF_KERNELS: tuple[Rows, ...] = ("kernels", "gate", "projection")
LOOKED_UP: tuple[Rows, ...] = ("table", "codes")


@dataclass(frozen=True)
class InputSlice:
    """Which inputs of a layer are another layer's channels: a run of these, each spread over several inputs where maps
    were flattened."""

    channel: int
    """The first of the run."""
    count: int
    """Channels in it."""
    place: int
    """The first one's place along the axis that holds them, and maybe others'."""
    places: int
    """Of that axis."""
    outer: int = 1
    """Times that the axis is repeated among the inputs, the slowest first."""
    inner: int = 1
    """Inputs of one place that stand together."""

    def inputs(self, channel: int) -> list[int]:
        """Those that are this channel's; none where it is not in the run."""
        if not self.channel <= channel < self.channel + self.count:
            return []
        place = self.place + channel - self.channel
        first = ((turn * self.places + place) * self.inner for turn in range(self.outer))
        return [start + one for start in first for one in range(self.inner)]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads another layer's channels."""

    layer: str
    """Its name."""
    parameters_per_channel: int
    """Weights of the consumer that multiply one channel of the producer: what it would save if that went."""
    slices: tuple[InputSlice, ...] | None = None
    """At which of its inputs it reads them, of all its uses; None where that differs from use to use."""

    def inputs(self, channel: int) -> list[int]:
        """At which of its inputs it reads a channel."""
        return [one for part in self.slices or () for one in part.inputs(channel)]


@dataclass(frozen=True)
class Entering:
    """The size of data that enters a layer from outside the network, over one batch."""

    offset: float
    """rms over its features of their mean."""
    spread: float
    """rms over its features of their standard deviation, over samples and positions."""

    @property
    def rms(self) -> float:
        """Of all its values."""
        return math.hypot(self.offset, self.spread)


@dataclass(frozen=True)
class Prospect:
    """What becomes of channels that did not fire and have no gradient, if the optimizer goes on as it is."""

    channels: tuple[int, ...]
    moves: bool
    """Weight decay moves them: their kernels, or the scale and the shift behind these."""
    coasts: bool
    """What the optimizer remembers of gradients from before still changes their kernels."""
    fades_in: int | None
    """Steps until decay has taken the last of their kernels below `Thresholds.zero_kernel` of the largest; None: it
    never does, or that is not known."""
    returning: tuple[int, ...] | None
    """Those that decay may open for inputs that are shut out now; None: not known."""
    earliest: int | None
    """Steps before which it opens none of these, whatever the input; None: not known."""


ENOUGH_STEPS = 8
"""Sampled steps from which on a share of steps is one: a window has as many, spread over it, where it has the steps."""
HEALTHY_UPDATE_RATIO = 1e-3
"""||dW|| / ||W|| of a step, CS231n, https://cs231n.github.io/neural-networks-3/#ratio."""


@dataclass(frozen=True)
class Statistic:
    """One number per layer and window, and what tables, scalars, pages and pictures have to know of it."""

    name: str
    title: str
    form: Literal["number", "share"]
    bad: Literal["high", "low"] | float
    """Which end is bad; a number is the healthy value, from which to stray in either direction is bad."""
    needs_activation: bool
    """Whether a layer without a readable activation has none."""
    logged: bool
    """Whether it is a scalar of its own in loggers."""
    shown: Literal["brief", "full", "never"]
    """In which tables: also where there is little room, in the report, or in its JSON alone."""

    def badness(self, value: float) -> float:
        """Larger is worse; ranks layers."""
        if self.bad == "high":
            return value
        if self.bad == "low":
            return -value
        return abs(math.log10(value / float(self.bad))) if value > 0 else math.inf


def statistic(
    title: str,
    form: Literal["number", "share"],
    bad: Literal["high", "low"] | float = "high",
    *,
    needs_activation: bool = False,
    logged: bool = True,
    shown: Literal["brief", "full", "never"] = "full",
) -> Any:
    """A field of `LayerStatistics` that everything which shows statistics finds by itself; None: not observed."""
    described = {"title": title, "form": form, "bad": bad, "needs_activation": needs_activation}
    return field(default=None, metadata={**described, "logged": logged, "shown": shown})


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What is known of one layer in one window, in numbers that a report keeps as they are."""

    name: str
    """Qualified name of the module, e.g. ``"features.0"``."""
    kind: str
    """Class name of the module, e.g. ``"Conv2d"``; the weight's shape where a file is all that is known."""
    channels: int
    """Number of kernels."""
    depth: int = 0
    """Kernel ops on the longest path from this layer to the loss; 0 for the layer next to the loss."""
    activation: str | None = None
    """``"relu"``, ... ; None where none follows; ``"attention"`` where that reads the channels; ``"mixed"`` where the
    next activation is one of several channels together; ``"unknown"`` where it cannot be read."""
    gating: Gating | None = None
    """None where no activation is readable on every path to the loss."""
    rows: Rows = "kernels"
    """What its channels are."""
    heads: int | None = None
    """Heads whose channels stand one head after another, each as many; None where these are no queries, keys or values
    of `torch.nn.MultiheadAttention`."""
    excluded: str | None = None
    """Why the layer is not watched; None where it is."""
    note: str | None = None
    """Why the evidence is less than usual, in words for the report."""
    firing_rate: float | None = statistic("fires", "share", "low", needs_activation=True, shown="brief")
    """Mean over the channels of the share of samples and positions with a positive activation."""
    gradient_ratio: float | None = statistic("gradient ratio", "number", "low", shown="brief")
    """R_l = rms(grad_l) / max_w rms(grad_w) over all weights w, median over the window's sampled steps."""
    update_ratio: float | None = statistic("update ratio", "number", HEALTHY_UPDATE_RATIO, shown="brief")
    """||dW|| / ||W|| of an optimizer step, median over the window's sampled steps that measured this layer."""
    update_ratio_max: float | None = statistic("largest update ratio", "number", logged=False, shown="never")
    """The largest of these."""
    lost_updates: float | None = statistic("lost updates", "share", logged=False)
    """Share of the weights with a gradient, other than exact zeros, that an optimizer step left bitwise unchanged, over
    the window's sampled steps; of a weight with more than 16,384 entries, of so many of them."""
    weight_sparsity: float | None = statistic("zero weights", "share")
    """Share of exact zeros among the weights."""
    weight_near_zeros: float | None = statistic("near-zero weights", "share", logged=False)
    """Share of near zeros, \\|w\\| < 1e-2 rms, among the weights; a Gaussian has 0.0080."""
    gini: float | None = statistic("Gini index", "number", logged=False, shown="never")
    """Gini index of \\|w\\|; a Gaussian has 0.414."""
    hoyer: float | None = statistic("Hoyer sparsity", "number", logged=False, shown="never")
    """Hoyer's sparsity of the weights; a Gaussian has 0.202."""
    activation_sparsity: float | None = statistic("zero activations", "share", needs_activation=True)
    """Share of exact zeros in the activation, over the sampled steps."""
    parameters: int = 0
    """Weights and bias of the layer, and scale and shift of its norm."""

    def statistics(self) -> dict[str, Any]:
        """Name -> value of all that any record of a layer has."""
        return {shared.name: getattr(self, shared.name) for shared in fields(LayerStatistics)}


STATISTICS: tuple[Statistic, ...] = tuple(
    Statistic(shared.name, **shared.metadata) for shared in fields(LayerStatistics) if shared.metadata
)
"""Every per-layer statistic, in the order of columns."""


@dataclass(frozen=True)
class AdamState:
    """What the optimizer of a weight knows of its gradients, where it is Adam or of its kin."""

    steady: float
    """rms(dW) / lr of a step while gradients keep their size, see `functional.adam`."""
    beta1: float
    beta2: float
    epsilon: float
    below_epsilon: float | None = None
    """Share of the weights that have had a gradient whose running size is at most epsilon; None where none had one."""


@dataclass(frozen=True, kw_only=True)
class LayerWindow(LayerStatistics):
    """One layer in one window. Tensors are on the CPU; `(C,)` is one value per channel; None: not observed."""

    samples_before: int = 0
    """Samples of the window that it was not watched on, as it came in the middle of it."""

    # -- by activation -------------------------------------------------------------------------------------------
    other_gatings: dict[Gating | None, Tensor] = field(default_factory=dict)
    """Kind -> (C,) bool: the channels whose activations are of another kind than `gating`, the weakest of the layer's;
    None: those with no readable activation on some path."""
    off_gradient: str | None = None
    """Why a kernel that never fires may have a gradient all the same, in words; None where it cannot."""
    shared_statistics: bool = False
    """A norm takes the kernels into the values of other channels, past the activation of their own."""
    joined: Literal["summed", "stacked", "compared"] | None = None
    """Something else is added to what it makes, or stands beside it, before the activation: what is read is both. Or
    one of the two is taken, such as the larger: what is read is that one."""
    together: tuple[str, ...] = ()
    """The layers that this is, so far as they are known; channel by channel the same places."""
    exact: bool = True
    """Activations were read on every batch until each channel had fired; False: on sampled steps only."""
    fired: Tensor | None = None
    """(C,) bool: some sample and position of the window had a strictly positive activation."""
    certified_dead: Tensor | None = None
    """(C,) bool: no input at all can make it fire, with the weights at the window's end; False: not known. None: not
    asked."""
    certified_batch: int | None = None
    """Values of a channel that a norm may take together for which that holds; None: any number."""
    prospect: Prospect | None = None
    """What becomes of the channels that did not fire; None where that is not known."""
    channel_firing_rate: Tensor | None = None
    """(C,) share of samples and positions with a positive activation, over the sampled steps."""
    sample_rate: Tensor | None = None
    """(C,) share of samples on some position of which the activation is positive, over the sampled steps; None where
    samples cannot be told from positions, or the channels have several activations."""
    rated_samples: int | None = None
    """Samples that this rests on."""
    passed_samples: int | None = None
    """Samples that passed through the layer while some channel had not fired: each forward pass counts, whatever the
    loader's rows are. None where samples cannot be told from positions."""
    passed_positions: int | None = None
    """The same in positions (entries of one channel); None where none was read."""
    activation_mean: Tensor | None = None
    """(C,) mean of \\|h\\| over the sampled steps."""
    flat_output: float = 0.0
    """\\|h\\| that the activation tends to far out on its off side."""
    saturated_share: Tensor | None = None
    """(C,) share of inputs on a flat end (beyond +-5 for sigmoid and tanh, at a bound otherwise), sampled steps."""

    # -- by gradient ---------------------------------------------------------------------------------------------
    gradient: Tensor | None = None
    """(C,) largest \\|gradient\\| seen in the window at the source below; None if no gradient was ever looked at."""
    weight_gradient: Tensor | None = None
    """(C,) largest \\|gradient\\| of the kernel itself on the sampled steps."""
    penalty_seen: bool = False
    """What is known of its gradient may be that of a penalty in the loss."""
    penalised: bool = False
    """The weight also reaches the loss without passing its own op (an L2 term in the loss)."""
    gradient_rms: float | None = None
    """Median over the sampled steps of the rms of the weight's gradient, unscaled and unclipped."""
    gradient_steps: int | None = None
    """Sampled steps on which R_l was known; None: all of the window's."""
    weak_share: float = 0.0
    """Share of these steps, or of their last third if that is less, with 0 < R_l below `Thresholds.weak_gradient`."""
    vanishing_share: float = 0.0
    """The same below `Thresholds.vanishing_gradient`."""
    non_finite_gradients: int = 0
    """Channels that had a NaN or infinite gradient on some step; 0 under a gradient scaler, which skips such steps."""
    underflow_share: float | None = None
    """Share of exact zeros among the weight's gradient entries on sampled fp16 steps; None for other dtypes."""

    # -- by weight -----------------------------------------------------------------------------------------------
    bytes_per_parameter: int = 4
    norms: Tensor | None = None
    """(C,) L2 norm of each kernel at the window's end."""
    largest: Tensor | None = None
    """(C,) max \\|w\\| of each kernel at the window's end."""
    norm_scale: Tensor | None = None
    """(C,) \\|gamma\\| of the norm that follows; None without one."""
    shift: Tensor | None = None
    """(C,) beta of the norm that follows, else the bias; None without either."""
    identical: bool = False
    """All kernels of the layer are bitwise equal (and there are at least two)."""
    masked: Tensor | None = None
    """(C,) bool: a pruning mask holds the whole kernel at zero; None without a mask."""
    unchanged: Tensor | None = None
    """(C,) bool: not one bit of the kernel changed over the window's optimizer steps; None if there were none."""
    in_optimizer: bool = True
    learning_rate: float | None = None
    """Largest learning rate of the weight's parameter group on the window's sampled steps; None if unknown."""
    first_learning_rate: float | None = None
    """The same on the first of them."""
    weight_decay: float = 0.0
    decoupled_decay: bool | None = False
    """The optimizer applies decay apart from the gradient (AdamW) and not through it (Adam's L2); None: not known."""
    optimizer: str | None = None
    """Class name of the optimizer that holds the weight, e.g. ``"AdamW"``; None if unknown."""
    momentum: float = 0.0
    """SGD's momentum; 0 under any other optimizer."""
    step_over_rate: float | None = None
    """rms(dW) / lr of an optimizer step, less what decoupled decay can have added; median over the steps of
    `update_ratio`."""
    step_over_rate_max: float | None = None
    """The largest of these."""
    adam: AdamState | None = None
    """None under an optimizer that does not divide by the size of the gradient as Adam does."""
    groups: int = 1
    """Of a grouped convolution; equal to the channels where each kernel reads a channel of its own (depthwise)."""
    input_largest: Tensor | None = None
    """(I,) max \\|w\\| over all kernels of the weights that read input i."""

    # -- by graph ------------------------------------------------------------------------------------------------
    producers: tuple[str, ...] | None = None
    """Layers whose activations are this layer's only inputs; None where anything else (images, embeddings) enters."""
    entering: Entering | None = None
    """Of data that is the layer's only input, on the window's first sampled step; None where anything else enters."""
    consumers: tuple[Consumer, ...] | None = None
    """Layers that read this layer's channels; None where the graph does not show them all."""
    used_elsewhere: bool = False
    """The graph reads its weight, its bias or the norm behind it past their own ops, too."""
    passes_zero: bool = False
    """Of a channel whose activation is off everywhere, all that reads it gets exactly 0, and the loss does not."""
    stays_zero: bool = False
    """The same of a channel whose kernel is 0, and what its bias or norm adds."""
    norm: str | None = None
    """Module of the norm that follows, where its scale and shift are each channel's own; None without one."""
    plain_ahead: int = 0
    """Later layers that no norm follows, on the path to the loss that has the fewest of them."""
    bounded_ahead: int = 0
    """Activations with flat ends, its own included, on the path to the loss that has the fewest of them."""
    missed: Literal["cut off", "no input", "unreadable"] | None = None
    """Why a layer that is trained, or meant to be, is not watched: the loss does not depend on it, or its weight cannot
    be read. None where it is watched, or left out on purpose."""

    @cached_property
    def gradient_seen(self) -> tuple[Tensor, Tensor]:
        """Which channels surely had a gradient in the window, and which surely had none: two (C,) bool tensors, not to
        be written to.

        Both are False for a channel whose gradient is NaN or was never looked at. Both sources must be exactly zero for
        "none": a shift may listen where the kernel does not, and the other way round.
        """
        if self.gradient is None:
            nothing = torch.zeros(self.channels, dtype=torch.bool)
            return nothing, nothing
        some, none = self.gradient > 0, self.gradient == 0
        if self.weight_gradient is not None:
            some, none = some | (self.weight_gradient > 0), none & (self.weight_gradient == 0)
        return some, none


@dataclass(frozen=True)
class NonFinite:
    """Where values were NaN or infinite first."""

    step: int
    """Optimizer steps taken when that step had ended."""
    layer: str
    """In which layer it began, as far as is known."""
    place: Literal["data", "activation", "loss", "unread loss", "backward", "unknown"]
    """Where: what it is given, which no layer in the graph has made; its activation, the first in forward order that
    was not finite; what follows it, the last whose activation is readable, as all these were finite and the loss was
    not; the loss of a step on which no activation was read; in the backward pass behind it, as what lies nearer to the
    loss had finite gradients; unknown, as gradients of all layers were not finite, and no activation was read on that
    step."""
    largest_update: float = 0.0
    """Largest ||dW|| / ||W|| of the steps before it that were looked at, in its window."""


@dataclass
class Window:
    """One window of the whole network."""

    index: int
    """0 is the state at initialisation; windows count from 1."""
    epoch: int
    global_step: int
    batches: int
    optimizer_steps: int
    sampled_steps: int
    samples: int | None
    """Over all ranks; None where a batch's size cannot be told."""
    layers: list[LayerWindow] = field(default_factory=list)
    """In forward order; excluded layers last."""
    skipped_steps: int = 0
    """Sampled optimizer steps skipped by AMP for overflow."""
    gradient_norm: float | None = None
    """Median over the sampled steps of the L2 norm of all gradients, unscaled and unclipped."""
    gradient_clip: float | None = None
    """Norm to which the Trainer scales down the gradients of a step where theirs is larger; None: it does not."""
    compiled: bool = False
    audited: bool = False
    """The weights in a file: nothing was run, and nothing is known of how they came to be."""
    notes: tuple[str, ...] = ()
    """What could not be watched and why, in words for the report."""
    largest_gradient_at: str | None = None
    """Weight that had the largest rms(grad) on the last sampled step."""
    non_finite_batches: int = 0
    """Batches some gradient of which was NaN or infinite: nothing is concluded from them."""
    first_non_finite: NonFinite | None = None
    """None where all was finite; under a gradient scaler, which skips steps whose gradients overflow, it is about the
    forward pass alone."""
    lost_elsewhere: dict[str, float] = field(default_factory=dict)
    """Parameter with one axis (gains and shifts of norms, biases) held in two bytes -> share of its entries with a
    gradient, other than exact zeros, that an optimizer step left bitwise unchanged, over the sampled steps."""
    strangers: int = 0
    """Weights of two or more axes that reach the loss and belong to no module of the model (a layer in a plain list, a
    tensor that an optimizer was given)."""


@dataclass(frozen=True)
class FeatureMaps:
    """What a layer made of one training sample on a window's last step."""

    maps: Tensor
    """(1, C, *) float32 activations; (N, C) of several samples where there are no positions."""
    image: Tensor | None = None
    """(I, H, W) the same sample as the network's first convolution saw it; None where that is not known."""


@dataclass(frozen=True)
class WindowTensors:
    """What pictures and histograms need of the latest window. Never saved; only the latest live report has it."""

    histograms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """statistic (``"weights"``, ``"gradients"``, ``"firing_rate"``, ``"kernel_norms"``) -> layer -> (1024,) int64
    counts in half-octave float-bit bins, see `functional.histograms.histogram_edges`."""
    first_layer: str | None = None
    first_kernels: Tensor | None = None
    """(C, I, H, W) float32 weights of the first convolution with two spatial axes."""
    feature_maps: dict[str, FeatureMaps] = field(default_factory=dict)
    """Layer -> one sample's, of the first layer and of those with kernels that had not fired."""
