"""What is wrong is said before training starts, or once in a warning; training itself goes on as it would have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import Net, conv, images, kill, rows, watch
from helpers.training import fit, quiet
from lightning_deadkernel import DeadKernelMonitor, Thresholds
from lightning_deadkernel.errors import DeadKernelWarning

DEAD = (1, 4)


def plain() -> Net:
    torch.manual_seed(0)
    return Net(lambda net, x: net.head(F.relu(net.conv(x))), conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))


def fit_and_collect(net: Net, inputs: Any, **options: Any) -> tuple[DeadKernelMonitor, list[str]]:
    """The monitor after training, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = fit(net, inputs, **options)
    return monitor, [str(w.message) for w in caught if issubclass(w.category, DeadKernelWarning)]


def weights_after(net: Net, inputs: Any, **options: Any) -> dict[str, Tensor]:
    fit(net, inputs, **options)
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.isnan(), other[name].isnan()), name
        assert torch.equal(value.nan_to_num(), other[name].nan_to_num()), name


# -- said before anything runs -----------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no steps": (
        {"every_n_train_steps": 0},
        ValueError,
        "Expected `every_n_train_steps` to be None or a positive int, but got 0.",
    ),
    "negative steps": (
        {"every_n_train_steps": -3},
        ValueError,
        "Expected `every_n_train_steps` to be None or a positive int, but got -3.",
    ),
    "steps that are no number": (
        {"every_n_train_steps": True},
        ValueError,
        "Expected `every_n_train_steps` to be None or a positive int, but got True.",
    ),
    "half a step": (
        {"every_n_train_steps": 1.5},
        ValueError,
        "Expected `every_n_train_steps` to be None or a positive int, but got 1.5.",
    ),
    "no steps at least": (
        {"min_steps": 0},
        ValueError,
        "Expected `min_steps` to be a positive int, but got 0.",
    ),
    "no number of steps at least": (
        {"min_steps": None},
        ValueError,
        "Expected `min_steps` to be a positive int, but got None.",
    ),
    "one pattern for a list": (
        {"include": "conv*"},
        TypeError,
        "Expected `include` to be None or a list of glob patterns, but got 'conv*'.",
    ),
    "a policy that is none": (
        {"on_finding": "shout"},
        ValueError,
        "Expected `on_finding` to be one of 'warn', 'ignore', 'raise', but got 'shout'.",
    ),
    "a way of compiling that is none": (
        {"when_compiled": "always"},
        ValueError,
        "Expected `when_compiled` to be one of 'sample', 'gradients', but got 'always'.",
    ),
    "thresholds of another kind": (
        {"thresholds": [0.1]},
        TypeError,
        "Expected `thresholds` to be a Thresholds or a mapping of their names, but got [0.1].",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_an_error_with_its_name_and_value(case: str) -> None:
    options, kind, text = WRONG[case]
    with pytest.raises(kind) as error:
        DeadKernelMonitor(**options)
    assert str(error.value) == text


def test_thresholds_out_of_order_are_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"vanishing_gradient.*weak_gradient|weak_gradient.*vanishing_gradient"):
        Thresholds(weak_gradient=1e-7, vanishing_gradient=1e-3)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_glob_that_matches_no_layer_is_an_error_before_the_first_step(option: str) -> None:
    net = plain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError) as error:
        fit(net, images(), monitor=quiet(**{option: ["stem*"]}))
    assert str(error.value) == (
        f"Expected every pattern of `{option}` to match a layer, but 'stem*' matches none of: conv, head."
    )
    assert_same(before, dict(net.state_dict()))


# -- said once, and trained on -----------------------------------------------------------------------------------


def test_a_model_without_convolution_or_linear_layer_trains_with_one_warning() -> None:
    def make() -> Net:
        torch.manual_seed(0)
        return Net(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(3))

    monitor, said = fit_and_collect(make(), images())
    assert said == ["DeadKernelMonitor: no convolution or linear layer of Net can be watched: it has none."]
    assert monitor.report is not None
    assert monitor.report.layers == ()
    assert monitor.report.dead_fraction == 0
    assert_same(weights_after(make(), images(), callbacks=[]), weights_after(make(), images()))


