"""The closed tables of autograd nodes: what passes channels on and what ends their path.

Names are `Node.name()` without the trailing ``Backward<n>``. A name in none of the tables is *unknown*: the layer that
meets it falls back to gradient evidence and the report names it once, so that a new PyTorch version or device shows
itself instead of being misread.
"""

from __future__ import annotations

import re
import sys
from types import FrameType
from typing import Any

_SUFFIX = re.compile(r"Backward\d*$")


def canonical(node: Any) -> str:
    """``ReluBackward0`` -> ``Relu``, ``torch::autograd::AccumulateGrad`` -> ``AccumulateGrad``,
    ``UnsafeViewBackward0`` -> ``View``."""
    name: str = node.name()
    return _SUFFIX.sub("", name.rsplit("::", 1)[-1]).removeprefix("Unsafe")  # what is unsafe checks less, no more


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
    "SparseAddmm": (1, 2, 0),
}
"""Places of (left, right, bias) among the node's arguments."""

SAVED_DATA: dict[str, dict[int, str]] = {
    "Addmm": {1: "mat1", 2: "mat2"},
    "Mm": {0: "self", 1: "mat2"},
    "Bmm": {0: "self", 1: "mat2"},
    "Linear": {0: "input"},
    **{name: {0: "input"} for name in CONVOLUTIONS},
}
"""Kernel op -> place of an argument -> the name under which it is saved for the weight's gradient."""

ATTENTION = frozenset(
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention ScaledDotProductEfficientAttention "
    "ScaledDotProductCudnnAttention ScaledDotProductFusedAttention ScaledDotProductAttentionMath FlexAttention "
    "FlexAttentionAutogradOp".split()
)
RECURRENCES = frozenset("MkldnnRnnLayer CudnnRnn MiopenRnn ThnnFusedLstmCell ThnnFusedGruCell Lstm".split())
"""Layers of a recurrence in one op, its activations included."""
SEQUENCE_OPS = ATTENTION | RECURRENCES
"""What they make is data, even where nothing but parameters enters by the graph."""

MIXERS = SEQUENCE_OPS | frozenset(
    "Bilinear Trilinear Dot Cdist FftR2C FftC2R FftC2C GridSampler2D GridSampler3D Softmax SafeSoftmax "
    "MaskedSoftmax GroupedMm".split()
)
"""Ops that read every channel they are given and lead on to further layers: the kernel reaches them."""

LOSSES = frozenset(
    "NllLoss NllLoss2D NLLLoss NLLLoss2D MseLoss L1Loss SmoothL1Loss HuberLoss BinaryCrossEntropy "
    "BinaryCrossEntropyWithLogits KlDiv SoftMarginLoss MultiMarginLoss MultilabelMarginLoss CtcLoss CudnnCtcLoss "
    "MiopenCtcLoss LogSoftmax Logsumexp CosineEmbeddingLoss _DDPSink".split()
)

SAME_SHAPE = frozenset(
    "Add Sub Rsub Mul Div Neg Clone ToCopy To Copy CopyBackwards Contiguous Alias Identity NativeDropout FusedDropout "
    "Dropout FeatureDropout AlphaDropout Addcmul Addcdiv Lerp Where Expand NanToNum "
    "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D ConstantPadNd "
    "MaxPool2DWithIndices MaxPool3DWithIndices MaxPool2D MaxPool3D MaxPool1DWithIndices MaxPool1D "
    "MkldnnMaxPool2D MkldnnMaxPool3D AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D "
    "AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D AdaptiveMaxPool1D AdaptiveMaxPool2D AdaptiveMaxPool3D "
    "FractionalMaxPool2D FractionalMaxPool3D MaxUnpool2D MaxUnpool3D UpsampleNearest1D UpsampleNearest2D "
    "UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D "
    "UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D UpsampleBilinear2DAa "
    "UpsampleBicubic2DAa Slice Narrow Repeat AllReduce AllGather RegisterPostBackwardFunction".split()
)
"""Keeps the channel axis where it is, counted from the right; its size there must not change."""

NORMS = frozenset(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm MkldnnBatchNorm BatchNorm NativeGroupNorm NativeLayerNorm "
    "SyncBatchNorm FusedRmsNorm RmsNorm InstanceNorm _FusedRmsNorm NativeBatchNormLegit "
    "NativeBatchNormLegitNoTraining BatchNormNoUpdate BatchNormWithUpdate".split()
)
"""Arguments (input, scale, shift); the shape stays."""

