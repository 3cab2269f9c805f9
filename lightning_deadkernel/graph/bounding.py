"""Reads from a graph where the input of a rectifier lies for every input of the network: see `bounds`.

What is in no table has no bound. Past 300 lines because each kind of op is a short case of one recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from lightning_deadkernel.functional.certificates import Precision
from lightning_deadkernel.functional.firing import ChannelAxis
from lightning_deadkernel.graph.bounds import (
    Affine,
    Anywhere,
    Bound,
    Change,
    Changed,
    Gate,
    Held,
    Normalised,
    TableRows,
    affine,
    at_least,
    averaged,
    clipped,
    here,
    multiplied,
    rounded,
    vector,
)
from lightning_deadkernel.graph.channel_axis import Step, output_shape, unwrapped
from lightning_deadkernel.graph.kernel_ops import KernelOps
from lightning_deadkernel.graph.ops import CONVOLUTIONS, MATMULS, NORMS, SPLITS, VIEWS, peek
from lightning_deadkernel.graph.parts import Part, follow
from lightning_deadkernel.graph.paths import ActivationRead
from lightning_deadkernel.graph.topology import Value

COPIES = frozenset("ToCopy Clone Alias".split())
PLAIN = VIEWS | COPIES | frozenset("T Transpose Permute".split())
"""Ops that show a value in another form."""
WHOLE_POSITIONS = PLAIN | SPLITS | frozenset("Expand Slice Narrow Repeat Flip Roll IndexSelect".split())
"""Ops that move or take positions, each with all of its features."""
OF_EACH_CHANNEL = frozenset(
    "MaxPool1D MaxPool1DWithIndices MaxPool2D MaxPool2DWithIndices MaxPool3D MaxPool3DWithIndices MkldnnMaxPool2D "
    "MkldnnMaxPool3D AdaptiveMaxPool1D AdaptiveMaxPool2D AdaptiveMaxPool3D Amax UpsampleNearest1D UpsampleNearest2D "
    "UpsampleNearest3D ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D "
    "ReplicationPad3D".split()
)
"""Ops that take entries, of each channel its own."""
AVERAGES = frozenset(
    "AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D "
    "Mean".split()
)
DROPOUTS = frozenset("NativeDropout FusedDropout".split())
RANGES = {
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "SafeSoftmax": (0.0, 1.0),
    "Softplus": (0.0, inf),
    "Exp": (0.0, inf),
    "Abs": (0.0, inf),
    "LogSigmoid": (-inf, 0.0),
    "LogSoftmax": (-inf, 0.0),
}
"""Where all values of a function lie."""
LOWEST = {"Gelu": -0.1701, "Silu": -0.2785, "Mish": -0.3089, "Hardswish": -0.3751}
"""The least value of functions that are never above the larger of 0 and their argument."""
CLIPS = {"Relu": (), "Hardtanh": ("min_val", "max_val"), "Clamp": ("min", "max"), "ClampMin": ("min",)}
"""Functions that clip, and the names of their limits; ReLU has the one that all know."""
GATES = frozenset("Relu Threshold Hardtanh Clamp ClampMin Maximum LeakyRelu".split())
"""Activations that may be off at 0 and below."""
SMALLEST_EPS = 1e-30
"""Beside which squares that are no normal numbers of float32 count for nothing."""
FAR = 64
"""Nodes that are looked through, one behind the other."""
UNTOLD: Any = object()
"""There may be a parameter, and which cannot be told."""


class Bounding:
    """What is known of the values of one graph."""

    def __init__(self, kernels: KernelOps) -> None:
        self.kernels, self.graph = kernels, kernels.graph
        self.constants: dict[int, tuple[float, float]] = {}
        """Nodes on whose constants a bound rests -> `constant` of them."""
        self._known: dict[tuple[Value, bool], Held] = {}

    def gates(self, reads: Sequence[ActivationRead]) -> tuple[list[Gate], int]:
        """What is known of the inputs of activations that a layer reaches, and the channels, a bit mask, of whose
        inputs on some path nothing is."""
        gates, untold = list[Gate](), 0
        for read in reads:
            try:
                found = self._gates(read)
            except Exception:  # what surprises here costs certificates alone
                found = []
            told = {channel for gate in found for channel in gate.rows}
            gates += found
            untold |= sum(1 << channel for channel in read.part.channels if channel not in told)
        return gates, untold

    def _gates(self, read: ActivationRead) -> list[Gate]:
        values = [value for value in self.graph.inputs[read.node] if value is not None]
        activation = read.reader(self.graph.nodes[read.node])
        opens_above_zero = activation is not None and activation.rectifies and self.graph.names[read.node] in GATES
        if not opens_above_zero or len(values) != 1 or read.part.slab is not None:
            return []
        found = []
        for bound, part in self._of(values[0], inside=False).pieces:
            if part.digits == read.part.digits:
                rows = dict(zip(part.places, part.channels, strict=True))
                mine = zip(read.part.channels, read.part.places, strict=True)
                found.append(Gate(bound, {channel: rows[place] for channel, place in mine if place in rows}))
        return found

    # -- values --------------------------------------------------------------------------------------------------

    def _of(self, value: Value | None, inside: bool, far: int = 0) -> Held:
        """What is known of a value.

        Args:
            value: of the graph; None: one without a gradient.
            inside: it is the input of a kernel op, behind which nothing more is looked for.
            far: how far from there it is.
        """
        if value is None or far > FAR:
            return Held()
        if (value, inside) not in self._known:
            self._known[value, inside] = self._find(value, inside, far + 1)
        return self._known[value, inside]

    def _into(self, index: int, value: Value | None, inside: bool, far: int) -> Held:
        """What is known of an input of a node; what was rounded more coarsely than the node rounds says so itself."""
        held = self._of(value, inside, far)
        if value is None or held == Held():
            return held
        before = self.graph.nodes[value[0]]._input_metadata[value[1]].dtype
        if torch.finfo(before).eps <= torch.finfo(self.graph.nodes[index]._input_metadata[0].dtype).eps:
            return held
        precision = Precision.of(before, self._device)
        changed = held.changed(rounded(precision))
        vectors = tuple(
            (replace(bound, precision=precision), part) if isinstance(bound, Normalised) else new
            for (bound, part), new in zip(held.pieces, changed.pieces, strict=True)
        )
        return Held(vectors, changed.rest)

    def _find(self, value: Value, inside: bool, far: int) -> Held:
        index, slot = value
        name, inputs = self.graph.names[index], self.graph.inputs[index]
        given = [one for one in inputs if one is not None]
        if _is_written(self.graph.nodes[index]):
            return Held()
        if index in self.kernels.ops:
            return Held() if inside else self._kernel_op(index)
        if slot and name not in SPLITS:
            return Held()
        if name in NORMS:
            return self._norm(index, inside, far)
        if name == "Embedding":
            return self._lookup(index)
        if name == "Cat":
            return self._joined(index, [self._into(index, one, inside, far) for one in inputs])
        if name in ("Add", "Mul", "Div") and len(given) == 2:
            return self._with_another(index, given, inside, far)
        if len(given) != 1 or (inputs[0] is None and name != "Mul"):
            return Held()
        held = self._into(index, given[0], inside, far)
        if name in WHOLE_POSITIONS or name in OF_EACH_CHANNEL or name in AVERAGES:
            return self._moved(index, slot, held)
        if name in RANGES:  # a softplus of a beta below zero is never above it
            return Held(rest=RANGES[name]) if getattr(self.graph.nodes[index], "_saved_beta", 1) > 0 else Held()
        if name in LOWEST:
            return held.changed(at_least(LOWEST[name]))
        limits = constant(self.graph.nodes[index], name)
        if limits is None or (name == "Mul" and not self._is_scale(index, given[0])):
            return Held()
        self.constants[index] = limits
        return held.changed(clipped(*limits)) if name in CLIPS else _dropped(held, *limits)

    def _moved(self, index: int, slot: int, held: Held) -> Held:
        """Behind an op that moves, takes or averages entries."""
        node, name, value = self.graph.nodes[index], self.graph.names[index], self.graph.inputs[index][0]
        if value is None or getattr(node, "_saved_divisor_override", None) is not None:
            return Held()
        before, pieces = self.graph.shape(value), list[tuple[Bound, Part]]()
        step = Step(node, name, before, shapes=[before], slot=slot)
        for bound, part in held.pieces:
            if self.graph.is_reordered(index, part, before):
                return Held()
            pieces += ((bound, to) for to in follow(step, part) or ())
        held = Held(tuple(pieces), held.rest)
        if name in WHOLE_POSITIONS:
            return held
        if name in AVERAGES:
            terms = prod(before) / max(1, prod(output_shape(node))) if name == "Mean" else prod(before[2:])
            return held.changed(averaged(self._precision(index).of_sum(int(terms))))
        return held.changed(lambda of, rows: of)  # entries of several vectors are none any more

    def _joined(self, index: int, held: Sequence[Held]) -> Held:
        """Channels beside others."""
        node, inputs = self.graph.nodes[index], self.graph.inputs[index]
        shapes, pieces = [None if one is None else self.graph.shape(one) for one in inputs], list[tuple[Bound, Part]]()
        (axis,) = unwrapped(node._saved_dim, len(self.graph.shapes[index][0]))
        for position, (one, shape) in enumerate(zip(held, shapes, strict=True)):
            if shape is None:
                continue
            rest = (Anywhere(*one.rest), Part.whole(ChannelAxis(axis, shape[axis])))
            for bound, part in (*one.pieces, rest):
                if not part.is_cut and part.at.axis == axis:
                    pieces += ((bound, to) for to in follow(Step(node, "Cat", shape, position, shapes), part) or ())
        low, high = zip(*(one.rest for one in held), strict=True)
        return Held(tuple(pieces), (min(low), max(high)))

    def _is_scale(self, index: int, value: Value) -> bool:
        """Whether what multiplies a value is of the model: a number, a buffer or a dropout's mask, and not data."""
        if self.graph.shape(value) != self.graph.shapes[index][0]:
            return False
        (factor,) = _factors(self.graph.nodes[index])
        number = torch.result_type(factor, torch.zeros((), dtype=torch.float16)) is torch.float16  # a Python number
        most = float(factor.amax())
        dropped = most > 1 and bool((factor == 0).any())
        return dropped or factor.dtype is torch.bool or (number and not factor.ndim) or self._is_buffer(factor)

    def _is_buffer(self, values: Tensor) -> bool:
        model = self.graph.table.model
        return model is not None and any(
            one.data_ptr() == values.data_ptr() and one.shape == values.shape for one in model.buffers()
        )

    # -- with parameters -----------------------------------------------------------------------------------------

    def _parameter(self, value: Value | None, through: frozenset[str] = PLAIN) -> Tensor | None:
        """The parameter that a value shows, and nothing else."""
        graph, coarsest = self.graph, inf
        while value is not None and not graph.is_leaf(value[0]):
            rounding = torch.finfo(graph.nodes[value[0]]._input_metadata[value[1]].dtype).eps
            if graph.names[value[0]] not in through or rounding > coarsest:
                return None
            coarsest = rounding
            value = graph.inputs[value[0]][0]
        return None if value is None or graph.parameters[value[0]] is None else graph.parameter(value[0])

    def _kernel_op(self, index: int) -> Held:
        graph, op, name, node = self.graph, self.kernels.ops[index], self.graph.names[index], self.graph.nodes[index]
        found = None if op.layer is None or op.layer.reparametrized else self.kernels.output_part(index)
        if found is None:
            return Held()
        (layer, part), inputs, convolves = found, graph.inputs[index], name in CONVOLUTIONS
        weight, value = inputs[op.weight], inputs[op.data]
        plain = self._parameter(weight) is layer.main and part.channels == range(layer.channels)
        scaled = any(getattr(node, f"_saved_{factor}", 1) != 1 for factor in ("alpha", "beta"))
        if convolves:
            fits = weight is not None and len(graph.shape(weight)) == layer.main.ndim
        else:
            fits = layer.main.ndim == 2 and op.weight != MATMULS[name][0]
        if not plain or scaled or not fits:
            return Held()
        bias_at = inputs[op.bias] if op.bias is not None and op.bias < len(inputs) else None
        bias = self._parameter(bias_at)
        if (bias is None and (bias_at is not None or self._adds_untold(index))) or (
            bias is not None and bias.shape != (layer.channels,)
        ):
            return Held()
        taps = prod(layer.main.shape[2:])
        size = layer.main.numel() // layer.channels // taps * layer.groups
        axis = 1 if convolves else len(graph.shape(value)) - 1 if value is not None else 0
        padded = layer.transposed or any(getattr(node, "_saved_padding", ()))
        dtype = node._input_metadata[0].dtype
        self.constants[index] = _rounds(node)
        return Held(((Affine(layer, bias, self._of(value, inside=True), axis, size, dtype, padded), part),))

    def _adds_untold(self, index: int) -> bool:
        """Whether an op may add what no graph shows, as it has no gradient."""
        name, layer = self.graph.names[index], self.kernels.ops[index].layer
        if name in CONVOLUTIONS:
            return bool(getattr(self.graph.nodes[index], "_saved_bias_sym_sizes_opt", (1,)))
        if name in ("Linear", "MkldnnLinear"):
            return layer is None or getattr(layer.module, "bias", 0) is not None
        return name not in ("Mm", "Bmm")

    def _lookup(self, index: int) -> Held:
        table = self._parameter(self.graph.inputs[index][0], through=COPIES)
        if table is None:
            return Held()
        axis = ChannelAxis(len(self.graph.shapes[index][0]) - 1, table.shape[1])
        return Held(((TableRows(table), Part.whole(axis)),))

    def _norm(self, index: int, inside: bool, far: int) -> Held:
        graph, name, node = self.graph, self.graph.names[index], self.graph.nodes[index]
        shape = graph.shapes[index][0]
        is_vector = "Layer" in name or "Rms" in name
        axis = len(shape) - 1 if is_vector else 1
        gain, shift = self._beside(index, 1, "weight"), None if "Rms" in name else self._beside(index, 2, "bias")
        untold = gain is UNTOLD or shift is UNTOLD or (is_vector and len(node._saved_normalized_shape) != 1)
        if (
            untold
            or self._may_divide_by_zero
            or (is_vector and not self._has_epsilon(gain if shift is None else shift))
        ):
            return Held()
        width = next((one.numel() for one in (gain, shift) if one is not None), shape[axis])
        if shape[axis] % width:
            return Held()
        part = Part.whole(ChannelAxis(axis, width, shape[axis] // width))
        training = getattr(node, "_saved_training", None)
        self.constants[index] = _normalises(node)
        if training is False:
            return self._with_running(index, part, gain, shift, self._into(index, graph.inputs[index][0], inside, far))
        if is_vector:
            values: float = shape[axis]
        elif "Group" in name:
            values = prod(shape[1:]) // int(node._saved_group)
        elif training:
            values = prod(shape) // shape[1]
        elif name == "SyncBatchNorm":
            values = inf  # over all ranks, of which another may have more
        else:
            return Held()
        if values == 1 and "Rms" not in name:
            return Held()  # one value less itself: what is left is rounding, of any size
        batch = None if is_vector or values == inf else int(values)
        return Held(
            ((Normalised(values, "Rms" not in name, gain, shift, self._precision(index), is_vector, batch), part),)
        )

    def _beside(self, index: int, place: int, saved: str) -> Any:
        """Gain or shift of a norm; None: it has none; `UNTOLD`."""
        inputs, node = self.graph.inputs[index], self.graph.nodes[index]
        value = inputs[place] if place < len(inputs) else None
        if value is not None:
            found = self._parameter(value, through=PLAIN | {"Repeat"})
            return UNTOLD if found is None or found.ndim != 1 else found
        frozen = peek(node, saved) if hasattr(node, f"_saved_{saved}") else UNTOLD
        if not isinstance(frozen, Tensor):
            return frozen
        owned = self.graph.table.parameters.values()  # what is saved is another object
        same = (one for one in owned if one.data_ptr() == frozen.data_ptr() and one.shape == frozen.shape)
        return next(same, UNTOLD)

    def _with_running(self, index: int, part: Part, gain: Any, shift: Any, held: Held) -> Held:
        """A batch norm with statistics that it has: each channel by a scale of its own."""
        node = self.graph.nodes[index]
        means, variances = peek(node, "running_mean"), peek(node, "running_var")
        eps = getattr(node, "_saved_eps", getattr(node, "_saved_epsilon", None))
        if means is None or variances is None or eps is None or not self._is_buffer(means):
            return Held()  # copies are those of that step

        def numbers(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            ones = torch.ones(len(rows), dtype=torch.float64)
            scale = (here(variances)[rows] + float(eps)).rsqrt() * (ones if gain is None else vector(gain, rows))
            added = 0 * ones if shift is None else vector(shift, rows)
            taken = here(means)[rows] * scale
            return scale, added - taken, added.abs() + taken.abs()

        change = affine(numbers, self._share(index))
        pieces = [bound for bound, own in held.pieces if own == part] or [Anywhere(*held.rest)]
        return Held(tuple((Changed(bound, change), part) for bound in pieces))

    def _with_another(self, index: int, given: Sequence[Value], inside: bool, far: int) -> Held:
        """A parameter is added, as a bias, or multiplied, as a gain; or a vector is divided by its size (RMSNorm)."""
        graph, name = self.graph, self.graph.names[index]
        for one, other in (given, given[::-1]) if name != "Div" else (given,):
            if (norm := self._root_mean_square(index, one, other)) is not None:
                return norm
            parameter = self._parameter(other)
            if parameter is None or name == "Div" or graph.shape(one) != graph.shapes[index][0]:
                continue
            if parameter.numel() != max(parameter.shape, default=0):
                continue  # its entries may stand in another order
            shape, ndim = graph.shape(other), len(graph.shape(one))
            along = next((ndim - len(shape) + axis for axis, size in enumerate(shape) if size == parameter.numel()), -1)
            whole = Part.whole(ChannelAxis(along, parameter.numel()))
            pieces = tuple((bound, part) for bound, part in self._into(index, one, inside, far).pieces if part == whole)
            changed = [self._with_parameter(index, bound, parameter) for bound, _ in pieces]
            return Held(tuple((bound, whole) for bound in changed if bound is not None))
        return Held()

    def _with_parameter(self, index: int, bound: Bound, parameter: Tensor) -> Bound | None:
        if self.graph.names[index] == "Mul":
            fits = isinstance(bound, Normalised) and bound.gain is None and bound.shift is None
            return replace(bound, gain=parameter) if fits and isinstance(bound, Normalised) else None
        if getattr(self.graph.nodes[index], "_saved_alpha", 1) != 1:
            return None
        if isinstance(bound, Affine) and bound.bias is None:
            return replace(bound, bias=parameter)

        def numbers(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            added = vector(parameter, rows)
            return torch.ones_like(added), added, added.abs()

        return Changed(bound, affine(numbers, self._share(index)))

    def _root_mean_square(self, index: int, vectors: Value, sizes: Value) -> Held | None:
        """``x * rsqrt(mean(x ** 2, -1) + eps)``, whose rows have a mean square of 1 at most; None: something else."""
        graph, shape = self.graph, self.graph.shapes[index][0]

        def argument(value: Value | None, name: str | None) -> Value | None:
            """The only one of a node of this name."""
            made = value is not None and graph.names[value[0]] == name
            given = [one for one in graph.inputs[value[0]] if one is not None] if value and made else []
            return given[0] if len(given) == 1 else None

        added = argument(sizes, {"Mul": "Rsqrt", "Div": "Sqrt"}.get(graph.names[index]))
        means = argument(added, "Add")  # a parameter that is added may come to be below zero
        squares = argument(means, "Mean")
        if added is None or means is None or squares is None or argument(squares, "Pow") != vectors:
            return None
        root, add, mean, power = (graph.nodes[value[0]] for value in (sizes, added, means, squares))
        of_rows = graph.shape(vectors) == shape and unwrapped(mean._saved_dim, len(shape)) == (len(shape) - 1,)
        squared = power._saved_exponent == 2 and getattr(add, "_saved_alpha", 1) == 1
        if not of_rows or not squared or self._may_divide_by_zero:
            return None
        values, result = peek(power, "self"), peek(root, "result")
        if not isinstance(values, Tensor) or not isinstance(result, Tensor):
            return None
        precision, scale = self._precision(index), result.double().square()
        mean_squares = values.detach().double().square().mean(-1, keepdim=True)
        divided = mean_squares * scale if graph.names[index] == "Mul" else mean_squares / scale
        if not bool((divided.nan_to_num() <= 1 + precision.of_norm(centred=False)).all()):
            return None  # what is added to the mean is below zero
        bound = Normalised(shape[-1], False, None, None, precision, is_vector=True)
        return Held(((bound, Part.whole(ChannelAxis(len(shape) - 1, shape[-1]))),))

    @cached_property
    def _may_divide_by_zero(self) -> bool:
        """Whether a norm adds next to nothing to a variance: that of values whose squares vanish is wrong."""
        model = self.graph.table.model
        return any(
            isinstance(eps := getattr(module, "eps", None), float) and eps < SMALLEST_EPS
            for module in (() if model is None else model.modules())
        )

    def _has_epsilon(self, beside: Tensor | None) -> bool:
        """Whether a module says what the norm of vectors with this gain or shift adds to a variance, as no node does.

        Without either it may be any norm of that kind; None is a number of PyTorch's.
        """
        model = self.graph.table.model
        for module in () if model is None else model.modules():
            own = [one for one in module._parameters.values() if one is not None]
            if any(one is beside for one in own) or (beside is None and not own):
                said = [value for name, value in vars(module).items() if "eps" in name]
                if said and all(value is None or float(value) >= SMALLEST_EPS for value in said):
                    return True
        return False

    def _precision(self, index: int) -> Precision:
        return Precision.of(self.graph.nodes[index]._input_metadata[0].dtype, self._device)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.graph.table.parameters.values())).device

    def _share(self, index: int) -> float:
        precision = self._precision(index)
        return precision.roundings * precision.operands


def _dropped(held: Held, low: float, high: float) -> Held:
    """Multiplied by a number between two; the vectors that a dropout takes entries of are told by what they were."""
    change: Change = multiplied(low, high)
    pieces = tuple(
        (replace(bound, dropped=high * (bound.dropped or 1.0)), part)
        if isinstance(bound, Normalised) and low == 0 and high < inf
        else (Changed(bound, change), part)
        for bound, part in held.pieces
    )
    return Held(pieces, Held(rest=held.rest).changed(change).rest)


# -- constants ---------------------------------------------------------------------------------------------------------


def constant(node: Any, name: str) -> tuple[float, float] | None:
    """What a bound rests on and a node says in each step: to what it clips, by what it multiplies, how it rounds.

    None: nothing that could be told.
    """
    if name in CLIPS:
        ends = [getattr(node, f"_saved_{end}", None) for end in CLIPS[name]] or [0.0]
        low, high = (*ends, None)[:2]
        return -inf if low is None else float(low), inf if high is None else float(high)
    if name in DROPOUTS:
        kept = 1.0 - float(node._saved_p)
        return 0.0, 1.0 / kept if kept > 0 else 1.0
    if name == "Mul":
        return _kept(node)
    if name in NORMS:
        return _normalises(node)
    return _rounds(node) if name in CONVOLUTIONS or name in MATMULS else None


def _rounds(node: Any) -> tuple[float, float]:
    return 0.0, float(torch.finfo(node._input_metadata[0].dtype).eps)


def _normalises(node: Any) -> tuple[float, float]:
    """1 if by the statistics of what comes, 0 if by those that a norm has."""
    own = float(getattr(node, "_saved_training", True))
    return own, own


def _is_written(node: Any) -> bool:
    """Whether it is a user's own `torch.autograd.Function`, whatever its name."""
    written = getattr(type(node), "_forward_cls", None)
    return written is not None and not written.__module__.startswith("torch.")


def _factors(node: Any) -> list[Tensor]:
    return [one for one in (peek(node, "other"), peek(node, "self")) if isinstance(one, Tensor)]


def _kept(node: Any) -> tuple[float, float] | None:
    """By what a product with a single number multiplies, or with a dropout's mask: 0 and what that scales by."""
    masks = _factors(node)
    if len(masks) != 1 or masks[0].requires_grad or not masks[0].numel():
        return None
    mask = masks[0]
    if mask.ndim == 0:
        return (float(mask), float(mask)) if 0 <= float(mask) < inf else None  # its reductions are wrong in torch 2.13
    most = float(mask.amax())
    scales = most == 0 or (1 <= most < inf and bool(((mask == 0) | (mask == most)).all()))
    return (0.0, most or 1.0) if scales else None
