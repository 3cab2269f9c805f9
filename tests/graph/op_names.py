"""The autograd nodes of the installed torch that no table of the reader knows: ``python tests/graph/op_names.py``.

What is known to be left alone is listed here with its reason; what is printed is new, and ends a path as unknown.
"""

from __future__ import annotations

import re
import sys

import torch

from lightning_deadkernel.graph import activations, kernel_ops, ops, rows_in_graph

FOLLOWED = set(
    "AsStrided Cat ChannelShuffle CopySlices Flip Glu Im2Col Col2Im Index MaskedFill Permute PixelShuffle "
    "PixelUnshuffle Roll Stack T Transpose".split()
)
"""Those with a function of their own in `channel_axis`, `parts` or `tracer`."""

LEFT_ALONE: dict[str, str] = {
    "derivatives, which double backward brings into a graph; the forward use is read": ".*Backward(Data|Overrideable)?",
    "leaves, errors and what stands for no op": "AccumulateGrad|DelayedError|Error|UndefinedGrad|SendRpc|PinMemory",
    "forms that a compiler makes of views": r".*_copy|LazyClone|Lift|LiftFresh|SliceInverse|ReshapeCopy|NarrowCopy",
    "torch's own tests": "Test.*",
    "nested tensors": ".*Nested.*|ToPaddedTensor|Values|PackPaddedSequence",
    "lists of tensors, as optimizers have them": "Foreach.*",
    "sparse tensors made or taken apart": "(To)?(Sparse|Dense|Mkldnn).*|Coalesce|MkldnnReshape",
    "matrices factored, inverted or reduced to a number": (
        "Linalg.*|Cholesky.*|Geqrf|LuUnpack|Ormqr|Qr|Svd|TriangularSolve|Trace|BlockDiag|Matmul"
    ),
    "special functions that no activation is made of": (
        "Special.*|Acosh?|Asin|Atan2|Atanh|Tan|Digamma|Erfc|Erfinv|Hypot|I0|Igammac?|Lgamma|Logit|Mvlgamma|Polygamma|Sinc|"
        "Xlogy|Logaddexp2?|Deg2Rad|Rad2Deg|Frexp|Ldexp|Nextafter|Copysign"
    ),
    "comparisons and rounding, which pass no gradient": "Ceil|Eq|Floor|Frac|Ge|Gt|Le|Lt|Ne|Round|Sign|Trunc",
    "random draws, which pass no gradient": (
        "Bernoulli|Cauchy|Exponential|Geometric|LogNormal|Normal|Poisson|Random|Uniform|StandardGamma.*"
    ),
    "complex numbers": "Angle|Complex|Conj.*|Polar|ViewAs(Complex|Real)|NegView|Vdot",
    "quantisation": "FakeQuantize.*|FusedMovingAvgObsFqHelper",
    "overwritten with a constant: nothing of a channel is left": "Fill|Zero",
    "entries taken, put or sorted by place, so that no channel has one of its own": (
        "Cummax|Cummin|Diag.*|AsStridedScatter|IndexPut.*|IndexReduce|Kthvalue|MaskedScatter|MaskedSelect|Median|Mode|"
        "Nanmedian|Put|Renorm|Rot90|SegmentReduce|SelectScatter|SliceScatter|Take|Topk|Tril|Triu|Unfold|Unique.*|Unsafe.*"
    ),
    "distances and sums over several axes": "Aminmax|Cdist|Dist|EuclideanDist|LinalgCross|Logcumsumexp|Nansum|Pdist",
    "of other devices, or of releases to come, that were seen in no graph": (
        "(Cudnn)?AffineGridGenerator|CudnnAttention|CudnnGridSampler|EfficientAttention|FlashAttention|EmbeddingRenorm|"
        "GridSampler2DCpuFallback|LstmMps|ScaledDotProductFusedAttentionOverrideable|UpsampleLanczos.*|"
        "RreluWithNoiseFunctional"
    ),
    "products that no layer of torch makes": "Addbmm|Addr|ConvTbc|NnpackSpatialConvolution",
}
"""Reason -> the names, without ``Backward<n>``, as a pattern."""


def known() -> set[str]:
    """All names in the reader's tables."""
    tables = [table for module in (ops, rows_in_graph, kernel_ops) for table in vars(module).values()]
    names = {str(name) for table in tables if isinstance(table, (frozenset, dict)) for name in table}
    return names | FOLLOWED | set(activations.ACTIVATIONS) | set(activations.ELEMENTWISE)


def of_torch() -> set[str]:
    """The names of all nodes that this torch can put into a graph."""
    return {re.sub(r"Backward\d*$", "", name) for name in dir(torch._C._functions) if not name.startswith("_")}


def reason(name: str) -> str | None:
    """Why a name is in no table."""
    return next((text for text, pattern in LEFT_ALONE.items() if re.fullmatch(pattern, name)), None)


def new() -> list[str]:
    """Those that are in no table, and for which there is no reason."""
    return sorted(name for name in of_torch() - known() if reason(name) is None)


if __name__ == "__main__":
    print(f"torch {torch.__version__}: {len(of_torch())} names")
    sys.exit("\n".join(new()) or 0)