def test_a_model_of_frozen_layers_alone_says_that_nothing_can_be_watched_and_lists_why() -> None:
    net = Net(lambda net, x: net.norm(F.relu(net.conv(x))), conv=conv().requires_grad_(False), norm=nn.BatchNorm2d(8))
    monitor, said = fit_and_collect(net, images())
    assert said == ["DeadKernelMonitor: no convolution or linear layer of Net can be watched: requires_grad=False."]
    assert monitor.report is not None
    assert monitor.report["conv"].excluded == "requires_grad=False since initialisation"


def test_a_loss_that_depends_on_no_layer_leaves_every_layer_listed_as_not_in_its_graph() -> None:
    class Flat(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx).detach().requires_grad_()

    def make() -> Flat:
        torch.manual_seed(0)
        return Flat(lambda net, x: net.head(F.relu(net.conv(x))), conv=conv(), head=nn.Conv2d(8, 2, 1))

    net = make()
    monitor, said = fit_and_collect(net, images(24))
    assert said == ["DeadKernelMonitor: no watched layer is in the graph of the loss: see the report's last section."]
    assert monitor.report is not None
    assert {layer.excluded for layer in monitor.report.layers} == {
        "not in the graph of the loss: never used in the training step, or detached"
    }
    assert_same(dict(net.state_dict()), weights_after(make(), images(24), callbacks=[]))


def test_a_loss_that_needs_no_gradient_raises_what_it_raises_without_the_monitor() -> None:
    class Detached(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx).detach()

    errors = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for callbacks in ([], [quiet()]):
            with pytest.raises(RuntimeError) as error:
                fit(Detached(plain()._forward, conv=conv(), head=nn.Conv2d(8, 2, 1)), images(), callbacks=callbacks)
            errors.append(str(error.value))
    said = [str(w.message) for w in caught if issubclass(w.category, DeadKernelWarning)]
    assert said == []  # torch's own error says what is wrong
    assert errors[0] == errors[1]
    assert "does not require grad" in errors[0]


@pytest.mark.filterwarnings("ignore:.*training_step.*returned `None`.*:UserWarning")
@pytest.mark.parametrize("every", [1, 2])
def test_a_training_step_that_returns_none_is_no_evidence_and_no_trouble(every: int) -> None:
    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % every == 0 else super().training_step(batch, batch_idx)

    def make() -> Skipping:
        torch.manual_seed(0)
        return Skipping(plain()._forward, conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))

    net = make()
    monitor, said = fit_and_collect(net, images(16))
    assert_same(dict(net.state_dict()), weights_after(make(), images(16), callbacks=[]))
    if every == 1:
        assert said == ["DeadKernelMonitor: no training step gave a loss: there is nothing to report."]
        assert monitor.report is None
    else:
        assert said == []
        assert monitor.report is not None
        assert monitor.report["conv"].dead == list(DEAD)


def test_an_empty_batch_is_no_evidence_and_no_trouble() -> None:
    class Summed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self._forward(self, batch[0]).square().sum()

    def make() -> Summed:
        torch.manual_seed(0)
        return Summed(plain()._forward, conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))

    batches = [images(0), images(4), images(0), images(4)]
    net = make()
    monitor, said = fit_and_collect(net, batches)
    assert said == []
    assert monitor.report is not None
    assert (monitor.report["conv"].dead, monitor.report.samples) == (list(DEAD), 8)
    assert_same(dict(net.state_dict()), weights_after(make(), batches, callbacks=[]))


