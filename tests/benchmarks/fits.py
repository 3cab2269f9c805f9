"""What watching costs over whole fits, at default options, pictures and files among it.

Each fit runs in a process of its own, on one thread, with the monitor and without it in turns, and is timed by the
CPU's clock over all of its threads; what is loaded on first use (matplotlib, for one) is in it. Of several rounds the
fastest counts on both sides. Synthetic data: what a batch holds does not change what a step costs.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_deadkernel import DeadKernelMonitor, figures
from lightning_deadkernel.training.never_raise import collector_waits
from lightning_deadkernel.training.run import Run


class Net(L.LightningModule):
    """A network, cross-entropy over the last axis, and SGD or Adam."""

    def __init__(self, network: nn.Module, adam: bool):
        super().__init__()
        self.network, self.adam = network, adam

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        made = self.network(batch[0])
        loss = nn.functional.cross_entropy(made.flatten(0, -2), batch[1].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.Adam(self.parameters(), lr=1e-3)
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class SameBatch(Dataset[tuple[Tensor, Tensor]]):
    """One batch as often as an epoch has steps."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int):
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch


class GraphConvolutions(nn.Module):
    """Kipf & Welling 2017 over a random graph of Cora's size, all nodes at once."""

    def __init__(self, nodes: int = 2708, edges: int = 10556, features: int = 1433):
        super().__init__()
        self.first, self.second = nn.Linear(features, 16), nn.Linear(16, 7)
        ends = torch.randint(nodes, (2, edges))
        self.register_buffer("adjacency", torch.sparse_coo_tensor(ends, torch.full((edges,), 0.2), (nodes, nodes)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.sparse.mm(self.adjacency, self.first(x)))
        return torch.sparse.mm(self.adjacency, self.second(nn.functional.dropout(hidden, 0.5, self.training)))


class LlamaBlock(nn.Module):
    """Attention and a gated unit, each behind an RMSNorm and beside a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.unit_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        normed = self.unit_norm(x)
        return x + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))


class Added(nn.Sequential):
    """What it makes of its input is added to it, so that depth does no harm."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def residual(layers: int, width: int) -> nn.Module:
    """Linear layers behind a norm each, beside a residual stream."""
    blocks = [Added(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(layers - 1)]
    return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, 10))


def linears(layers: int, width: int) -> nn.Module:
    parts = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def activation_functions() -> nn.Module:
    """The network of UvA's course on activation functions: Fashion-MNIST, hidden sizes 512, 256, 256, 128."""
    sizes = (784, 512, 256, 256, 128)
    parts = [part for size, after in pairwise(sizes) for part in (nn.Linear(size, after), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(128, 10))


def llama() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(256, 96), *(LlamaBlock(96, 4) for _ in range(4)), nn.RMSNorm(96), nn.Linear(96, 256, bias=False)
    )


@dataclass(frozen=True)
class Fit:
    """A training from its first to its last step."""

    name: str
    target: float | None
    """The ratio that we aim at; None: none was set."""
    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    labels: tuple[int, ...]
    epochs: int
    steps: int
    adam: bool = False


def gnn(epochs: int) -> Fit:
    name = f"full-batch GNN, {epochs:,} epochs of one step"
    return Fit(name, 2.0, GraphConvolutions, lambda: torch.rand(2708, 1433), (2708,), epochs, 1, adam=True)


FITS = (
    Fit("8 linear layers, 30 x 100 steps", 1.10, lambda: linears(8, 320), lambda: torch.randn(64, 320), (64,), 30, 100),
    Fit("300 linear layers, 4 x 60 steps", 1.25, lambda: residual(300, 64), lambda: torch.randn(64, 64), (64,), 4, 60),
    gnn(200),
    gnn(1000),
    Fit(
        "UvA's activation functions, 20 x 48 steps",
        1.08, activation_functions, lambda: torch.rand(1024, 784), (1024,), 20, 48,
    ),
    Fit("tiny Llama, 6 x 60 steps", None, llama, lambda: torch.randint(256, (8, 64)), (8, 64), 6, 60, adam=True),
)  # fmt: skip


