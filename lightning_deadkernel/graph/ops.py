"""The closed tables of autograd nodes: what passes channels on, what activates them, what ends their way.

Names are `Node.name()` without the trailing ``Backward<n>``. A name in none of the tables is *unknown*: the layer that
meets it falls back to gradient evidence and the report names it once, so that a new PyTorch version or device shows
itself instead of being misread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadkernel.observation import Gating

_SUFFIX = re.compile(r"Backward\d*$")


def canonical(node: Any) -> str:
    """``ReluBackward0`` -> ``Relu``, ``torch::autograd::AccumulateGrad`` -> ``AccumulateGrad``."""
    name: str = node.name()
    return _SUFFIX.sub("", name.rsplit("::", 1)[-1])


CONVOLUTIONS = frozenset(
    "Convolution ConvolutionOverrideable SlowConv2D SlowConv3D SlowConvTranspose2D SlowConvTranspose3D "
    "SlowConvDilated2D SlowConvDilated3D ConvDepthwise2D ConvDepthwise3D ThnnConv2D ThnnConvDepthwise2D "
    "CudnnConvolution CudnnConvolutionTranspose MiopenConvolution MiopenConvolutionTranspose "
    "MiopenDepthwiseConvolution MkldnnConvolution MpsConvolution MpsConvolutionTranspose".split()
)
"""Arguments (input, weight, bias)."""

MATMULS = {
    "Addmm": (1, 2, 0),
    "Mm": (0, 1, None),
    "Bmm": (0, 1, None),
    "Baddbmm": (1, 2, 0),
    "Mv": (0, 1, None),
    "Linear": (0, 1, 2),
    "MkldnnLinear": (0, 1, 2),
    "Addmv": (1, 2, 0),
}
"""Places of (left, right, bias) among the node's arguments."""

SEQUENCE_OPS = frozenset(
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention ScaledDotProductEfficientAttention "
    "ScaledDotProductCudnnAttention ScaledDotProductFusedAttention ScaledDotProductAttentionMath FlexAttention "
    "FlexAttentionAutogradOp MkldnnRnnLayer CudnnRnn MiopenRnn ThnnFusedLstmCell ThnnFusedGruCell Lstm".split()
)
"""Attention and recurrence: what they make is data, even where nothing but parameters enters by the graph."""

MIXERS = SEQUENCE_OPS | frozenset(
    "Bilinear Trilinear Dot Cdist FftR2C FftC2R FftC2C GridSampler2D GridSampler3D Softmax SafeSoftmax "
    "MaskedSoftmax".split()
)
"""Ops that read every channel they are given and lead on to further layers: the kernel is heard there."""

LOSSES = frozenset(
    "NllLoss NllLoss2D NLLLoss NLLLoss2D MseLoss L1Loss SmoothL1Loss HuberLoss BinaryCrossEntropy "
    "BinaryCrossEntropyWithLogits KlDiv SoftMarginLoss MultiMarginLoss MultilabelMarginLoss CtcLoss CudnnCtcLoss "
    "LogSoftmax Logsumexp CosineEmbeddingLoss _DDPSink".split()
)

SAME_SHAPE = frozenset(
    "Add Sub Rsub Mul Div Neg Clone ToCopy To Copy CopyBackwards Contiguous Alias Identity NativeDropout FusedDropout "
    "Dropout FeatureDropout AlphaDropout Addcmul Addcdiv Lerp Expand NanToNum "
    "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D ConstantPadNd "
    "MaxPool2DWithIndices MaxPool3DWithIndices MaxPool2D MaxPool3D MaxPool1DWithIndices MaxPool1D "
    "MkldnnMaxPool2D MkldnnMaxPool3D AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D "
    "AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D AdaptiveMaxPool1D AdaptiveMaxPool2D AdaptiveMaxPool3D "
    "FractionalMaxPool2D FractionalMaxPool3D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D "
    "UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D "
    "UpsampleBicubic2D UpsampleTrilinear3D UpsampleBilinear2DAa UpsampleBicubic2DAa Slice Narrow "
    "Repeat AllReduce AllGather RegisterPostBackwardFunction".split()
)
"""Keeps the channel axis where it is, counted from the right; its size there must not change."""

