"""Numbers beyond float32's range, odd types and shapes of weights, and parameters that change in mid-training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.training import quiet
from helpers.twins import QUIET, train_twice
from lightning_deadkernel import Report
from lightning_deadkernel.errors import DeadKernelWarning
from lightning_deadkernel.functional.kernels import row_norms
from lightning_deadkernel.functional.sparsity import weight_summary

Change = Callable[[nn.Sequential], None]


class Scaled(L.LightningModule):
    """The first layer's weights times a factor, the second's divided by it: the output, and what is dead, stay."""

    def __init__(self, factor: float = 1.0, dtype: torch.dtype = torch.float32, change: Change | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
        with torch.no_grad():
            self.net[0].bias[2] = -100.0
            for parameter in self.net[0].parameters():
                parameter *= factor
            self.net[2].weight /= factor
        self.factor, self.change = factor, change

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.change is not None and self.current_epoch == 1 and batch_idx == 3:
            self.change(self.net)
            for parameter in self.parameters():
                parameter.grad = None
        return self.net(batch[0].to(self.net[0].weight.dtype)).square().mean()

    def configure_optimizers(self) -> Any:
        first, second, rest = list(self.net[0].parameters()), [self.net[2].weight], self.net[4].parameters()
        return torch.optim.SGD(
            [
                {"params": first, "lr": 1e-3 * self.factor**2},
                {"params": second, "lr": 1e-3 / self.factor**2},
                {"params": [self.net[2].bias, *rest], "lr": 1e-3},
            ]
        )


def fit(model: L.LightningModule, log_every: int = 2) -> Report:
    monitor = quiet()
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    L.Trainer(**{**QUIET, "max_epochs": 3, "log_every_n_steps": log_every}, callbacks=[monitor]).fit(
        model, DataLoader(TensorDataset(data), 8)
    )
    assert [report.window for report in monitor.reports] == [0, 1, 2, 3], "the watch goes on"
    return monitor.reports[-1]


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1e50, torch.float64), (1e-50, torch.float64), (1e140, torch.float64), (1e16, torch.float32)],
)
def test_huge_and_tiny_weights_are_told_like_others(factor: float, dtype: torch.dtype) -> None:
    plain, scaled = fit(Scaled(1.0, dtype)), fit(Scaled(factor, dtype))
    for layer, other in zip(plain.layers, scaled.layers, strict=True):
        assert other.dead == layer.dead
        assert other.zero_kernels == layer.zero_kernels
        assert other.gini == pytest.approx(layer.gini, abs=0.02)
        assert other.weight_sparsity == layer.weight_sparsity
        assert other.update_ratio is not None
    # the second layer takes the same relative steps whatever the factor
    assert scaled["net.2"].update_ratio == pytest.approx(plain["net.2"].update_ratio, rel=0.01)
    assert not {finding.kind for finding in scaled.findings} & {"sparse_weights", "non_finite_gradient"}
    assert plain["net.0"].dead == [2]


def test_a_summary_of_float64_weights_does_not_depend_on_their_scale() -> None:
    weights = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[3] = 0
    one = weight_summary(weights)
    for factor in (2.0**300, 2.0**-300):
        other = weight_summary(weights * factor)
        for name in ("zeros", "near_zeros", "gini", "hoyer"):
            assert float(getattr(other, name)) == float(getattr(one, name)), name
        assert float(other.rms) == pytest.approx(float(one.rms) * factor)
        assert int(other.histogram.sum()) == weights.numel()


def widened(net: nn.Sequential) -> None:
    net[0].weight.data = torch.cat([net[0].weight.data, torch.randn(3, 4)])
    net[0].bias.data = torch.cat([net[0].bias.data, torch.zeros(3)])
    net[2].weight.data = torch.cat([net[2].weight.data, torch.randn(8, 3)], 1)


def narrowed(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].weight.set_(net[0].weight[:5].clone())
        net[0].bias.set_(net[0].bias[:5].clone())
        net[2].weight.set_(net[2].weight[:, :5].clone())


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("log_every", [1, 2, 50])
@pytest.mark.parametrize(("change", "channels"), [(widened, 11), (narrowed, 5)])
def test_a_layer_that_changes_its_shape_is_watched_as_a_new_one_and_the_others_go_on(
    change: Change, channels: int, log_every: int
) -> None:
    report = fit(Scaled(change=change), log_every)
    first, second, head = report.layers
    assert first.channels == channels
    assert first.dead == [2]
    for layer in (first, second):
        assert layer.excluded is None
        assert (
            layer.note
            == "watched since epoch 1 (step 11), when it was given a new weight, of which nothing earlier is told"
        )
    assert head.note is None
    assert head.states == ["active", "active"]
    assert head.gradient_ratio is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_a_kernel_does_not_depend_on_its_scale(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, torch.inf], [1.0, torch.nan], [0.0, 5.0]], dtype=dtype)
    rows[0] *= info.max / 8
    rows[4] *= info.smallest_normal
    norms = row_norms(rows)
    assert norms.dtype == dtype
    assert float(norms[0]) == pytest.approx(float(rows[0, 0]) / 3 * 5)
    assert norms[1:3].tolist() == [0.0, torch.inf]
    assert norms[3].isnan()
    assert float(norms[4]) == pytest.approx(5 * info.smallest_normal)
    assert row_norms(torch.full((1, 2), info.max, dtype=dtype)).isfinite().all(), "though the type cannot hold it"


# -- odd weights beside ordinary ones ---------------------------------------------------------------------------------

Loss = Callable[[torch.Tensor], torch.Tensor]
FLOAT8 = [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]


class Beside(L.LightningModule):
    """An ordinary network, one of whose kernels is dead, and a part `odd` that `make` gives it, with its own loss."""

    def __init__(self, make: Callable[[Beside], Loss]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        with torch.no_grad():
            self.net[0].bias[2] = -100.0
        self.part = make(self)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean() + self.part(batch[0])

    def configure_optimizers(self) -> Any:
        return Rounding(parameter for parameter in self.parameters() if parameter.requires_grad)


class Rounding(torch.optim.Optimizer):
    """SGD that computes in another type than that of its parameters, as one for float8 has to."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None and parameter.dtype in FLOAT8:
                parameter.copy_((parameter.float() - 1e-3 * parameter.grad.float()).to(parameter.dtype))
            elif parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-1e-3)
        return loss


