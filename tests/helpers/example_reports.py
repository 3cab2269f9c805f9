"""Three reports, a healthy one, an unhealthy one and a hostile one, for the tests of everything that shows reports."""

from __future__ import annotations

from helpers.reports import codes
from lightning_deadkernel.report.records import ChannelValues, Finding, LayerReport, Savings
from lightning_deadkernel.report.report import Report


def sick_report() -> Report:
    """Decayed kernels, dead ones, a layer read by gradient, a vanishing layer, a frozen backbone."""
    layers = (
        LayerReport(
            name="features.0",
            kind="Conv2d",
            channels=16,
            depth=3,
            activation="relu",
            gating="rectifier",
            codes=codes(16, {"dead": (3, 11), "zero_kernel": (3, 11), "dormant": (3, 11), "rare": (7,)}),
            firing_rate=0.4213,
            gradient_ratio=0.91,
            update_ratio=1.234e-3,
            update_ratio_max=2.5e-3,
            weight_sparsity=0.0,
            weight_near_zeros=0.1324,
            gini=0.52,
            hoyer=0.31,
            activation_sparsity=0.587,
            parameters=448,
            values=ChannelValues(firing_rate=[0.45] * 16, norms=[0.5] * 3 + [1e-9] + [0.5] * 12),
        ),
        LayerReport(
            name="features.3",
            kind="Conv2d",
            channels=32,
            depth=2,
            activation="relu",
            gating="rectifier",
            codes=codes(32, {"dead": (0, 1, 2, 3, 7, 20), "dormant": (0, 1, 2, 3, 7, 8, 20)}),
            firing_rate=0.2318,
            gradient_ratio=0.084,
            update_ratio=8.7e-4,
            update_ratio_max=0.21,
            weight_sparsity=0.0,
            weight_near_zeros=0.0079,
            activation_sparsity=0.77,
            parameters=4640,
        ),
        LayerReport(
            name="attention.mix",
            kind="Linear",
            channels=64,
            depth=1,
            activation="unknown",
            codes=codes(64, {"zero-gradient": (12,)}),
            note="its activation is a custom autograd function",
            evidence="gradient",
            gradient_ratio=3.1e-9,
            update_ratio=4.0e-7,
            weight_sparsity=0.0,
            weight_near_zeros=0.0081,
            parameters=4160,
        ),
        LayerReport(
            name="head",
            kind="Linear",
            channels=10,
            depth=0,
            activation=None,
            codes=codes(10, {}),
            gradient_ratio=1.0,
            update_ratio=2.2e-3,
            weight_sparsity=0.0,
            weight_near_zeros=0.0075,
            parameters=650,
        ),
        LayerReport(
            name="backbone.stem",
            kind="Conv2d",
            channels=8,
            depth=0,
            activation=None,
            codes=codes(8, {"excluded": tuple(range(8))}),
            excluded="requires_grad is False",
        ),
    )
    findings = (
        Finding(
            kind="vanishing_gradient",
            title="the gradient vanishes",
            severity="error",
            layer="attention.mix",
            channels=(),
            evidence={"gradient_ratio": 3.1e-9, "vanishing_share": 1.0, "largest_at": "head.bias"},
            cause="unknown: neither a dead layer downstream nor a saturated activation was seen",
            advice="Put a normalisation before the activation, or add a residual connection around the layer.",
            reference="Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html",
            window=3,
            samples=1437,
        ),
        Finding(
            kind="dead_channels",
            title="6 of 32 kernels are dead (knocked out)",
            severity="warning",
            layer="features.3",
            channels=(0, 1, 2, 3, 7, 20),
            evidence={"firing_rate_bound": 3 / 1437, "largest_gradient": 0.0, "fired_until_window": 1},
            cause="knocked out: the channels fired until window 1, when the update ratio reached 0.21",
            advice="Lower the learning rate or warm it up; clip the gradient norm.",
            reference="Lu et al. 2019, arXiv 1903.06733",
            window=3,
            samples=1437,
        ),
        Finding(
            kind="zero_kernels",
            title="2 of 16 kernels are zero, or next to it (decayed)",
            severity="warning",
            layer="features.0",
            channels=(3, 11),
            evidence={"largest_relative_norm": 1.2e-8, "weight_decay": 0.01, "gradient_stopped_in_window": 1},
            cause="decayed: no gradient since window 1, and weight_decay=0.01 has shrunk the kernels since",
            advice="Use AdamW instead of Adam with L2, or lower weight_decay; the kernels can be pruned.",
            reference="Mehta et al. 2019, arXiv 1811.12495",
            window=3,
            samples=1437,
        ),
        Finding(
            kind="sparse_weights",
            title="most weights are near zero (decayed)",
            severity="info",
            layer="features.0",
            channels=(),
            evidence={"near_zero_share": 0.1324, "gaussian_share": 0.0080},
            cause="decayed: two kernels are zero",
            advice="Nothing to do beyond the zero kernels.",
            reference="",
            window=3,
            samples=1437,
        ),
    )
    return Report(
        window=3,
        epoch=2,
        global_step=138,
        samples=1437,
        batches=46,
        optimizer_steps=46,
        sampled_steps=6,
        layers=layers,
        findings=findings,
        savings=Savings(8, 2_314, 9_256, unknown_consumers=("features.3",)),
        notes=("The model is compiled: sampled steps ran eagerly.",),
        gradient_norm=0.73,
    )


def healthy_report() -> Report:
    """Nothing to say: 42 kernels in 2 layers over 12,000 samples."""
    layers = tuple(
        LayerReport(
            name=name,
            kind=kind,
            channels=channels,
            depth=1 - place,
            activation=activation,
            codes=bytes(channels),
            firing_rate=0.5 if activation else None,
            gradient_ratio=0.5 + place / 2,
            update_ratio=1.1e-3,
            weight_sparsity=0.0,
            weight_near_zeros=0.008,
            parameters=10 * channels,
        )
        for place, (name, kind, channels, activation) in enumerate(
            [("conv", "Conv2d", 32, "relu"), ("head", "Linear", 10, None)]
        )
    )
    return Report(1, 0, 100, 12_000, 100, 100, 3, layers, savings=Savings(0, 0, 0), gradient_norm=1.0)


MALICIOUS = "a|b*c`d_<script>alert(1)</script>\n# [x](y) \x1b[31m"
"""A layer's name that tries to be a table cell, emphasis, code, an element, a heading, a link and a colour."""


def malicious_report() -> Report:
    """A report whose every text is hostile."""
    evil = LayerReport(
        name=MALICIOUS,
        kind=MALICIOUS,
        channels=4,
        depth=0,
        activation=MALICIOUS,
        codes=codes(4, {"dead": (1,)}),
        note=MALICIOUS,
    )
    gone = LayerReport(
        name=MALICIOUS + "2",
        kind="Linear",
        channels=2,
        depth=0,
        activation=None,
        codes=codes(2, {"excluded": (0, 1)}),
        excluded=MALICIOUS,
    )
    finding = Finding(
        "dead_channels",
        "error",
        MALICIOUS,
        (1,),
        {MALICIOUS: MALICIOUS},
        MALICIOUS,
        MALICIOUS,
        MALICIOUS,
        1,
        10,
        MALICIOUS,
    )
    return Report(1, 0, 1, 10, 1, 1, 1, (evil, gone), (finding,), Savings(1, 1, 4, (MALICIOUS,)), (MALICIOUS,))
