"""Does a kernel's firing rate foretell its death? Shares that died within five windows, by kind of network.

    python tests/benchmarks/risk.py

Each kind is held out in turn: the shares of the others, against what came of its own kernels.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn
from torch.optim import SGD, Adam

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.short_runs import conv_norm_net, mlp, train
from helpers.training import quiet
from lightning_deadkernel import DeadKernelMonitor

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.01)
"""Upper ends of the classes of firing rates."""
AHEAD, EPOCHS, SEEDS = 5, 12, 3
Make = Callable[[], nn.Module]


def plain_cnn() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def sgd(lr: float) -> Callable[[Any], Any]:
    return lambda parameters: SGD(parameters, lr=lr)


def adam(lr: float) -> Callable[[Any], Any]:
    return lambda parameters: Adam(parameters, lr=lr)


KINDS: dict[str, tuple[Make, list[Callable[[Any], Any]]]] = {
    "MLP, SGD": (lambda: mlp(64, 64, 64, 64, 10), [sgd(0.1), sgd(0.5), sgd(1.0)]),
    "MLP, Adam": (lambda: mlp(64, 64, 64, 64, 10), [adam(1e-3), adam(1e-2), adam(3e-2)]),
    "CNN, SGD": (plain_cnn, [sgd(0.1), sgd(0.3), sgd(0.6)]),
    "CNN, Adam": (plain_cnn, [adam(1e-3), adam(1e-2), adam(3e-2)]),
    "CNN with batch norm, Adam": (conv_norm_net, [adam(1e-3), adam(1e-2), adam(1e-1)]),
}


class Rates(L.Callback):
    """Firing rates and deaths of every window."""

    def __init__(self, monitor: DeadKernelMonitor) -> None:
        self.monitor = monitor
        self.windows: list[dict[str, tuple[list[float], set[int]]]] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        assert self.monitor.report is not None
        rows = [row for row in self.monitor.report.watched if row.gating and row.values and row.values.firing_rate]
        self.windows.append({row.name: (row.values.firing_rate, set(row.dead)) for row in rows if row.values})


def fates(make: Make, optimizer: Callable[[Any], Any], seed: int) -> Iterator[tuple[int, bool]]:
    """Class of the firing rate of a kernel that is alive, and whether it was dead in one of the next five windows."""
    L.seed_everything(seed, verbose=False)
    monitor = quiet(log_histograms=False)
    seen = Rates(monitor)
    train(make(), optimizer, epochs=EPOCHS, monitor=monitor, beside=[seen])
    for now, window in enumerate(seen.windows[:-AHEAD]):
        for name, (rates, dead) in window.items():
            later = set[int]().union(*(after[name][1] for after in seen.windows[now + 1 : now + 1 + AHEAD]))
            for channel in set(range(len(rates))) - dead:
                yield next(k for k, end in enumerate(RATES) if rates[channel] < end), channel in later


def main() -> None:
    counts: dict[str, dict[int, list[int]]] = {}
    for kind, (make, optimizers) in KINDS.items():
        counts[kind] = defaultdict(lambda: [0, 0])
        for optimizer in optimizers:
            for seed in range(SEEDS):
                for rate, died in fates(make, optimizer, seed):
                    counts[kind][rate][0] += 1
                    counts[kind][rate][1] += died
    heads = " | ".join(f"below {end:g}" for end in RATES)
    print(f"| kind | {heads} |\n|{' --- |' * (len(RATES) + 1)}")
    for kind, of in counts.items():
        cells = []
        for rate in range(len(RATES)):
            others = [sum(other[rate][i] for name, other in counts.items() if name != kind) for i in (0, 1)]
            known, died = of[rate]
            foretold = f"{others[1] / others[0]:.1%}" if others[0] else "?"
            cells.append(f"{died} of {known} ({died / known:.1%}; {foretold})" if known else f"none ({foretold})")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