def weight(tensor: torch.Tensor, used: Callable[[torch.Tensor, nn.Parameter], torch.Tensor]) -> Any:
    """A part that is one parameter, of no module's own type."""

    def make(net: Beside) -> Loss:
        net.odd = nn.Parameter(tensor.clone(), requires_grad=tensor.is_floating_point() or tensor.is_complex())
        return lambda x: used(x, net.odd)

    return make


def module(
    made: Callable[[], nn.Module], used: Callable[[torch.Tensor, Any], torch.Tensor] = lambda x, layer: layer(x).sum()
) -> Any:
    """A part that is one module."""

    def make(net: Beside) -> Loss:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that an empty weight is nothing to initialise
            net.odd = made()
        return lambda x: used(x, net.odd)

    return make


def emptied() -> nn.Linear:
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(torch.empty(0, 0))
    return layer


def in_float8(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype))
    return layer


NO_LAYER = "no layer"
"""What has no kernels by its shape or type and is not trained as such: nothing is to be said."""
ODD: dict[str, tuple[Any, str]] = {
    "a complex linear layer": (
        module(
            lambda: nn.Linear(4, 3, dtype=torch.complex64), lambda x, layer: layer(x.to(torch.complex64)).abs().mean()
        ),
        "its weight is of type complex64, which is not read",
    ),
    "a complex convolution": (
        module(
            lambda: nn.Conv1d(1, 3, 2, dtype=torch.complex128),
            lambda x, layer: layer(x[:, None].to(torch.complex128)).real.relu().mean().float(),
        ),
        "its weight is of type complex128, which is not read",
    ),
    "a complex parameter": (
        weight(
            torch.ones(4, 3, dtype=torch.complex64), lambda x, odd: (x.to(torch.complex64) @ odd).real.relu().mean()
        ),
        "its weight is of type complex64, which is not read",
    ),
    "an integer parameter": (
        weight(torch.ones(4, 3, dtype=torch.int64), lambda x, odd: (x @ odd.float()).mean()),
        NO_LAYER,
    ),
    "a mask": (weight(torch.ones(4, 3, dtype=torch.bool), lambda x, odd: (x @ odd.float()).mean()), NO_LAYER),
    "a scalar": (weight(torch.tensor(2.0), lambda x, odd: (x * odd).mean()), NO_LAYER),
    "an empty vector": (weight(torch.empty(0), lambda x, odd: odd.sum()), NO_LAYER),
    "a layer without inputs": (
        module(lambda: nn.Linear(0, 3), lambda x, layer: layer(x[:, :0]).sum()),
        "its weight is empty",
    ),
    "a layer without outputs": (module(lambda: nn.Linear(4, 0)), "its weight is empty"),
    "a layer without either": (module(emptied, lambda x, layer: layer(x[:, :0]).sum()), "its weight is empty"),
    "a table of empty rows": (
        module(lambda: nn.Embedding(5, 0), lambda x, layer: layer(torch.zeros(3, dtype=torch.long)).sum()),
        "its weight is empty",
    ),
    "a sparse parameter": (
        weight(torch.eye(3, 4).to_sparse(), lambda x, odd: torch.sparse.mm(odd, x.T).relu().mean()),
        "its weight is sparse, which is not read",
    ),
    **{
        f"a layer in {dtype}": (
            module(
                lambda dtype=dtype: in_float8(dtype),
                lambda x, layer: nn.functional.linear(x, layer.weight.float()).relu().mean(),
            ),
            f"its weight is of type {str(dtype).removeprefix('torch.')}, which is not read",
        )
        for dtype in FLOAT8
    },
}


