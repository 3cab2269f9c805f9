"""The maps of one sample: those of the window's last step, of the first layer and of those that have not all fired."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.models import Layers, Manual, Tiny, loader
from helpers.training import fit, quiet
from helpers.twins import train_twice
from lightning_deadkernel.evidence import observer, one_sample


class Keeps(Tiny):
    """Notes the input and what follows each layer, as every step computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        net: Any = self.net
        first = F.relu(net.conv1(batch[0]))
        second = F.relu(net.norm(net.conv2(first)))
        self.seen.append({"image": batch[0], "net.conv1": first.detach(), "net.conv2": second.detach()})
        return F.cross_entropy(net.head(second.mean((2, 3))), batch[1])


def maps_of(net: Any, min_steps: int = 1, epochs: int = 2, **options: Any) -> tuple[Any, dict[str, Any]]:
    monitor = fit(net, loader(), monitor=quiet(log_figures=True, min_steps=min_steps), max_epochs=epochs, **options)
    assert monitor.report is not None
    assert monitor.report.tensors is not None
    return monitor, monitor.report.tensors.feature_maps


def test_the_maps_and_the_image_are_those_of_the_last_step() -> None:
    net = Keeps()
    _, kept = maps_of(net)
    assert list(kept) == ["net.conv1", "net.conv2"]
    for name, one in kept.items():
        assert torch.equal(one.maps, net.seen[-1][name][:1])
        assert torch.equal(one.image, net.seen[-1]["image"][0])


def test_of_a_healthy_network_only_the_first_layer_is_copied() -> None:
    net = Keeps()
    nn.init.constant_(net.net.conv1.bias, 5.0)
    nn.init.constant_(net.net.norm.bias, 5.0)  # type: ignore[operator]
    net.net.conv1.weight.data[3] = 0.1
    monitor, kept = maps_of(net, min_steps=54, epochs=10)  # which have fired is counted now and then
    assert not monitor.report.dead_channels
    assert list(kept) == ["net.conv1"]


def test_one_sample_is_copied_on_the_last_step_of_a_window_and_on_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    net = Keeps()

    def noted(*args: Any) -> Any:
        steps.append(len(net.seen))
        return one_sample.take_sample(*args)

    monkeypatch.setattr(observer, "take_sample", noted)
    maps_of(net, log_every_n_steps=1)
    assert steps == [6, 12]
    steps.clear()
    fit(net, loader(), monitor=quiet(), log_every_n_steps=1)
    assert steps == []


def test_training_is_the_same_to_the_last_bit_with_them() -> None:
    for make in (Tiny, Manual):
        run = train_twice(make, monitor=quiet(log_figures=True))
        assert set(run.report.tensors.feature_maps) == {"net.conv1", "net.conv2"}


class Twice(Layers):
    """Sees two images a sample."""

    def forward(self, x: Tensor) -> Tensor:
        both = [F.relu(self.norm(self.conv2(F.relu(self.conv1(part))))) for part in (x, x.flip(-1))]
        return self.head(sum(both).mean((2, 3)))  # type: ignore[union-attr]


class Squares(Layers):
    """Large images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, (200, 300)))


class Backwards(nn.Module):
    """A sequence whose samples run along the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.head = nn.Linear(8, 5), nn.Linear(5, 3)
        nn.init.constant_(self.units.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        self.made = F.relu(self.units(x[:, 0].transpose(0, 1)))
        return self.head(self.made.mean(0))


def with_net(net: nn.Module) -> Tiny:
    module = Tiny()
    module.net = net
    return module


def test_where_the_first_layer_runs_twice_no_image_is_said_to_be_its_input() -> None:
    _, kept = maps_of(with_net(Twice()))
    assert kept["net.conv1"].image is None
    assert kept["net.conv1"].maps.shape == (1, 4, 6, 6)


def test_large_maps_are_copied_by_the_largest_value_of_each_region() -> None:
    _, kept = maps_of(with_net(Squares()))
    maps = kept["net.conv1"].maps
    assert maps.shape == (1, 4, one_sample.FINEST, one_sample.FINEST)
    assert [bool(one.any()) for one in maps[0]] == [True, True, False, False]


def test_samples_and_units_are_told_apart_wherever_they_run() -> None:
    net = Backwards()
    _, kept = maps_of(with_net(net))
    assert torch.equal(kept["net.units"].maps, net.made[:, :1].permute(1, 2, 0))


def test_what_is_copied_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_sample, "MOST_ENTRIES", 4 * 6 * 6)
    assert list(maps_of(Keeps())[1]) == ["net.conv1"]