def cpu_seconds(fit: Fit, watched: bool, epochs: int) -> float:
    """CPU seconds of one fit, all threads together, in a process of its own."""
    return float(_in_child(_train, fit, watched, epochs))


def _in_child(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives in a process with torch and Lightning loaded and nothing else, on one thread."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(there, work, args))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise SystemExit(f"{work.__name__} of {args[0]} has failed") from None
    finally:
        child.join()


def _work(out: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the monitor's last word is not of this table
    out.send(work(*args))
    os._exit(0)  # nothing of the parent's is to be run again


def _train(fit: Fit, watched: bool, epochs: int) -> float:
    classes = 256 if len(fit.labels) > 1 else 7
    batch = (fit.inputs(), torch.randint(classes, fit.labels))
    model = Net(fit.network(), fit.adam)
    loader = DataLoader(SameBatch(batch, fit.steps), batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[DeadKernelMonitor(on_finding="ignore")] if watched else [],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)
        spent = time.process_time() - began
        assert not watched or list(Path(folder).rglob("report.html")), "the monitor wrote no report"
    return spent


@dataclass
class Row:
    """One line of the table."""

    fit: str
    plain_s: float
    watched_s: float
    ratio: float
    target: float | None


def measure_fits(rounds: int, only: str, quick: bool) -> list[Row]:
    """Times the fits whose names hold `only`, in turns without and with the monitor; `quick`: a few epochs of some."""
    rows = []
    for fit in FITS[:: 2 if quick else 1]:
        if only not in fit.name:
            continue
        epochs = max(2, fit.epochs // 100) if quick else fit.epochs
        times = [(cpu_seconds(fit, False, epochs), cpu_seconds(fit, True, epochs)) for _ in range(rounds)]
        plain, watched = (min(column) for column in zip(*times, strict=True))
        rows.append(Row(fit.name, plain, watched, watched / plain, fit.target))
        print(rows[-1], file=sys.stderr)
    return rows


# -- window ends and pictures -----------------------------------------------------------------------------------------


@dataclass
class EndRow:
    """What the end of a window takes, and that of a run, in a network of so many layers; milliseconds of CPU time."""

    network: str
    window_ms: float
    window_target_ms: float
    drawing_ms: float
    drawing_target_ms: float | None


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 100_000), nn.ReLU(), nn.Linear(100_000, 4))


ENDS: dict[str, tuple[Callable[[], nn.Module], int, float, float | None]] = {
    "9 layers": (lambda: residual(9, 64), 64, 10 + 9, 1500),
    "300 layers": (lambda: residual(300, 64), 64, 10 + 300, 3000),
    "1,000 layers": (lambda: residual(1000, 16), 16, 10 + 1000, None),
    "a layer of 100,000 outputs": (wide, 16, 300, None),
}
"""Name -> network, its inputs, and what we aim at for a window's end and for the pictures."""


def measure_ends(quick: bool) -> list[EndRow]:
    """Times windows' ends by default options but the pictures, and the pictures once, matplotlib's loading among it."""
    return [_in_child(_end_row, name) for name in list(ENDS)[: 1 if quick else None]]


def _end_row(name: str) -> EndRow:
    network, inputs, window_target, drawing_target = ENDS[name]
    batch = (torch.randn(64, inputs), torch.randint(4, (64,)))
    monitor = DeadKernelMonitor(every_n_train_steps=10, log_figures=False, on_finding="ignore")
    ends: list[float] = []
    close = Run._close

    def timed(run: Run, trainer: Any) -> Any:
        began = time.process_time()
        report = close(run, trainer)
        ends.append(time.process_time() - began)
        return report

    Run._close = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            callbacks=[monitor],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Net(network(), adam=False), DataLoader(SameBatch(batch, 80), batch_size=None))
    began = time.process_time()
    with collector_waits():  # as in a run
        drawn = figures.draw_all(monitor.reports)
    drawing = time.process_time() - began
    assert drawn.pictures, "nothing was drawn"
    assert not drawn.faults, drawn.faults
    median = statistics.median(ends[2:])  # after the state at initialisation and the first window
    return EndRow(name, median * 1e3, window_target, drawing * 1e3, drawing_target)