def inputs() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(64, 4, generator=torch.Generator().manual_seed(0))), 8)


@pytest.mark.parametrize("case", ODD)
def test_a_weight_that_cannot_be_read_says_so_and_the_others_are_watched(case: str) -> None:
    make, reason = ODD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadKernelWarning)
        run = train_twice(lambda: Beside(make), data=inputs)
    assert [report.window for report in run.monitor.reports] == [0, 1, 2], "the watch goes on"
    assert run.report["net.0"].dead == [2]
    assert run.report["net.2"].gradient_ratio is not None
    assert {layer.name: layer.excluded for layer in run.report.layers if layer.name == "odd"} == (
        {} if reason == NO_LAYER else {"odd": reason}
    )


def cast(factor: float, dtype: torch.dtype) -> Any:
    """From the second epoch on the first layer has another type, and as much larger weights; the output stays."""

    class Cast(Beside):
        factor = 1.0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            first = self.net[0]
            if self.current_epoch == 1 and batch_idx == 3:
                self.factor = factor
                self.optimizers().param_groups[0]["lr"] *= min(1.0, factor) ** 2
                for parameter in first.parameters():
                    parameter.data, parameter.grad = parameter.data.to(dtype) * factor, None
            hidden = first(batch[0].to(first.weight.dtype)).relu()
            return self.net[2]((hidden / self.factor).float()).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([{"params": self.net[at].parameters()} for at in (0, 2)], 1e-3)

    return lambda: Cast(lambda net: lambda x: x.sum())


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1, torch.float64), (1e200, torch.float64), (1e-100, torch.float64), (1, torch.bfloat16), (1, torch.float16)],
)
def test_a_weight_that_is_cast_in_mid_training_is_read_as_it_is_from_then_on(factor: float, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadKernelWarning)
        run = train_twice(cast(factor, dtype), data=inputs, max_epochs=3)
    assert [report.window for report in run.monitor.reports] == [0, 1, 2, 3]
    for report in run.monitor.reports[2:]:
        first = report["net.0"]
        assert first.dead == [2]
        assert not first.starved, "its gradient is small, and there"
        assert first.zero_kernels == []
        assert first.gradient_ratio is not None
        assert 0 < first.gradient_ratio < torch.inf
        assert not {finding.kind for finding in report.findings} & {"non_finite_gradient", "starved_channels"}


def test_weights_whose_squares_float64_cannot_hold_are_finite() -> None:
    def make(net: Beside) -> Loss:
        net.odd = nn.Linear(4, 3).double()
        with torch.no_grad():
            net.odd.weight *= 1e300
        return lambda x: (net.odd(x.double()) * 1e-300).relu().mean().float()

    run = train_twice(lambda: Beside(make), data=inputs)
    layer = run.report["odd"]
    assert 0 < layer.gradient_ratio < 1e-299
    assert layer.zero_kernels == []
    assert layer.frozen == [0, 1, 2], "no step is as large as a bit of them"
    assert not {finding.kind for finding in run.report.findings} & {"non_finite_gradient", "non_finite_weights"}
