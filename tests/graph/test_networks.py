"""Networks of many families, what they leave unwatched, and graphs that change from step to step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from helpers.tiny_nets import DEAD, Net, between, chain, conv, images, kill, reader_of, rows, watch
from helpers.training import fit


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def test_a_residual_block_is_gated_after_its_addition_and_forward_order_and_depth_are_the_graphs() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.c2(F.relu(net.c1(x))) + net.short(x))),
        head=conv(8, 2),
        c2=conv(8, 8, dead=[5]),
        short=conv(3, 8, dead=[5]),
        c1=conv(3, 8, dead=[1]),
    )
    report = watch(net, images())
    assert [layer.name for layer in report.layers] == ["c1", "c2", "short", "head"]
    assert [layer.depth for layer in report.layers] == [2, 1, 1, 0]
    assert [layer.dead for layer in report.layers] == [[1], [5], [5], []]


def test_a_pre_activation_block_hears_its_stream_at_every_later_gate() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        x = x + net.c1(F.relu(net.n1(x)))
        x = x + net.c2(F.relu(net.n2(x)))
        return net.head(F.relu(net.n3(x)))

    modules: dict[str, nn.Module] = {f"n{i}": nn.BatchNorm2d(8) for i in (1, 2, 3)}
    for norm in modules.values():
        kill(norm, 2, level=-20.0)
    kill(modules["n3"], 6, level=-20.0)
    net = Net(forward, stem=conv(), c1=conv(8), c2=conv(8), head=conv(8, 2), **modules)
    report = watch(net, images())
    assert [layer.dead for layer in report.layers] == [[2], [2], [2, 6], []]
    assert {layer.activation for layer in report.layers[:3]} == {"relu"}


def test_a_stream_that_ends_without_a_gate_is_heard_there() -> None:
    net = Net(
        lambda net, x: net.head((s := net.stem(x)) + net.c1(F.relu(s))), stem=conv(dead=[3]), c1=conv(8), head=conv(8)
    )
    report = watch(net, images())
    assert (report["stem"].dead, report["stem"].activation) == ([], None)


def test_the_layers_of_a_dense_block_are_not_given_the_wide_activation_as_their_own() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.norm(torch.cat([y := F.relu(net.a(x)), net.b(y)], 1)))),
        a=conv(3, 4, dead=[1]),
        b=conv(4, 4),
        norm=kill(nn.BatchNorm2d(8), 0, 6, level=-20.0),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert report["a"].dead == [1]
    assert (report["b"].activation, report["b"].dead, report["b"].note) == ("relu", [2], None)


def test_a_unet_finds_each_layers_own_gate_before_the_concatenation() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        skip = F.relu(net.down(x))
        deep = F.relu(net.middle(F.max_pool2d(skip, 2)))
        return net.head(F.relu(net.up(torch.cat([skip, F.interpolate(deep, scale_factor=2)], 1))))

    net = Net(
        forward, down=conv(3, 4, dead=[0]), middle=conv(4, 6, dead=[5]), up=conv(10, 4, dead=[2]), head=conv(4, 1)
    )
    report = watch(net, images())
    assert {layer.name: layer.dead for layer in report.layers} == {"down": [0], "middle": [5], "up": [2], "head": []}


def test_a_squeeze_and_excite_block_has_its_gates_told_apart() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = F.relu(net.body(x))
        gate = torch.sigmoid(net.excite(F.relu(net.squeeze(x.mean((2, 3), keepdim=True)))))
        return net.head(x * gate)

    net = Net(
        forward,
        body=conv(dead=DEAD),
        squeeze=kill(nn.Conv2d(8, 4, 1), 3),
        excite=nn.Conv2d(4, 8, 1),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert [(la.name, la.activation) for la in report.layers] == [
        ("body", "relu"),
        ("squeeze", "relu"),
        ("excite", "sigmoid"),
        ("head", None),
    ]
    assert (report["body"].dead, report["squeeze"].dead, report["excite"].dead) == (list(DEAD), [3], [])


def test_a_gate_that_reads_the_ungated_channels_makes_their_product_unknown() -> None:
    net = between(lambda net, x: x * torch.sigmoid(net.gate(x)), gate=nn.Conv2d(8, 8, 1))
    layer = watch(net, images())["conv"]
    assert layer.dead == []
    assert layer.activation is None  # the gate's kernel hears it


def test_window_partitions_and_shifts_keep_channels() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.embed(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = F.relu(x)
        x = x.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c).roll((2, 2), (1, 2))
        return net.head(x)

    report = watch(Net(forward, embed=conv(dead=DEAD), head=nn.Linear(8, 2)), images())
    assert report["embed"].dead == list(DEAD)


def test_a_convnext_block_is_read_through_its_permutes_and_layer_norm() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.depthwise(x).permute(0, 2, 3, 1)
        y = net.shrink(F.gelu(net.widen(net.norm(y)))) * net.scale.weight
        return x + y.permute(0, 3, 1, 2)

    scale = nn.Module()
    scale.register_parameter("weight", nn.Parameter(torch.ones(8)))
    net = Net(
        forward,
        depthwise=nn.Conv2d(8, 8, 7, padding=3, groups=8),
        norm=nn.LayerNorm(8),
        widen=kill(nn.Linear(8, 16), 9),
        shrink=nn.Linear(16, 8),
        scale=scale,
    )
    report = watch(net, images(channels=8))
    assert [(la.name, la.activation) for la in report.layers] == [
        ("depthwise", None),
        ("widen", "gelu"),
        ("shrink", None),
    ]
    assert report["widen"].saturated == [9]


def test_a_gated_linear_unit_gives_its_gate_an_activation_and_its_value_none() -> None:
    net = Net(
        lambda net, x: net.down(F.silu(net.gate(x)) * net.up(x)),
        gate=kill(nn.Linear(5, 8), 2),
        up=nn.Linear(5, 8),
        down=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 3, 5))
    assert [(la.name, la.activation) for la in report.layers] == [("gate", "silu"), ("up", None), ("down", None)]
    assert report["gate"].saturated == [2]


@pytest.mark.parametrize("weights", [False, True])
def test_attention_watches_its_projections_and_calls_none_of_them_dead(weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    kill(attention.out_proj)
    net = Net(
        lambda net, x: net.fc(F.relu(net.attention(x, x, x, need_weights=weights)[0])),
        attention=attention,
        fc=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 5, 8))
    assert {la.name: la.activation for la in report.layers} == {
        **{f"attention.in_proj_weight.{part}": "attention" for part in "qkv"},
        "attention.out_proj": "relu",
        "fc": None,
    }
    assert all(la.excluded is None and not la.dead for la in report.layers)


def test_a_transformer_layer_in_training_is_watched_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="relu")
    kill(layer.linear1, 3, 7)
    report = watch(Net(lambda net, x: net.body(x), body=layer), rows(8, 5, 8))
    assert report["body.linear1"].dead == [3, 7]
    assert not [la.name for la in report.layers if la.excluded]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_read_and_hide_nothing_behind_them(kind: Any) -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.fc(net.body(x)[0]))),
        body=kind(5, 6, batch_first=True),
        fc=kill(nn.Linear(6, 8), *DEAD),
        head=nn.Linear(8, 2),
    )
    report = watch(net, rows(8, 3, 5))
    assert (report["fc"].dead, report["fc"].note, report["head"].note) == (list(DEAD), None, None)
    weights = [layer for layer in report.layers if layer.name.startswith("body.")]
    assert not any(layer.dead or layer.excluded for layer in weights)
    assert all(layer.rows == "gate" or layer.activation == "tanh" for layer in weights)


class CudnnRnn(torch.autograd.Function):
    """Stands for the op that a GPU runs a whole recurrence as, by the name of its node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight, grads[0].flatten(0, -2).t() @ x.flatten(0, -2)


class Recurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return CudnnRnn.apply(x, self.weight_ih_l0)


def test_the_weight_of_a_recurrence_in_one_op_is_read_by_its_gradient() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.body(x))), body=Recurrence(), head=nn.Linear(6, 2))
    layer = watch(net, rows(8, 3, 5))["body.weight_ih_l0"]
    assert (layer.excluded, layer.evidence, layer.dead) == (None, "gradient", [])
    assert "a recurrence in one op" in (layer.note or "")


# -- what is not watched -----------------------------------------------------------------------------------------


def test_frozen_and_unused_layers_are_left_out_with_their_reason() -> None:
    frozen = conv().requires_grad_(False)
    net = Net(
        lambda net, x: net.head(F.relu(net.conv(F.relu(net.frozen(x))))),
        frozen=frozen,
        conv=conv(8, 8, dead=DEAD),
        spare=conv(),
        head=conv(8, 2),
    )
    report = watch(net, images())
    assert report["frozen"].excluded == "requires_grad=False since initialisation"
    assert report["spare"].excluded == "not in the graph of the loss: never used in the training step, or detached"
    assert report["conv"].dead == list(DEAD)
    assert [la.name for la in report.layers][:2] == ["conv", "head"]


def test_a_detached_branch_is_not_watched() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.conv(x)).detach()), conv=conv(), head=conv(8, 2))
    assert "detached" in (watch(net, images())["conv"].excluded or "")