NORMS = frozenset(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm MkldnnBatchNorm BatchNorm NativeGroupNorm NativeLayerNorm "
    "SyncBatchNorm FusedRmsNorm RmsNorm InstanceNorm _FusedRmsNorm NativeBatchNormLegit".split()
)
"""Arguments (input, scale, shift); the shape stays."""

AVERAGES = frozenset("AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D".split())
REDUCTIONS = frozenset("Mean Sum Amax Amin Max Min Var Std VarMean StdMean Norm LinalgVectorNorm Prod".split())
VIEWS = frozenset("View UnsafeView ReshapeAlias Reshape Unsqueeze Squeeze Flatten Unflatten".split())
SPLITS = frozenset("Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Chunk Unbind Select".split())
ARITHMETIC = frozenset(
    "Pow Square Sqrt Rsqrt Reciprocal Abs Exp Log Log1P Expm1 Sin Cos Add Sub Rsub Mul Div Neg Clone ToCopy Expand "
    "ConstantPadNd Maximum Minimum Clamp ClampMin Addcmul Addcdiv".split()
)
"""Elementwise ops of which hand-written norms, gates and losses are made."""

COMPILED = frozenset({"CompiledFunction"})
CHECKPOINTS = frozenset({"CheckpointFunction"})


def unpack_hook(node: Any, name: str) -> Any:
    """The hook that reading a saved tensor would run (checkpointing, `save_on_cpu`), or None."""
    return getattr(getattr(node, f"_raw_saved_{name}", None), "unpack_hook", None)


def peek(node: Any, name: str) -> Any:
    """What a node saved under `name`; None if it saved nothing there or reading it would run a hook."""
    return None if unpack_hook(node, name) is not None else getattr(node, f"_saved_{name}", None)


@dataclass(frozen=True)
class Activation:
    """How to read one activation node. `read` gives the value whose sign tells whether a channel fired."""

    label: str
    gating: Gating
    saved: str
    """Name of the saved tensor, ``"result"`` or ``"self"``."""
    output: Callable[[Tensor], Tensor]
    """Saved tensor -> activation h."""
    positive: Callable[[Tensor], Tensor] | None = None
    """Saved tensor -> a tensor that is > 0 exactly where h is; None: the saved tensor itself."""
    low: float = -float("inf")
    """Saved values at or below are on the lower flat end; for sigmoid and tanh the image of -5."""
    high: float = float("inf")

    @property
    def rectifies(self) -> bool:
        """h is never negative, and is > 0 exactly where the saved tensor is."""
        return self.gating == "rectifier" and self.positive is None

    def saved_tensor(self, node: Any) -> Tensor:
        """What the node keeps for backward; the caller has made sure that no unpack hook is set on it."""
        saved: Tensor = getattr(node, f"_saved_{self.saved}")
        return saved.detach()

    def unreadable(self, node: Any) -> str | None:
        """Why reading would cost or fail: an unpack hook recomputes (checkpoint) or copies (`save_on_cpu`)."""
        hook = unpack_hook(node, self.saved)
        if hook is None:
            return None
        if str(getattr(hook, "__module__", "")).startswith("torch.utils.checkpoint"):
            return "activation checkpointing recomputes it"
        return "it is saved through a hook (e.g. save_on_cpu)"


def _same(x: Tensor) -> Tensor:
    return x


def _relu_like(node: Any, low: float | None, high: float | None, saved: str = "self") -> Activation | None:
    if low is None:
        return None
    if low != 0:
        if high is None:
            return None
        return Activation("hardtanh", "bounded", saved, lambda x: x.clamp(low, high), low=low, high=high)
    if high is None:
        return Activation("relu", "rectifier", saved, F.relu)
    return Activation("relu6" if high == 6 else "clamp", "rectifier", saved, lambda x: x.clamp(0, high), high=high)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _threshold(node: Any) -> Activation | None:
    threshold = float(node._saved_threshold)
    if threshold == 0:
        return Activation("threshold", "rectifier", "self", F.relu)
    return Activation(
        "threshold", "rectifier", "self", lambda x: torch.where(x > threshold, x, 0.0), positive=lambda x: x - threshold
    )


