"""Every trained weight has a row, also where it is no kernel of one op: gates, projections, tables, codes, experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_nets import Net, rows, watch
from helpers.training import fit, looked_at, quiet
from lightning_deadkernel import Report
from lightning_deadkernel.evidence import open_window
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.reader import GraphReader

SEQUENCE = rows(8, 3, 5)


def recurrent(kind: Any, **options: Any) -> Net:
    return Net(lambda net, x: net.body(x)[0], body=kind(5, 6, batch_first=True, **options))


# -- gates and projections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gates"),
    [(nn.LSTM, ["input", "forget", "cell", "output"]), (nn.GRU, ["reset", "update", "new"])],
)
def test_each_gate_of_a_recurrent_layer_has_a_row_of_its_own_numbers(kind: Any, gates: list[str]) -> None:
    torch.manual_seed(0)
    net = recurrent(kind)
    with torch.no_grad():
        net.body.weight_ih_l0[6:12].fill_(0.0)  # the second gate does not look at its input
    report = watch(net, SEQUENCE)
    names = [f"body.weight_{part}_l0.{gate}" for part in ("ih", "hh") for gate in gates]
    assert sorted(layer.name for layer in report.layers) == sorted(names)
    assert {layer.channels for layer in report.layers} == {6}
    assert {layer.rows for layer in report.layers} == {"gate"}
    assert [layer.name for layer in report.layers if layer.zero_kernels] == []  # a step has moved them
    assert report.channels == sum(layer.channels for layer in report.layers)
    assert all(layer.states == ["active"] * 6 for layer in report.layers)
    assert all(layer.excluded is None and (layer.gradient_ratio or 0) > 0 for layer in report.layers)


def test_gradient_and_update_of_a_part_are_those_of_its_rows_alone() -> None:
    torch.manual_seed(0)
    net = recurrent(nn.LSTM)
    weight, before = net.body.weight_ih_l0, net.body.weight_ih_l0.detach().clone()
    report = watch(net, SEQUENCE, batch_size=8)  # one step
    gradients = [weight.grad, net.body.weight_hh_l0.grad]
    largest = max(gate.square().mean().sqrt() for gradient in gradients for gate in gradient.split(6))
    for place, gate in enumerate(("input", "forget", "cell", "output")):
        own = slice(6 * place, 6 * place + 6)
        row = report[f"body.weight_ih_l0.{gate}"]
        assert row.gradient_ratio == pytest.approx(float(weight.grad[own].square().mean().sqrt() / largest), rel=1e-4)
        moved = (weight.detach() - before)[own].norm() / before[own].norm()
        assert row.update_ratio == pytest.approx(float(moved), rel=1e-3)
        assert row.parameters == 30


def test_a_gate_that_stands_still_is_frozen_and_the_others_are_not() -> None:
    net = recurrent(nn.LSTM)
    net.body.weight_ih_l0.register_hook(lambda gradient: torch.cat([torch.zeros(6, 5), gradient[6:]]))
    report = watch(net, SEQUENCE)
    assert report["body.weight_ih_l0.input"].zero_gradient == list(range(6))
    assert report["body.weight_ih_l0.forget"].zero_gradient == []


@looked_at
def test_a_gate_that_is_always_open_is_saturated_in_its_row_where_the_graph_shows_it() -> None:
    net = recurrent(nn.GRU)
    with torch.no_grad():
        net.body.bias_ih_l0[6 + 2] = 100.0
    report = watch(net, SEQUENCE)
    assert report["body.weight_ih_l0.update"].saturated == [2]
    assert report["body.weight_ih_l0.reset"].saturated == []
    assert report["body.weight_ih_l0.new"].activation == "tanh"


def test_packed_attention_has_a_row_for_queries_keys_and_values() -> None:
    net = Net(lambda net, x: net.body(x, x, x)[0], body=nn.MultiheadAttention(8, 2, batch_first=True))
    with torch.no_grad():
        net.body.in_proj_weight[8:12].fill_(0.0)  # the keys of the first head
        net.body.in_proj_bias.fill_(0.0)
    report = watch(net, rows(8, 5, 8), batch_size=8)
    assert [layer.name for layer in report.layers if layer.rows == "projection"] == [
        f"body.in_proj_weight.{part}" for part in "qkv"
    ]
    # keys of zero give every position the same weight, and pass no gradient to the queries of their head
    assert report["body.in_proj_weight.q"].zero_gradient == [0, 1, 2, 3]
    assert report["body.in_proj_weight.v"].zero_gradient == []


HEADS = {"packed": {}, "unpacked": {"kdim": 6, "vdim": 5}}


class Heads(Net):
    """Four heads of four channels each, 4 to 7 those of head 1; `removed` are zero from the start and stay so.

    Args:
        removed: of q, k and v, the channels without weights, biases and, but for v, gradients; what v has removed, the
            output does not read either.
        options: of `nn.MultiheadAttention`.
    """

    def __init__(self, removed: dict[str, Sequence[int]], **options: int) -> None:
        super().__init__(
            lambda net, x: net.body(x, x[..., : net.body.kdim], x[..., : net.body.vdim])[0],
            body=nn.MultiheadAttention(16, 4, batch_first=True, **options),
        )
        nn.init.normal_(self.body.in_proj_bias)
        self.named = {"q": "q_proj_weight", "k": "k_proj_weight", "v": "v_proj_weight"}
        if not options:
            self.named = {part: f"in_proj_weight.{part}" for part in "qkv"}
        for name, parameter in self.body.named_parameters():
            if name in ("in_proj_weight", "in_proj_bias"):
                where = [16 * "qkv".index(part) + channel for part, some in removed.items() for channel in some]
            elif name == "out_proj.weight":
                parameter.data[:, list(removed.get("v", ()))] = 0.0
                continue
            else:
                where = list(removed.get(name[0], ())) if name.endswith("_proj_weight") else []
            kept = torch.ones(len(parameter)).index_fill(0, torch.tensor(where, dtype=torch.int64), 0.0)
            kept = kept.view(-1, *[1] * (parameter.ndim - 1))
            parameter.data *= kept
            parameter.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient.device))

    def said(self, kind: str) -> dict[str, tuple[tuple[int, ...], str | None]]:
        """q, k or v -> the channels and the heads that findings of a kind name."""
        self.report = watch(self, rows(8, 5, 16))
        parts = {f"body.{name}": part for part, name in self.named.items()}
        return {
            parts[f.layer]: (f.channels, f.evidence.get("heads"))
            for f in self.report.findings
            if f.kind == kind and f.layer in parts
        }


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_a_head_without_weights_is_named_in_each_of_its_projections(options: dict[str, int]) -> None:
    net = Heads(dict.fromkeys("qkv", range(4, 8)), **options)
    head = ((4, 5, 6, 7), "head 1 of 4")
    assert net.said("zero_kernels") == {"q": head, "k": head, "v": head}
    assert net.report.problems[0].title.startswith(
        "12 of 48 kernels in 3 layers are zero, or next to it (head 1 of 4; "
    )
    assert {layer.name: layer.heads for layer in net.report.layers} == {
        **{f"body.{name}": 4 for name in net.named.values()},
        "body.out_proj": None,
    }


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_heads_without_keys_are_named_where_keys_are_zero_and_where_queries_get_no_gradient(
    options: dict[str, int],
) -> None:
    net = Heads({"k": (*range(4, 8), *range(12, 16))}, **options)
    heads = ((4, 5, 6, 7, 12, 13, 14, 15), "heads 1, 3 of 4")
    assert net.said("zero_kernels") == {"k": heads}
    # scores of such a head are 0 whatever its queries are
    assert net.said("no_gradient") == {"q": heads, "k": heads}
    title = next(f.title for f in net.report.findings if (f.kind, f.layer) == ("no_gradient", f"body.{net.named['q']}"))
    assert title == "no gradient arrives (heads 1, 3 of 4)"


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    "where", [range(4, 6), range(6, 10), range(4, 9), range(16)], ids="half two_halves more all".split()
)
def test_no_heads_are_named_where_channels_are_no_whole_heads_or_all_of_them(
    where: Sequence[int], options: dict[str, int]
) -> None:
    net = Heads({"v": where}, **options)
    assert net.said("zero_kernels") == {"v": (tuple(where), None)}
    of_values = [finding for finding in net.report.findings if finding.layer == f"body.{net.named['v']}"]
    assert not any("head" in finding.title for finding in of_values)


# -- tables ------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 4, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.table(words))  # type: ignore[no-any-return]


WORDS = torch.tensor([[0, 1, 2], [2, 1, 5], [5, 5, 1], [7, 2, 2]])


def found(report: Report) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f.layer or "": (f.severity, f.channels) for f in report.findings if f.kind == "dead_rows"}


@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"padding_idx": 0}], ids=["dense", "sparse", "padded"])
def test_rows_of_a_table_that_no_batch_looked_up_are_named_and_count_as_no_kernels(options: dict[str, Any]) -> None:
    report = watch(Net(lambda net, x: net.body(x), body=Words(**options)), WORDS, batch_size=1)
    absent = (3, 4, 6, 8, 9, 10, 11)
    assert found(report) == {"body.table": ("info", absent)}
    table = report["body.table"]
    assert (table.rows, table.zero_gradient) == ("table", sorted({*absent, *([0] if "padding_idx" in options else [])}))
    assert report.channels == 2
    assert report.dead_fraction == 0
    assert table.values is None


@pytest.mark.parametrize("at_hand", [True, False])
def test_a_row_looked_up_on_one_step_that_is_not_sampled_has_been_seen(
    at_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = 0
    read = GraphReader.read

    def counted(*args: Any) -> Any:
        nonlocal walks
        walks += 1
        return read(*args)

    monkeypatch.setattr(GraphReader, "read", counted)
    monkeypatch.setattr(open_window, "is_at_hand", lambda values: at_hand)
    words = torch.cat([WORDS[:1].expand(20, 3), torch.tensor([[3, 3, 3]]), WORDS[:1].expand(20, 3)])
    net = Net(lambda net, x: net.body(x), body=Words())
    report = fit(net, words, batch_size=1, monitor=quiet(), log_every_n_steps=100).report
    assert report is not None
    assert report["body.table"].zero_gradient == [4, 5, 6, 7, 8, 9, 10, 11]
    # where a walk over a graph takes longer than to read the whole table, only sampled steps read one
    assert walks == 41 if at_hand else walks < 20


def test_a_table_that_is_also_multiplied_with_is_read_whole() -> None:
    class Tied(Words):
        def forward(self, words: Tensor) -> Tensor:
            return F.linear(self.table(words), self.table.weight)

    report = watch(Net(lambda net, x: net.body(x), body=Tied()), WORDS)
    assert report["body.table"].zero_gradient == []


def one_hot(index: Tensor) -> Tensor:
    return F.one_hot(index, 6).float()


PICKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "nn.Embedding": lambda codes, index: codes(index),
    "nn.Embedding by a product": lambda codes, index: one_hot(index) @ codes.weight,
    "a parameter by index": lambda codes, index: codes.weight[index],
    "a parameter by index_select": lambda codes, index: codes.weight.index_select(0, index),
    "a parameter by a product": lambda codes, index: one_hot(index) @ codes.weight,
}


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))


@pytest.mark.parametrize("picked", PICKED)
def test_codes_that_nothing_is_near_to_are_a_warning_once_enough_batches_were_seen(picked: str) -> None:
    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(4, 5)
            self.codes = nn.Embedding(6, 4) if "Embedding" in picked else Table()
            with torch.no_grad():
                self.codes.weight[2:] = 100.0

        def forward(self, x: Tensor) -> Tensor:
            z = self.encoder(x)
            code = PICKED[picked](self.codes, torch.cdist(z, self.codes.weight).argmin(-1))
            loss = F.mse_loss(code, z.detach()) + F.mse_loss(z, code.detach())
            return loss + F.mse_loss(self.decoder(z + (code - z).detach()), x)

    def report(count: int) -> Report:
        torch.manual_seed(0)
        return watch(Net(lambda net, x: net.body(x), body=Codebook()), rows(4 * count, 5))

    (severity, channels) = found(report(9))["body.codes"]
    assert severity == "warning"
    assert set(channels) >= {2, 3, 4, 5}
    assert report(9)["body.codes"].rows == "codes"
    assert found(report(3))["body.codes"][0] == "info"


def test_a_first_layer_of_ones_among_zeros_has_kernels_and_no_codes() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(6, 4) + 0.1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x @ self.weight)

    net = Net(lambda net, x: net.head(net.body(x)), body=Own(), head=nn.Linear(4, 2))
    with torch.no_grad():
        net.body.weight[:, 2] = -1.0
    layer = watch(net, one_hot(torch.arange(8) % 6))["body"]
    assert (layer.rows, layer.channels, layer.dead) == ("kernels", 4, [2])


# -- experts -----------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    def __init__(self, together: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.rand(4, 8, 5)), nn.Parameter(torch.rand(4, 2, 8))
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.tensor([0.5, 0.0, 0.5, 0.0]).view(4, 1, 1)
        if self.together:
            hidden = F.relu(torch.bmm(x.expand(4, -1, -1), self.up.transpose(1, 2)))
            return (gate * torch.bmm(hidden, self.down.transpose(1, 2))).sum(0)
        chosen = [F.linear(F.relu(F.linear(x, self.up[e])), self.down[e]) for e in (0, 2)]
        return 0.5 * chosen[0] + 0.5 * chosen[1]


@pytest.mark.parametrize("together", [False, True])
def test_batched_experts_are_one_row_each_and_those_nothing_selects_are_dead_rows(together: bool) -> None:
    report = watch(Net(lambda net, x: net.body(x), body=Experts(together)), rows(36, 5))
    for name in ("body.up", "body.down"):
        assert (report[name].rows, report[name].channels, report[name].excluded) == ("experts", 4, None)
        assert report[name].zero_gradient == [1, 3]
        assert not report[name].saturated
    assert found(report) == dict.fromkeys(("body.up", "body.down"), ("warning", (1, 3)))


# -- other weights -----------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A low-rank adapter of own parameters, added to the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 6)
        self.down, self.up = nn.Parameter(torch.rand(2, 5)), nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


def test_the_factors_of_an_adapter_have_rows_and_the_first_gets_its_gradient_a_step_later() -> None:
    first, both = (watch(Net(lambda net, x: net.body(x), body=Adapted()), rows(8, 5), batch_size=n) for n in (8, 4))
    assert first["body.down"].zero_gradient == [0, 1]
    assert first["body.up"].zero_gradient == []
    assert both["body.down"].zero_gradient == []
    assert [both[name].excluded for name in ("body.base", "body.down", "body.up")] == [None, None, None]


def test_a_bilinear_layer_has_a_row() -> None:
    net = Net(lambda net, x: net.body(x, x), body=nn.Bilinear(5, 5, 3))
    with torch.no_grad():
        net.body.weight[1].fill_(0.0)
    report = watch(net, rows(8, 5))
    assert (report["body"].channels, report["body"].excluded) == (3, None)


class Scaled(nn.Module):
    """Scales, positions and tokens of two and more axes."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.rand(1, 1, 4)), nn.Parameter(torch.rand(4, 1, 1))
        self.positions, self.rates = nn.Parameter(torch.rand(1, 3, 4)), nn.Parameter(torch.rand(3, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale.flatten() + self.positions + self.token
        return self.head(x * self.rates.exp())  # type: ignore[no-any-return]


def test_parameters_that_hold_no_kernels_are_named_as_such_and_are_no_layers() -> None:
    report = watch(Net(lambda net, x: net.body(x), body=Scaled()), rows(8, 3, 4))
    assert [layer.name for layer in report.layers] == ["body.head"]
    (note,) = (note for note in report.notes if "no kernels" in note)
    assert note.endswith(": body.token, body.scale, body.positions, body.rates")


def test_a_vector_that_a_product_consumes_is_a_kernel() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x @ self.weight)

    report = watch(Net(lambda net, x: net.body(x), body=Head()), rows(8, 4))
    assert [(layer.name, layer.channels, layer.activation) for layer in report.layers] == [("body", 1, "relu")]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.LSTMCell(4, 3), ["weight_ih.forget", "weight_hh.output"]),
        (lambda: nn.LSTM(4, 3, proj_size=2), ["weight_hr_l0"]),
        (lambda: nn.RNN(4, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5), ["q_proj_weight", "k_proj_weight", "v_proj_weight"]),
        (lambda: nn.EmbeddingBag(4, 3), ["weight"]),
    ],
)
def test_rows_are_told_by_type(make: Callable[[], nn.Module], names: list[str]) -> None:
    assert set(names) <= set(LayerTable.of(make(), None, None).names)