def test_a_layer_unused_in_one_window_is_told_from_one_never_used() -> None:
    class Late(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = F.relu(self.a(batch[0]))
            if self.current_epoch == 0:
                x = F.relu(self.b(x))
            return self.head(x).square().mean()

    net = Late(lambda net, x: None, a=conv(), b=conv(8, 8, dead=[6]), head=conv(8, 2))
    monitor = fit(net, images(), max_epochs=2)
    first, second = monitor.reports[1], monitor.reports[2]
    assert (first["b"].dead, first["b"].excluded) == ([6], None)
    assert second["b"].excluded == "not used in this window"
    assert second["a"].excluded is None


def test_a_layer_skipped_on_most_steps_is_read_on_the_others() -> None:
    class Depth(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = F.relu(self.a(batch[0]))
            if batch_idx % 3 == 1:
                x = x + F.relu(self.b(x))
            return self.head(x).square().mean()

    net = Depth(lambda net, x: None, a=conv(dead=[0]), b=conv(8, 8, dead=[6]), head=conv(8, 2))
    report = watch(net, images(24))
    assert (report["a"].dead, report["b"].dead) == ([0], [6])


def test_random_depth_makes_new_graphs_and_loses_no_layer() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList([conv(8, 8, dead=[i]) for i in range(6)])

    def forward(net: Any, x: Tensor) -> Any:
        x = F.relu(net.stem(x))
        for block in net.blocks:
            if torch.rand(()) < 0.7:
                x = x + F.relu(block(x))
        return net.head(x)

    report = watch(Net(forward, stem=conv(), blocks=blocks, head=conv(8, 2)), images(48))
    assert [report[f"blocks.{i}"].dead for i in range(6)] == [[i] for i in range(6)]


@pytest.mark.parametrize("flat", [False, True])
def test_batches_of_changing_size_are_all_read(flat: bool) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.conv(x)
        x = F.relu(x.flatten(1)).view(x.shape) if flat else F.relu(x)
        return net.head(x)

    net = Net(forward, conv=conv(dead=[1, 4, 7]), head=conv(8, 2))
    with torch.no_grad():
        net.conv.weight[7], net.conv.bias[7] = 1.0, -20.0  # fires only on the last, brightest batch
    batches = [images(4, size=8), images(3, size=6), images(4, size=8), images(1, size=7), images(2, size=6) * 9]
    report = watch(net, batches)
    assert (report["conv"].dead, report["conv"].activation) == (list(DEAD), "relu")


def test_single_samples_are_batches_too() -> None:
    net = between(lambda net, x: F.relu(x))
    assert watch(net, images(3), batch_size=1)["conv"].dead == list(DEAD)


def test_lazy_modules_are_watched_once_they_have_been_given_their_shape() -> None:
    net = Net(
        lambda net, x: net.head(F.relu(net.first(x)).flatten(1)), first=nn.LazyConv2d(8, 3), head=nn.LazyLinear(2)
    )
    with torch.no_grad():
        net._forward(net, images(2))
        kill(net.first, *DEAD)
    assert watch(net, images())["first"].dead == list(DEAD)


@pytest.mark.parametrize("linear", [False, True])
def test_autocast_does_not_hide_a_layer(linear: bool) -> None:
    if linear:
        net, x = chain(kill(nn.Linear(5, 8), *DEAD), rows(8, 3, 5), nn.Linear(8, 2))
    else:
        net, x = chain(conv(dead=DEAD), images(), conv(8, 2))
    layer = watch(net, x, precision="bf16-mixed")["first"]
    assert (layer.dead, layer.activation, layer.note) == (list(DEAD), "relu", None)
    assert reader_of(net, x[:4]).facts["first"].source.parameter is net.first.bias


def test_a_penalty_in_the_loss_keeps_dead_channels_dead() -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + 1e-3 * sum(p.square().sum() for p in self.parameters())

    net = Penalised(lambda net, x: net.head(F.relu(net.conv(x))), conv=conv(dead=DEAD), head=conv(8, 2))
    assert watch(net, images())["conv"].dead == list(DEAD)


@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 5)])
def test_beside_a_penalty_on_the_kernel_the_bias_tells_whether_anything_listens(shape: tuple[int, ...]) -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.fc.weight.square().sum()

    halted = nn.Parameter(torch.ones(8).index_fill(0, torch.tensor(DEAD), 0.0), requires_grad=False)
    net = Penalised(lambda net, x: F.relu(net.fc(x)) * halted, fc=nn.Linear(5, 8))
    nn.init.constant_(net.fc.bias, 9.0)
    layer = watch(net, rows(*shape))["fc"]
    assert (layer.starved, layer.activation) == (list(DEAD), "relu")