def _maximum(node: Any) -> Activation | None:
    """`torch.maximum(x, 0)`: a gate if the other side is a constant of nothing but zeros."""
    for mine, other in (("self", "other"), ("other", "self")):
        constant, value = peek(node, other), peek(node, mine)
        if constant is None or value is None or constant.requires_grad or not value.requires_grad:
            continue
        if not bool(constant.any()):
            return Activation("relu", "rectifier", mine, F.relu)
    return None


def _leaky(label: str, slope: str | None = None) -> Callable[[Any], Activation | None]:
    def make(node: Any) -> Activation | None:
        value = getattr(node, f"_saved_{slope}", 0.01) if slope else 0.01
        saved = "result" if hasattr(node, "_saved_result") else "self"
        gating: Gating = "rectifier" if value == 0 else "leaky"
        if saved == "result":
            return Activation(label, gating, saved, _same)
        return Activation(label, gating, saved, lambda x: F.leaky_relu(x, value))

    return make


def _prelu(node: Any) -> Activation | None:
    slopes = node._saved_weight.detach()
    return Activation("prelu", "leaky", "self", lambda x: torch.where(x > 0, x, x * slopes))


def _elu(node: Any) -> Activation | None:
    scale = float(getattr(node, "_saved_scale", 1.0))
    alpha = float(getattr(node, "_saved_alpha", 1.0))
    label = "selu" if scale != 1 else "elu"
    if hasattr(node, "_saved_result"):
        return Activation(label, "smooth", "result", _same)
    return Activation(label, "smooth", "self", lambda x: F.elu(x, alpha) * scale)


def _softplus(node: Any) -> Activation:
    """Positive everywhere, so that only its flat end tells an off channel: slope and output are next to zero there."""
    beta = float(node._saved_beta)
    return Activation("softplus", "bounded", "self", lambda x: F.softplus(x, beta), F.softplus, low=-5.0 / beta)


def _fixed(*args: Any, **kwargs: Any) -> Callable[[Any], Activation | None]:
    made = Activation(*args, **kwargs)
    return lambda node: made


SIGMOID_AT_5 = 0.9933071490757153
TANH_AT_5 = 0.9999092042625951

ACTIVATIONS: dict[str, Callable[[Any], Activation | None]] = {
    "Relu": _fixed("relu", "rectifier", "result", _same),
    "Threshold": _threshold,
    "Hardtanh": lambda n: _relu_like(n, float(n._saved_min_val), float(n._saved_max_val)),
    "Clamp": lambda n: _relu_like(n, _number(n._saved_min), _number(n._saved_max)),
    "ClampMin": lambda n: _relu_like(n, _number(n._saved_min), None),
    "Maximum": _maximum,
    "LeakyRelu": _leaky("leaky_relu", "negative_slope"),
    "RreluWithNoise": _leaky("rrelu"),
    "PreluKernel": _prelu,
    "Elu": _elu,
    "Celu": _fixed("celu", "smooth", "self", F.celu),
    "Gelu": _fixed("gelu", "smooth", "self", F.gelu),
    "Silu": _fixed("silu", "smooth", "self", F.silu),
    "Mish": _fixed("mish", "smooth", "self", F.mish),
    "Hardswish": _fixed("hardswish", "smooth", "self", F.hardswish),
    "Softplus": _softplus,
    "Sigmoid": _fixed("sigmoid", "bounded", "result", _same, low=1 - SIGMOID_AT_5, high=SIGMOID_AT_5),
    "Tanh": _fixed("tanh", "bounded", "result", _same, low=-TANH_AT_5, high=TANH_AT_5),
    "Hardsigmoid": _fixed("hardsigmoid", "bounded", "self", F.hardsigmoid, positive=F.hardsigmoid, low=-3.0, high=3.0),
}
"""Node name -> its reader. A reader gives None where this use of the op is not an activation that can be read."""
