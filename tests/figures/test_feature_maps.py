"""Feature maps: what is shown is what the network makes of the sample, and the network is not touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from helpers.short_runs import Training, digits, sgd
from helpers.training import fit, quiet
from lightning_deadkernel import Report, figures, plot_feature_maps
from lightning_deadkernel.figures.feature_maps import activations_of


class Net(nn.Module):
    """A convolution, a norm and a functional ReLU; then a linear layer with a ReLU that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 6 * 6, 12)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 10)

    def maps(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(F.relu_(self.fc(self.maps(images).flatten(1)))))
        return logits


class Sequence(nn.Module):
    """Units over a sequence, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.embed(images[:, 0])).mean(1))
        return logits


def trained(net: nn.Module) -> tuple[nn.Module, Report, list[Tensor]]:
    torch.manual_seed(0)
    monitor = fit(Training(net, sgd(0.05)), DataLoader(digits(), 64), limit_train_batches=8)
    assert monitor.report is not None
    return net, monitor.report, next(iter(DataLoader(digits(), 16)))


class _Wrapped(nn.Module):
    """The names that the layers had in training."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.net(images)
        return made


def renamed(net: nn.Module, report: Report, batch: list[Tensor], layer: str, **options: Any) -> Any:
    return plot_feature_maps(_Wrapped(net), batch, layer, report, **options)


def title(figure: Any) -> str:
    return str(figure.get_suptitle()).replace("\n", " ")


def texts(figure: Any) -> str:
    return " ".join(text.get_text() for text in [*figure.texts, *figure.axes[0].texts]).replace("\n", " ")


def test_the_maps_are_those_after_the_norm_and_the_activation() -> None:
    net, _, (images, _) = trained(Net())
    net.eval()
    with torch.no_grad():
        expected = net.maps(images)  # type: ignore[operator]
    torch.testing.assert_close(activations_of(net, images, "conv"), expected)
    assert activations_of(net, images, "fc").shape == (16, 12)


def test_units_of_a_sequence_come_with_their_positions() -> None:
    net, _, (images, _) = trained(Sequence())
    expected = F.relu(net.embed(images[:, 0])).transpose(1, 2)  # type: ignore[operator]
    torch.testing.assert_close(activations_of(net, images, "embed"), expected.detach())


def test_the_network_stays_as_it_is() -> None:
    net, report, batch = trained(Net())
    net.train()
    net.norm.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    random = torch.get_rng_state()
    renamed(net, report, batch, "net.conv")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is None or torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert (net.training, net.norm.training) == (True, False)  # type: ignore[union-attr]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_map_that_does_not_fire_here_says_on_how_many_samples_it_does() -> None:
    net, report, (images, labels) = trained(Net())
    with torch.no_grad():
        net.conv.weight[2] = 0  # type: ignore[index, union-attr]
        net.norm.weight[2] = 0  # type: ignore[index, union-attr]
        net.norm.bias[2] = -1  # type: ignore[index, union-attr]
    net.eval()
    dark = ~(net.maps(images)[3] > 0).flatten(1).any(1)  # type: ignore[operator]
    assert dark[2]
    figure = renamed(net, report, [images, labels], "net.conv", sample=3)
    assert f"net.conv: {int(dark.sum())} of 6 maps do not fire on this sample" in figure.get_suptitle().replace(
        "\n", " "
    )
    assert "2 0 of 16" in texts(figure)
    assert len(figure.axes[0].images) == 1 + 6
    figures.png(figure)


@pytest.mark.parametrize(
    ("net", "layer", "across"), [(Net(), "net.fc", "sample"), (Sequence(), "net.embed", "position")]
)
def test_units_are_shown_over_samples_or_positions(net: nn.Module, layer: str, across: str) -> None:
    net, report, batch = trained(net)
    figure = renamed(net, report, batch, layer)
    assert figure.axes[0].get_xlabel() == across
    figures.png(figure)


class Deaf(nn.Module):
    """Two convolutions. Of the second one kernel never fires, and one on the sample that is marked by its pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight.fill_(0.1)
            self.second.weight.fill_(0.1)
            for part in (self.first, self.second, self.head):
                part.bias.fill_(1.0)
            self.second.bias[4] = -100.0
            self.second.bias[2], self.second.weight[2] = -1.0, 10.0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.second(F.relu(self.first(images)))).mean((2, 3)))
        return logits


def report_of_marked_last_batch(marked: int) -> Any:
    """Of 12 steps of 4 samples; on the marked ones, first of their batches, all of `first` is zero."""
    images = torch.ones(48, 1, 5, 5)
    images[[44 - 4 * place for place in range(marked)]] = -100.0
    batches = DataLoader(TensorDataset(images, torch.zeros(48, dtype=torch.int64)), 4)
    return fit(Training(Deaf(), sgd(0.0)), batches, monitor=quiet(log_figures=True), log_every_n_steps=1)


def test_a_run_shows_what_the_worst_layer_makes_of_a_sample_and_on_how_many_others_it_fires() -> None:
    monitor = report_of_marked_last_batch(3)
    figure = figures.PICTURES["worst_feature_maps"](monitor.reports)
    assert figure is not None
    assert title(figure) == "net.second: 2 of 6 maps do not fire on this sample, 1 of them on no sample of the window"
    said = texts(figure)
    assert "2 45 of 48" in said
    assert "4 never" in said
    assert "on how many of the 48 samples that were looked at they do" in said
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["dead", "fires on other samples"]
    shown = [image.get_array() for image in figure.axes[0].images]
    assert [bool(picture.any()) for picture in shown[1:]] == [True, True, False, True, False, True]
    first = figures.PICTURES["first_feature_maps"](monitor.reports)
    assert first is not None
    assert "net.first: 4 of 4 maps do not fire on this sample, but each on others" in title(first)


def test_where_all_fire_the_first_layer_alone_is_shown() -> None:
    net, *_ = trained(Net())
    monitor = fit(Training(net, sgd(0.0)), DataLoader(digits(), 64), monitor=quiet(log_figures=True))
    assert monitor.report is not None
    assert not monitor.report.dead_channels
    assert figures.PICTURES["first_feature_maps"](monitor.reports) is not None
    assert figures.PICTURES["worst_feature_maps"](monitor.reports) is None


def test_what_cannot_be_shown_is_said_in_the_users_words() -> None:
    net, report, batch = trained(Net())
    with pytest.raises(ValueError, match=r"Expected a layer whose activation can be read \(net.conv, net.fc\)"):
        renamed(net, report, batch, "net.head")
    with pytest.raises(KeyError, match=r"near names: 'net\.conv'"):
        renamed(net, report, batch, "net.cnov")
    with pytest.raises(TypeError, match="Expected `batch` to be a tensor"):
        renamed(net, report, {"image": batch[0]}, "net.conv")  # type: ignore[arg-type]
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="depend on weights that are trained"):
        renamed(net, report, batch, "net.conv")