REDUCTIONS = frozenset("Mean Sum Amax Amin Max Min Var Std VarMean StdMean Norm LinalgVectorNorm Prod".split())
EXTREMES = frozenset("Amax Amin Max Min".split())
"""Those that take the largest or the smallest."""
VIEWS = frozenset("View ReshapeAlias Reshape Unsqueeze Squeeze Flatten Unflatten".split())
SPLITS = frozenset("Split SplitWithSizes Chunk Unbind Select".split())
PICKS = frozenset(
    "IndexSelect Gather IndexAdd IndexCopy IndexFill ScatterAdd Scatter ScatterReduce Cumsum Cumprod Sort".split()
)
"""Pick, add up or sort entries along one dimension; over any other than the channels' they keep the channels apart."""
ADDS_UP = (
    VIEWS
    | SPLITS
    | frozenset(
        "Mean Sum Add Sub Rsub Neg Mul Div Stack Cat ToCopy Clone Expand Index MaskedSelect IndexSelect Slice "
        "Permute Transpose T".split()
    )
)
"""Of which a loss makes one number of its terms, with constants beside them."""
MARGINS = frozenset("Add Sub Rsub".split())
"""How a loss adds the margin at which a hinge bends."""
SOFT_HINGES = frozenset({"Softplus", "LogSigmoid"})
FUNCTIONS = frozenset(
    "Pow Square Sqrt Rsqrt Reciprocal Abs Exp Exp2 Log Log2 Log10 Log1P Expm1 Sin Cos Sinh Cosh Atan Asinh Erf Sgn "
    "Maximum Minimum Fmax Fmin Clamp ClampMin ClampMax Fmod Remainder".split()
)
"""Functions of each entry alone, of which hand-written norms, gates and losses are made."""

KEEPS_ZERO = (
    (SAME_SHAPE - frozenset("Add Sub Rsub Addcmul Addcdiv Lerp Where Copy ConstantPadNd AlphaDropout".split()))
    | VIEWS
    | SPLITS
    | frozenset(
        "Permute Transpose T Flip Roll Index IndexSelect Gather Cumsum Cat Mean Sum Amax Max PixelShuffle".split()
    )
    | frozenset("Relu Tanh LeakyRelu Elu Abs Square Sqrt Sin Sinh Asinh Atan Erf Expm1 Log1P Sgn".split())
)
"""Of a channel that is 0 everywhere they make 0."""


def adds_up(name: str) -> bool:
    """Whether an op makes averages, sums or extremes of entries, so that over the channels' axis it mixes channels."""
    return name in REDUCTIONS or "AvgPool" in name or "Upsample" in name


COMPILED = frozenset({"CompiledFunction"})
CHECKPOINTS = frozenset({"CheckpointFunction"})


class _Stopped(Exception):
    """A hook was about to run; its argument is the hook's module."""


def unpack_hook(node: Any, name: str) -> str | None:
    """The module of the hook that reading a saved tensor would run (checkpointing, `save_on_cpu`); None without one."""
    saved = getattr(node, f"_raw_saved_{name}", None)
    if saved is None:
        return None
    if not hasattr(saved, "unpack_hook"):  # seen from torch 2.13 on
        return hook_by_reading(node, name)
    return None if saved.unpack_hook is None else str(getattr(saved.unpack_hook, "__module__", ""))


def hook_by_reading(node: Any, name: str) -> str | None:
    """What `unpack_hook` says, where torch does not show hooks: the tensor is read, and a hook stopped as it is called.

    The one Python call that reading makes is the hook's. A profiler sees it before its first line, and what it raises
    comes out of the reading.
    """

    profiler = sys.getprofile()

    def stop(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or module.startswith("torch._library"):  # how a dispatch mode is looked up
            return
        called = frame.f_locals.get("fn") if module == "torch._compile" else frame.f_code  # which wraps it
        if getattr(called, "co_name", getattr(called, "__name__", "")) != "__torch_dispatch__":
            raise _Stopped(module)
        sys.setprofile(profiler)  # the mode sees the view that reading makes: a hook would have come before

    sys.setprofile(stop)
    try:
        getattr(node, f"_saved_{name}")
    except _Stopped as stopped:
        return str(stopped)
    finally:
        sys.setprofile(profiler)
    return None


def peek(node: Any, name: str) -> Any:
    """What a node saved under `name`; None if it saved nothing there or reading it would run a hook."""
    return None if unpack_hook(node, name) is not None else getattr(node, f"_saved_{name}", None)
