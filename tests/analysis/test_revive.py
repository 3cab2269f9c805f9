"""Dead kernels are drawn anew and the network computes what it did; where that cannot be, they are left as they are."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

from helpers.reports import codes
from helpers.short_runs import last, mlp, train
from helpers.tiny_nets import DEAD, Net, chain, conv, images, kill, rows, watch
from helpers.training import SHORT, quiet
from lightning_deadkernel import DeadKernelMonitor, Report, revive
from lightning_deadkernel.demo import DigitsDataModule, PlainCNN, SmallCNN
from lightning_deadkernel.graph.layers import LayerTable

Case = tuple[Net, Tensor]


def linear(inputs: int, outputs: int, *dead: int) -> nn.Linear:
    return kill(nn.Linear(inputs, outputs), *dead)  # type: ignore[no-any-return]


def normed() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(F.max_pool2d(F.relu(net.norm(net.first(x))), 2))  # type: ignore[no-any-return]

    net = Net(forward, first=nn.Conv2d(3, 8, 3, bias=False), norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 2, 1))
    kill(net.norm, *DEAD)
    return net, images()


def flattened() -> Case:
    net, x = chain(conv(dead=DEAD), images(), nn.Linear(8 * 16, 2))
    net._forward = lambda net, x: net.head(F.max_pool2d(F.relu(net.first(x)), 2).flatten(1))
    return net, x


def transformer() -> Case:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    kill(block.linear1, *DEAD)
    return Net(lambda net, x: net.head(net.block(x)), block=block, head=nn.Linear(8, 2)), rows(4, 5, 8)


def deep() -> Case:
    """Two layers in turn have dead kernels, and a third is dead as a whole."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(F.relu(net.third(F.relu(net.second(F.relu(net.first(x)))))))  # type: ignore[no-any-return]

    layers = {"first": linear(6, 8, *DEAD), "second": linear(8, 8, 1, 2), "third": linear(8, 3, 0, 1, 2)}
    return Net(forward, **layers, head=nn.Linear(3, 2)), rows(16, 6)


def masked() -> Case:
    net, x = chain(conv(dead=(1, 4, 6)), images(), nn.Conv2d(8, 2, 3))
    keep = torch.ones_like(net.first.weight)
    keep[6] = 0.0
    keep[1, 0] = 0.0
    prune.custom_from_mask(net.first, "weight", keep)
    prune.l1_unstructured(net.head, "weight", 0.3)
    return net, x


REVIVED: dict[str, tuple[Callable[[], Case], dict[str, tuple[int, ...]]]] = {
    "linear": (lambda: chain(linear(6, 8, *DEAD), rows(16, 6), nn.Linear(8, 2)), {"first": DEAD}),
    "convolution": (lambda: chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 3)), {"first": DEAD}),
    "a norm": (normed, {"first": DEAD}),
    "flattened": (flattened, {"first": DEAD}),
    "a transformer's MLP": (transformer, {"block.linear1": DEAD}),
    "grouped": (lambda: chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 3, groups=2)), {"first": DEAD}),
    "depthwise": (lambda: chain(conv(dead=DEAD), images(), nn.Conv2d(8, 8, 3, groups=8)), {"first": DEAD}),
    "itself grouped": (lambda: chain(conv(4, dead=DEAD, groups=2), images(8, 4), nn.Conv2d(8, 2, 3)), {"first": DEAD}),
    "transposed": (
        lambda: chain(kill(nn.ConvTranspose2d(4, 8, 3, groups=2), *DEAD), images(8, 4), nn.ConvTranspose2d(8, 2, 3)),
        {"first": DEAD},
    ),
    "one behind the other": (deep, {"first": DEAD, "second": (1, 2), "third": (0, 1, 2)}),
    "pruned": (masked, {"first": (1, 4)}),
    "channels last": (
        lambda: (lambda net, x: (net.to(memory_format=torch.channels_last), x))(
            *chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 3))
        ),
        {"first": DEAD},
    ),
    "float64": (
        lambda: (lambda net, x: (net.double(), x.double()))(*chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 3))),
        {"first": DEAD},
    ),
}


@pytest.mark.parametrize("optimizer", [Adam, AdamW, NAdam, Adamax, RMSprop, SGD])
@pytest.mark.parametrize("case", ["convolution", "a norm"])
def test_any_optimizer_goes_on(case: str, optimizer: type[Optimizer]) -> None:
    _check(case, optimizer)


