"""Every model of the zoo is watched nearly whole, without a word, without a trace, and without a false verdict."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from helpers.training import fit, quiet
from lightning_deadkernel import Report
from lightning_deadkernel.diagnosis import pruning
from lightning_deadkernel.observation import LayerWindow
from lightning_deadkernel.report.records import LayerReport
from zoo.architectures import MODELS, ZOO, Training, build, zoo_importable
from zoo.coverage import kind_of, measure
from zoo.oracle import BruteForce, kernels_of, shut

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(not ZOO, reason="DEADKERNEL_ZOO names no folder with the model zoos (see tests/zoo)"),
    pytest.mark.filterwarnings("error::lightning_deadkernel.errors.DeadKernelWarning"),
]

RECTIFIERS = {"relu", "relu6", "clamp", "threshold"}


@pytest.fixture(scope="module", autouse=True)
def _zoo() -> Iterator[None]:
    with zoo_importable():
        yield


@pytest.mark.setting(
    "architectures of timm, torchvision, pytorchcv, segmentation-models-pytorch, transformers, diffusers, pyg",
    evidence="activation or gradient",
    note="verdicts equal brute force",
)
@pytest.mark.parametrize("name", MODELS)
def test_verdicts_agree_with_brute_force_and_training_is_bit_identical(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        training, batches = build(name)
    except ImportError as missing:
        pytest.skip(f"cannot be imported beside torch {torch.__version__}: {missing}")
    killed = shut(training)
    twin = copy.deepcopy(training)
    removable: dict[str, set[int]] = {}

    def noted(layer: LayerWindow, report: LayerReport, seen: bool, judge: Any = pruning._removable) -> Tensor:
        may_go: Tensor = judge(layer, report, seen)
        removable[layer.name] = set(may_go.nonzero().flatten().tolist())  # the last window's
        return may_go

    monkeypatch.setattr(pruning, "_removable", noted)
    report, watched = _trained(twin, batches, monitor=quiet())
    assert report is not None
    layers = kernels_of(training)
    assert {n for n, module in layers.items() if module.weight.requires_grad} <= {row.name for row in report.layers}
    dead = {layer: set(channels) for layer, channels in report.dead_channels.items() if layer in layers}
    kept = report.savings.unknown_consumers if report.savings else ()  # gates go with what they shut
    may_go = {layer: sorted(removable[layer] & channels) for layer, channels in dead.items() if layer not in kept}
    oracle = BruteForce({layer: channels for layer, channels in may_go.items() if channels})
    _, plain = _trained(training, batches, callbacks=[oracle])

    assert plain.keys() == watched.keys()
    for key, value in plain.items():
        assert torch.equal(value, watched[key]) or (value.isnan().any() and watched[key].isnan().any()), key
    assert_agrees(report, oracle, killed)


@pytest.mark.slow
def test_at_most_three_in_a_hundred_layers_of_the_zoo_are_unknown_or_left_out() -> None:
    total: Counter[str] = Counter()
    unread: list[tuple[str, str, str]] = []
    for name in MODELS:
        row, reasons = measure(name)
        total.update(row)
        unread += [reason for reason in reasons if reason[0] in ("unknown", "mixed", "excluded", "no row", "warning")]
    assert total["warnings"] == 0, unread
    assert total["no row"] == 0, unread
    assert total["unknown"] + total["mixed"] + total["excluded"] <= 0.03 * total["layers"], unread


def _trained(training: Training, batches: list[Any], **options: Any) -> tuple[Report | None, dict[str, Any]]:
    """The report, if there is one, and all that must be the same with and without the monitor."""
    lightning.seed_everything(1, verbose=False)
    report = fit(training, batches, **options).report
    return report, {**training.state_dict(), "random state": torch.get_rng_state(), "next": torch.rand(1)}


def assert_agrees(report: Report, oracle: BruteForce, killed: Mapping[str, tuple[int, ...]]) -> None:
    """What the report says of one window is what brute force saw in it."""
    dead = {layer: set(channels) for layer, channels in report.dead_channels.items()}
    moving = {n: {c for c in d if oracle.at_kernel[n][c] > 0} for n, d in dead.items() if n in oracle.at_kernel}
    assert {n: c for n, c in moving.items() if c} == {}, "dead, and there is a gradient in the kernel"
    assert oracle.missed == set(), "may go, and the outputs are others without them"
    for layer, quiet_channels in oracle.without_gradient():
        row = report[layer]
        if row.excluded is not None or kind_of(row) != "read":
            continue
        assert dead.get(layer, set()) <= quiet_channels, f"{layer}: dead with a gradient at its output"
        # where a norm's scale is 0 its shift is what has a gradient; a smooth slope may underflow on its way down
        # a layer may be read in some of its channels only
        fine = {"dead", "saturated", "starved", "zero-gradient"} | (
            {"silent"} if row.activation not in RECTIFIERS else set()
        )
        healthy = {c: row.states[c] for c in quiet_channels - set(row.zero_kernels) if row.states[c] not in fine}
        assert healthy == {}, f"{layer}: without any gradient"
        if row.activation in RECTIFIERS:
            assert set(killed.get(layer, ())) & quiet_channels <= dead.get(layer, set()), f"{layer}: shut by hand"