class Priced(Net):
    """With a price on the weights of its layer ``fc``."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self._forward(self, batch[0]) + self.fc.weight.square().sum()


def test_beside_a_penalty_a_kernel_that_a_tied_decoder_reads_is_not_dead() -> None:
    net = Priced(
        lambda net, x: (F.relu(net.norm(net.fc(x))) @ net.fc.weight - x).square().mean(),
        fc=nn.Linear(5, 8),
        norm=nn.BatchNorm1d(8),
    )
    nn.init.ones_(net.norm.bias)
    with torch.no_grad():
        net.norm.bias[3] = -20.0
    assert watch(net, rows(8, 5))["fc"].states[3] == "silent"


def test_beside_a_penalty_no_bias_tells_of_a_loss_on_the_spread_of_a_channel() -> None:
    net = Priced(lambda net, x: F.relu(3 - net.fc(x[:2]).var(0)).mean(), fc=nn.Linear(5, 8))
    assert set(watch(net, rows(8, 5))["fc"].states) == {"active"}


def test_beside_a_penalty_the_bias_tells_of_a_kernel_before_a_norm_that_an_activation_keeps_apart_from_it() -> None:
    kept = torch.ones(8).index_fill(0, torch.tensor(DEAD), 0.0)
    net = Priced(
        lambda net, x: (net.norm(net.fc(x).abs() * kept) - 1).square().mean(),
        fc=nn.Linear(5, 8),
        norm=nn.GroupNorm(1, 8),
    )
    assert watch(net, rows(8, 5))["fc"].zero_gradient == list(DEAD)


def test_a_masked_kernel_at_exactly_zero_is_not_dead_though_its_weights_are_penalised_where_its_bias_learns() -> None:
    class Penalised(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.fc.weight_orig.square().sum()

    fc, head = nn.Linear(5, 8), nn.Linear(8, 2)
    nn.init.zeros_(fc.bias)
    nn.init.ones_(head.weight)  # all outputs are to go down: the bias leaves 0 downwards, and the clamp is shut
    prune.custom_from_mask(fc, "weight", torch.ones(8, 5).index_fill(0, torch.tensor([3]), 0.0))
    net = Penalised(lambda net, x: 2 + net.head(net.fc(x).clamp(min=0)), fc=fc, head=head)
    assert watch(net, rows(8, 5))["fc"].states[3] == "silent"


def test_beside_a_penalty_what_a_norm_over_channels_passes_on_is_not_the_penaltys() -> None:
    def states(level: float) -> set[str]:
        head = nn.Linear(8, 2)
        nn.init.constant_(head.bias, level)
        net = Priced(
            lambda net, x: (1 + net.head(net.norm(net.fc(x)))).clamp(min=0).square().mean(),
            fc=nn.Linear(5, 8),
            norm=nn.LayerNorm(8),
            head=head,
        )
        return set(watch(net, rows(8, 5))["fc"].states)

    assert states(0.0) == {"active"}
    assert states(-100.0) == {"zero-gradient"}  # the margins are met, so that nothing comes back


def test_what_is_written_over_a_part_of_the_channels_hides_no_activation_of_the_others() -> None:
    def half(x: Tensor) -> Tensor:
        out = x.clone()
        out[:, :4].copy_(F.relu(x[:, :4]))
        return out

    net = between(lambda net, x: half(x))
    with torch.no_grad():
        net.conv.weight[6], net.conv.bias[6] = 0.0, 0.0
        net.head.weight[:, 6] = 0.0
    assert watch(net, images())["conv"].states[6] == "zero-gradient"


def test_channels_that_an_average_mixes_before_an_activation_have_a_word_of_their_own_and_none_is_called_dead() -> None:
    def resized(net: Any, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(net.conv(x).permute(0, 2, 1, 3), (4, 8)).permute(0, 2, 1, 3)

    net = Net(lambda net, x: net.head(F.relu(resized(net, x))), conv=conv(dead=DEAD), head=nn.Conv2d(4, 2, 1))
    report = watch(net, images())
    assert (report["conv"].activation, report["conv"].dead) == ("mixed", [])
    assert "AdaptiveAvgPool2D" in (report["conv"].note or "")


def test_cross_covariance_attention_reads_its_projections() -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).reshape(4, 5, 3, 2, 4).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return net.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).permute(0, 3, 1, 2).reshape(4, 5, 8))  # type: ignore[no-any-return]

    report = watch(Net(attend, qkv=nn.Linear(6, 24), out=nn.Linear(8, 2)), rows(8, 5, 6))
    assert report["qkv"].activation == "attention"