@pytest.mark.parametrize("case", REVIVED)
def test_the_outputs_stay_and_the_kernels_have_gradients_within_ten_steps(case: str) -> None:
    _check(case, Adam)


def _check(case: str, make: type[Optimizer]) -> None:
    torch.manual_seed(0)
    (net, x), expected = REVIVED[case][0](), REVIVED[case][1]
    report = watch(net, x)
    assert {name: tuple(dead) for name, dead in report.dead_channels.items()}.keys() == expected.keys()
    optimizer = make(net.parameters(), lr=1e-3)
    for _ in range(20):
        _step(net, x, optimizer)
    before = outputs(net, x)
    kernels = {layer.name: layer for layer in LayerTable.of(net, None, None).layers}
    old = {name: kernels[name].rows(kernels[name].main).clone() for name in expected}
    done = revive(net, report, optimizer)
    assert dict(done.revived) == expected
    for now, then in zip(outputs(net, x), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)
    for name, channels in expected.items():
        new = kernels[name].rows(kernels[name].main)
        assert not any(torch.equal(new[channel], old[name][channel]) for channel in channels)
    largest = {name: torch.zeros(kernels[name].channels, dtype=x.dtype) for name in expected}
    net.train()
    for _ in range(10):
        _step(net, x, optimizer)
        for name, most in largest.items():
            grad = kernels[name].main.grad
            assert grad is not None
            most.copy_(torch.fmax(most, kernels[name].rows(grad).abs().amax(1)))
    for name, channels in expected.items():
        firing = [channel for channel in channels if largest[name][channel] > 0]
        assert len(firing) >= math.ceil(len(channels) / 2), f"{name}: of {channels} only {firing}"


def outputs(net: Net, x: Tensor) -> list[Tensor]:
    """In training and in evaluation, without a trace in the network's statistics."""
    found, kept = [], copy.deepcopy(net.state_dict())
    for training in (True, False):
        with torch.no_grad():
            found.append(net.train(training)._forward(net, x))
        net.load_state_dict(kept)
    return found


def _step(net: Net, x: Tensor, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    net.training_step([x], 0).backward()
    optimizer.step()


# -- where nothing is done --------------------------------------------------------------------------------------------


def behind(between: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> Case:
    layers = {"first": conv(dead=DEAD), "head": nn.Conv2d(8, 2, 1), **modules}
    return Net(lambda net, x: net.head(between(net, net.first(x))), **layers), images()


def residual() -> Case:
    layers = {"first": conv(dead=DEAD), "skip": conv(), "head": nn.Conv2d(8, 2, 1)}
    return Net(lambda net, x: net.head(F.relu(net.first(x)) + net.skip(x)), **layers), images()


def elsewhere(use: Callable[[Any], Tensor]) -> Case:
    net, x = chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 1))
    net._forward = lambda net, x: net.head(F.relu(net.first(x))) + use(net)
    return net, x


def normalised() -> Case:
    net, x = chain(linear(6, 8, *DEAD), rows(16, 6), nn.Linear(8, 2))
    net._forward = lambda net, x: F.linear(F.relu(net.first(x)), net.head.weight / net.head.weight.norm())
    return net, x


def gain_elsewhere() -> Case:
    net, x = normed()
    forward = net._forward
    net._forward = lambda net, x: forward(net, x) + net.norm.weight.sum()
    return net, x


def tied() -> Case:
    net, x = chain(linear(8, 8, *DEAD), rows(16, 8), nn.Linear(8, 8))
    net.twin = nn.Linear(8, 8)
    net.twin.weight = net.head.weight
    return net, x