def test_a_nan_batch_kills_and_revives_no_channel() -> None:
    bad = images(4)
    bad[0, 0, 0, 0] = math.nan
    monitor = fit(plain(), [images(4), images(4), images(4), bad], monitor=quiet(every_n_train_steps=2))
    healthy, spoilt = monitor.reports[1:3]
    assert healthy["conv"].dead == list(DEAD)
    assert spoilt["conv"].dead == list(DEAD), "by the batch that was finite"
    assert (spoilt.batches, spoilt.non_finite_batches) == (2, 1)
    kinds = {finding.kind for finding in spoilt.findings}
    assert "non_finite_gradient" in kinds
    assert "revived_channels" not in kinds


def test_training_on_nan_alone_is_as_wrong_as_without_the_monitor_and_claims_no_death() -> None:
    bad = torch.full((8, 3, 8, 8), math.nan)
    net = plain()
    monitor, said = fit_and_collect(net, bad)
    assert monitor.report is not None
    assert not any("no longer watches" in text or "stops watching" in text for text in said)
    assert any(finding.kind == "non_finite_gradient" for finding in monitor.report.findings)
    assert_same(dict(net.state_dict()), weights_after(plain(), bad, callbacks=[]))


PRECISIONS = ["bf16-true", "64-true", "16-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_of_every_width_are_watched_and_left_bit_identical(precision: str) -> None:
    kinds = {"bf16-true": torch.bfloat16, "64-true": torch.float64, "16-true": torch.float16}
    x = images().to(kinds[precision])
    net = plain()
    monitor, said = fit_and_collect(net, x, precision=precision)
    assert said == []
    assert monitor.report is not None
    assert (monitor.report["conv"].dead, monitor.report["conv"].activation) == (list(DEAD), "relu")
    assert next(net.parameters()).dtype == kinds[precision]
    assert_same(dict(net.state_dict()), weights_after(plain(), x, callbacks=[], precision=precision))


def test_lazy_modules_are_watched_from_when_they_have_a_shape_and_training_is_left_to_fail_or_go_on() -> None:
    def make() -> Net:
        torch.manual_seed(0)
        net = Net(
            lambda net, x: net.head(F.relu(net.conv(x)).mean((2, 3))), conv=conv(dead=DEAD), head=nn.LazyLinear(2)
        )
        net.configure_optimizers = lambda: torch.optim.SGD(net.conv.parameters(), 1e-3)  # type: ignore[method-assign]
        return net

    outcomes = []
    for callbacks in ([], [monitor := quiet()]):
        try:
            outcomes.append(str(weights_after(make(), images(), callbacks=callbacks)["conv.weight"].sum()))
        except Exception as error:  # Lightning refuses some lazy models by itself
            outcomes.append(repr(error))
    assert outcomes[0] == outcomes[1]
    if monitor.report is not None:
        assert monitor.report["head"].excluded is None, "its first forward pass has given it a weight"
        assert monitor.report["conv"].dead == list(DEAD)


STRANGE: dict[str, Callable[[Tensor], Any]] = {
    "a dictionary": lambda x: {"x": x},
    "a list in a list": lambda x: [[x], ["name"]],
    "text": lambda x: {"x": x, "names": ["a"] * len(x)},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_batches_of_any_make_are_counted_or_said_not_to_be(kind: str) -> None:
    class Unpacking(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch = batch[0]
            x = batch["x"] if isinstance(batch, dict) else batch[0][0]
            return self._forward(self, x).square().mean()

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    net = Unpacking(plain()._forward, conv=conv(dead=DEAD), head=nn.Conv2d(8, 2, 1))
    report = watch(net, [STRANGE[kind](images(4)), STRANGE[kind](images(4))])
    assert report["conv"].dead == list(DEAD)
    assert report.samples in (8, None)


def test_a_linear_layer_of_no_width_is_listed_with_its_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about initialising nothing
        empty = nn.Linear(5, 0)
    net = Net(
        lambda net, x: net.head(F.relu(net.fc(x))).sum() + net.empty(x).sum(),
        fc=kill(nn.Linear(5, 8), *DEAD),
        empty=empty,
        head=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 5))
    assert report["empty"].excluded == "its weight is empty"
    assert report["fc"].dead == list(DEAD)
