"""Kernels that die, and what took them: a reckless step, the first draw, the scale of the inputs, a penalty."""

from __future__ import annotations

from helpers.short_runs import found, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import Eye, situation


@situation(
    "https://cs231n.github.io/neural-networks-1/",
    first=("dead_channels net.*: knocked out", "update_too_large net.*: reckless updates"),
    advice=("lr=2 of SGD", "warm it up"),
    besides=("starved_channels net.*: dead downstream",),
    never=("weight decay",),
)
def up_to_forty_percent_of_the_relus_died_after_one_step_at_a_high_rate() -> DeadKernelMonitor:
    eye = Eye("net.2", "net.4", "net.6")
    monitor = train(mlp(64, 64, 64, 64, 64, 10), sgd(2.0), beside=[eye])
    for layer, activation in (("net.1", "net.2"), ("net.3", "net.4"), ("net.5", "net.6")):
        assert last(monitor)[layer].dead == eye.never(activation)
    assert found(last(monitor), "dead_channels")
    return monitor