REFUSED: dict[str, tuple[Callable[[], Case], str]] = {
    "a residual sum": (residual, "added to others"),
    "a sum of two layouts": (
        lambda: (
            Net(
                lambda net, x: net.head((h := F.relu(net.first(x))).flatten(1) + h.transpose(1, 2).flatten(1)),
                first=linear(6, 8, *DEAD),
                head=nn.Linear(24, 2),
            ),
            rows(16, 3, 6),
        ),
        "added to others",
    ),
    "a norm over channels": (
        lambda: behind(lambda net, h: F.relu(net.norm(h)), norm=nn.GroupNorm(2, 8)),
        "other channels",
    ),
    "a norm behind the activation": (
        lambda: behind(lambda net, h: net.norm(F.relu(h)), norm=nn.BatchNorm2d(8)),
        "something else than 0",
    ),
    "a shift behind the activation": (lambda: behind(lambda net, h: F.relu(h) + 1.0), "something else than 0"),
    "a number for what is off": (lambda: behind(lambda net, h: F.threshold(h, 0.1, 0.7)), "something else than 0"),
    "tied weights": (tied, "tied"),
    "weight norm": (
        lambda: chain(weight_norm(conv(dead=DEAD)), images(), nn.Conv2d(8, 2, 1)),
        "computed from others",
    ),
    "a reader with weight norm": (
        lambda: chain(conv(dead=DEAD), images(), weight_norm(nn.Conv2d(8, 2, 1))),
        "computed from others",
    ),
    "a weight used elsewhere": (
        lambda: elsewhere(lambda net: net.first.weight.sum()),
        "beside their own layer",
    ),
    "a reader used elsewhere": (
        lambda: elsewhere(lambda net: net.head.weight.square().sum()),
        "beside their own layer",
    ),
    "a reader divided by its norm": (normalised, "beside their own layer"),
    "a norm's gain used elsewhere": (gain_elsewhere, "beside their own layer"),
    "a reader that is frozen": (
        lambda: chain(conv(dead=DEAD), images(), nn.Conv2d(8, 2, 1).requires_grad_(False)),
        "the graph does not show",
    ),
    "the loss": (
        lambda: (Net(lambda net, x: F.relu(net.first(x)), first=conv(dead=DEAD)), images()),
        "the graph does not show",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_the_output_would_change_nothing_is_done_and_it_is_said(case: str) -> None:
    torch.manual_seed(0)
    make, reason = REFUSED[case]
    net, x = make()
    report = watch(net, x)
    if case == "a norm over channels":  # beside which no kernel of the layer is dead
        marked = replace(report["first"], codes=codes(8, {"dead": DEAD}))
        report = replace(report, layers=(marked, *report.layers[1:]))
    assert report["first"].dead == list(DEAD)
    before = copy.deepcopy(net.state_dict())
    done = revive(net, report, net.configure_optimizers())
    assert dict(done.revived) == {}
    (refusal,) = done.refused
    assert (refusal.layer, refusal.channels) == ("first", DEAD)
    assert reason in refusal.reason
    assert str(done).startswith("first: 2 kernels (1, 4) left as before: ")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


# -- what is drawn, and what is forgotten -----------------------------------------------------------------------------


def example(make: Callable[[Any], Optimizer] = lambda parameters: Adam(parameters, lr=1e-3)) -> Any:
    torch.manual_seed(0)
    net, x = REVIVED["convolution"][0]()
    report, optimizer = watch(net, x), make(net.parameters())
    for _ in range(200):
        _step(net, x, optimizer)
    return net, x, report, optimizer


def test_new_kernels_are_drawn_as_the_module_draws_them() -> None:
    net, x = chain(linear(6, 400, *range(300)), rows(16, 6), nn.Linear(400, 2))
    revive(net, watch(net, x), net.configure_optimizers(), generator=torch.Generator().manual_seed(1))
    new, bound = net.first.weight[:300].detach(), 1 / math.sqrt(6)  # of the uniform distribution that Linear draws from
    assert float(new.abs().max()) <= bound
    assert float(new.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert float(net.first.bias[:300].abs().max()) <= bound


class Half(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)
        nn.init.constant_(self.bias, 0.25)


def test_a_module_that_draws_in_its_own_way_does_so() -> None:
    net, x = chain(kill(Half(6, 8), *DEAD), rows(16, 6), nn.Linear(8, 2))
    revive(net, watch(net, x), net.configure_optimizers())
    assert net.first.weight[list(DEAD)].unique().tolist() == [0.5]
    assert net.first.bias[list(DEAD)].tolist() == [0.25, 0.25]


def test_one_number_is_drawn_from_the_generator_and_the_same_one_makes_the_same_kernels() -> None:
    made = []
    for generator in (None, torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)):
        net, _, report, optimizer = example()
        torch.manual_seed(5)
        revive(net, report, optimizer, generator=generator)
        made.append(net.first.weight.detach().clone())
        drawn = torch.rand(3)
        torch.manual_seed(5)
        if generator is None:
            torch.randint(1 << 62, (1,))
        assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(made[1], made[2])
    assert not torch.equal(made[0], made[1])


def test_all_ranks_draw_what_the_first_one_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(seed: Tensor, source: int) -> None:
        assert source == 0
        seed.fill_(7)

    examples, made = [example(), example()], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    for rank, (net, _, report, optimizer) in enumerate(examples):
        torch.manual_seed(rank)
        revive(net, report, optimizer)
        made.append(net.first.weight.detach().clone())
    assert torch.equal(*made)


def test_of_the_new_entries_the_optimizer_forgets_all_and_of_the_others_nothing() -> None:
    net, _, report, optimizer = example()
    before = {p: copy.deepcopy(optimizer.state[p]) for p in net.parameters()}
    net.first.weight.grad = torch.ones_like(net.first.weight)
    revive(net, report, optimizer)
    new = torch.zeros(8, dtype=torch.bool)
    new[list(DEAD)] = True
    written = {
        net.first.weight: new[:, None, None, None].expand_as(net.first.weight),
        net.first.bias: new,
        net.head.weight: new[None, :, None, None].expand_as(net.head.weight),
        net.head.bias: torch.zeros(2, dtype=torch.bool),
    }
    assert torch.equal(net.first.weight.grad == 0, written[net.first.weight])
    for parameter, mask in written.items():
        state, old = optimizer.state[parameter], before[parameter]
        assert torch.equal(state["step"], old["step"])  # one number for all of the parameter
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[name][~mask], old[name][~mask])
        assert not bool(state["exp_avg"][mask].any())
        if bool(mask.any()):
            mean = old["exp_avg_sq"][~mask & (old["exp_avg_sq"] > 0)].mean()
            assert torch.equal(state["exp_avg_sq"][mask], mean.expand(int(mask.sum())))


def test_a_parameter_of_which_all_is_new_begins_at_step_0() -> None:
    torch.manual_seed(0)
    (net, x), report = deep(), None
    report, optimizer = watch(net, x), Adam(net.parameters())
    for _ in range(5):
        _step(net, x, optimizer)
    revive(net, report, optimizer)
    assert net.third.weight not in optimizer.state
    assert int(optimizer.state[net.head.bias]["step"]) == 5


def test_the_first_steps_of_new_entries_are_no_larger_than_the_rate() -> None:
    """A scalar by the rule of `revive`, beside the one whose running means are all 0."""
    torch.manual_seed(0)
    steps = {}
    for size in (1.0, 0.0):
        weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = Adam([weights], lr=1.0)
        for _ in range(3_000):
            weights.grad = torch.randn(2, dtype=torch.float64)
            optimizer.step()
        state = optimizer.state[weights]
        state["exp_avg"][0], state["exp_avg_sq"][0] = 0.0, size * state["exp_avg_sq"][1]
        largest = 0.0
        for _ in range(100):
            old, weights.grad = weights.detach().clone(), torch.ones(2, dtype=torch.float64)
            optimizer.step()
            largest = max(largest, float((weights.detach() - old)[0].abs()))
        steps[size] = largest
    assert steps[1.0] < 1.05
    assert steps[0.0] > 6


# -- in training ------------------------------------------------------------------------------------------------------


class Reviving(L.LightningModule):
    """As the page of the docs has it."""

    def __init__(self, net: nn.Module, optimizer: Callable[[Any], Optimizer], monitor: DeadKernelMonitor) -> None:
        super().__init__()
        self.net, self.make, self.monitor = net, optimizer, monitor
        self.done: list[Any] = []

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_epoch_end(self) -> None:
        report = self.monitor.report
        if report is not None and report.global_step == self.global_step:
            self.done.append(revive(self, report, self.optimizers()))

    def configure_optimizers(self) -> Optimizer:
        return self.make(self.net.parameters())


TRAINED: dict[str, tuple[int, int, Callable[[], L.LightningModule]]] = {
    "knocked out": (3, 4, lambda: PlainCNN(width=16, optimizer="sgd", lr=0.4)),
    "decayed": (0, 16, lambda: SmallCNN(width=16, optimizer="adam", lr=0.02, weight_decay=0.02)),
}


@pytest.mark.parametrize("cause", TRAINED)
def test_kernels_that_a_training_has_killed_have_gradients_again(cause: str) -> None:
    seed, epochs, make = TRAINED[cause]
    L.seed_everything(seed, verbose=False)
    model, data, monitor = make(), DigitsDataModule(batch_size=32), quiet()
    L.Trainer(**SHORT | {"max_epochs": epochs, "callbacks": [monitor]}).fit(model, data)
    report = last(monitor)
    dead = report.dead_channels
    by_cause = [f for f in report.findings if f.cause_word == cause]
    assert any(set(finding.channels) & set(dead[finding.layer or ""]) for finding in by_cause)
    pictures, labels = (torch.cat(column) for column in zip(*data.train_dataloader(), strict=True))
    model.train()
    before = copy.deepcopy(model)(pictures)
    optimizer = model.trainer.optimizers[0]
    done = revive(model, report, optimizer)
    assert {name: list(channels) for name, channels in done.revived.items()} == dead
    torch.testing.assert_close(
        copy.deepcopy(model)(pictures), before, rtol=0, atol=1e-5 * float(before.detach().abs().max())
    )
    layers = {layer.name: layer for layer in LayerTable.of(model, None, None).layers}
    alive = {name: torch.zeros(layers[name].channels, dtype=torch.bool) for name in dead}
    for step in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(pictures[step::10]), labels[step::10]).backward()
        optimizer.step()
        for name in dead:
            alive[name] |= layers[name].rows(layers[name].main.grad).abs().amax(1) > 0
    assert all(bool(alive[name][channels].all()) for name, channels in dead.items())


def test_a_users_own_hook_revives_what_each_window_found() -> None:
    L.seed_everything(0, verbose=False)
    monitor = quiet()
    module = Reviving(mlp(64, 64, 64, 10), lambda parameters: SGD(parameters, lr=2.0), monitor)
    train(module, monitor=monitor, epochs=6)
    assert len(module.done) == 6
    asked = came_back = 0
    for done, after in zip(module.done, monitor.reports[2:], strict=False):
        asked += sum(map(len, done.revived.values()))
        came_back += sum(len(set(channels) - set(after[name].dead)) for name, channels in done.revived.items())
    assert asked > 32
    assert came_back > 0.9 * asked


# -- what is asked for wrongly ----------------------------------------------------------------------------------------


def test_dormant_kernels_are_left_unless_asked_for() -> None:
    net, _, report, optimizer = example()
    first = report["first"]
    report = replace(
        report, layers=(replace(first, codes=codes(8, {"dormant": (2,), "dead": (4,)})), *report.layers[1:])
    )
    assert dict(revive(net, report, optimizer).revived) == {"first": (4,)}
    assert dict(revive(net, report, optimizer, dormant=True).revived) == {"first": (2, 4)}


def test_a_report_from_a_file_serves_as_well(tmp_path: Path) -> None:
    net, _, report, optimizer = example()
    report.save(tmp_path / "report.json")
    done = revive(net, Report.load(tmp_path / "report.json"), optimizer)
    assert str(done) == "first: 2 kernels (1, 4) drawn anew"


class Strange(SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["memory"] = torch.ones_like(parameter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net, report, optimizer: ((net, report, optimizer, "other"), {}), 'Expected `method` to be "redo"'),
        (
            lambda net, report, optimizer: ((net.first, report, optimizer), {}),
            "has a layer 'first' of 8 channels, and the module has none of that name",
        ),
        (lambda net, report, optimizer: ((net, report.compact(), optimizer), {}), "what reads 'first' is not in it"),
        (
            lambda net, report, optimizer: ((net, report, _stepped(Strange(net.parameters(), 0.1))), {}),
            "but Strange also keeps memory",
        ),
        (
            lambda net, report, optimizer: ((net, report, _searched(net)), {}),
            "but LBFGS also keeps",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(change: Any, message: str) -> None:
    net, _, report, optimizer = example()
    arguments, options = change(net, report, optimizer)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        revive(*arguments, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def _stepped(optimizer: Optimizer) -> Optimizer:
    optimizer.step()
    return optimizer


def _searched(net: Net) -> Optimizer:
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net.training_step([images()], 0)
        loss.backward()
        return loss  # type: ignore[no-any-return]

    optimizer.step(closure)
    return optimizer
