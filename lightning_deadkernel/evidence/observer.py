"""One model under observation: what is done at each point of a training step. Knows torch, not Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence
from lightning_deadkernel.evidence.step_statistics import StepSampler
from lightning_deadkernel.functional.firing import channel_max
from lightning_deadkernel.functional.kernels import checksums
from lightning_deadkernel.graph.facts import ActivationKey, Source
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.ops import CHECKPOINTS, canonical
from lightning_deadkernel.graph.paths import ActivationRead
from lightning_deadkernel.graph.reader import GraphReader, StepMap
from lightning_deadkernel.graph.sharding import local, unsharded, whole


class Observer:
    """Evidence of the open window, and the graph facts it is gathered by."""

    def __init__(self, model: nn.Module, table: LayerTable, when_compiled: str, surprise: Callable[[str, str], None]):
        watched = table.watched
        self.model, self.table = model, table
        self.when_compiled = when_compiled
        self.surprise = surprise
        """Called with a layer's name and the reason when it can no longer be watched."""
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        first = next((layer.main for layer in watched), None)
        self.device = local(first).device if first is not None else torch.device("cpu")
        wide = any(layer.main.dtype == torch.float64 for layer in watched)
        self.reader = GraphReader(table)
        self.evidence = ChannelEvidence(torch.float64 if wide else torch.float32).to(self.device)
        sizes = {id(parameter): parameter.numel() for parameter in model.parameters() if not _is_lazy(parameter)}
        names = {key: name for key, name in self.names.items() if key in sizes}
        self.sampler = StepSampler(watched, names, sizes, self.device)
        self.several_optimizers = False
        self.checksums: dict[str, Tensor] = {}
        self.hides = False
        """Reentrant activation checkpointing keeps the ops of some layers out of the graph."""
        self.open_window()
        self.arrange()

    def open_window(self) -> None:
        """Forgets the last window's evidence."""
        self.evidence.reset()
        self.sampler.reset()
        self.reached: set[str] = set()
        self.backwards = 0
        self.unread = 0
        """Backwards of this window whose pending activations were not read (compiled steps)."""
        self.looked = False
        """A graph that was not compiled was read in this window."""
        self._alive: frozenset[str] | None = None
        self._settled = False
        """Every layer was in some graph of this window, and every channel is known to have fired."""

    # -- layout --------------------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Gives every watched layer and every site known so far its place in the evidence."""
        sources = {layer.name: self.reader.facts[layer.name].source or Source(layer) for layer in self.reader.watched}
        sites = dict(self.evidence.sites)
        for facts in self.reader.facts.values():
            sites.update((key, facts.layer.channels) for key in facts.activations if key not in sites)
        self.evidence.arrange(sources, sites)
        self._settled = False

    # -- one step ------------------------------------------------------------------------------------------------

    def before_backward(self, loss: Tensor, sampled: bool) -> bool:
        """Reads this step's activations where some channel has not fired yet, and all of them on a sampled step.

        Returns:
            Whether a graph of new shape was learned.
        """
        self.backwards += 1
        if loss.grad_fn is None:
            return False
        if not sampled and (self._settled or self._settles()):
            return False
        gathered = unsharded(self.model) if self.sampler.sharded else None
        nodes, found, new = self.reader.read(loss.grad_fn, gathered)
        if new:
            self.arrange()
            self.hides = self.hides or any(canonical(node) in CHECKPOINTS for node in nodes)
        self.reached |= found.names
        self._alive = found.names if self.several_optimizers else None
        if found.compiled:
            self.unread += 1
        else:
            self.looked = True
            self._read(nodes, found, sampled)
        return new

    def wants_to_look(self) -> bool:
        """Whether the model is compiled, activations may be read, and none were in this window."""
        return self.reader.compiled and self.when_compiled == "sample" and not self.looked

    def _settles(self) -> bool:
        """Whether no graph has to be read any more; with several optimizers each tells who takes part in its step."""
        fired = self.evidence.all_fired()  # first: it takes in what has been counted meanwhile
        self._settled = fired and not self.several_optimizers and len(self.reached) >= len(self.sampler.layers)
        return self._settled

    def _read(self, nodes: list[Any], found: StepMap, sampled: bool) -> None:
        pending = self.evidence.silent.pending
        seen: dict[ActivationKey, Tensor] = {}
        for site, read in found.reads:
            if not sampled and site not in pending:
                continue
            try:
                saved = read.activation.saved_tensor(nodes[read.node])
                if not read.fits(saved):
                    self.reader.drop(found)
                    raise LookupError("its feature map changes shape from step to step")
                largest = self._look(site, read, saved, sampled)
                seen[site] = torch.fmax(seen[site], largest) if site in seen else largest
            except Exception as error:  # a surprise at one activation ends the watch over its layers alone
                self._give_up(site, error)
        if seen:
            self.evidence.read_activations(seen)

    def _look(self, site: ActivationKey, read: ActivationRead, saved: Tensor, sampled: bool) -> Tensor:
        """(C,) that is > 0 where a channel fired."""
        activation = read.activation
        if sampled:
            firings = self.evidence.sample_activation(site, activation, read.at, saved)
            if activation.rectifies:
                return firings
        return channel_max(activation.positive(saved) if activation.positive else saved, read.at)

    def _give_up(self, site: ActivationKey, error: Exception) -> None:
        for name in site:
            facts = self.reader.facts[name]
            if facts.excluded is None:
                facts.exclude(f"reading its activation failed: {error}")
                self.surprise(name, str(facts.excluded))

    def after_backward(self, sampled: bool) -> None:
        """Takes the gradients of this backward: the arena on every step, unseen kernels on a sampled one."""
        if self.hides and not self.several_optimizers:
            for layer in self.reader.watched:
                if layer.name not in self.reached and layer.main.grad is not None:
                    self.reached.add(layer.name)
                    facts = self.reader.facts[layer.name]
                    facts.remark = facts.remark or "activation checkpointing (reentrant) hides its ops"
        self.evidence.read_gradients(self._alive)
        if sampled:
            self.evidence.read_kernels()

    def before_step(self, optimizer: Any, scaler: Any, scale_left: Tensor | None, half: bool, last: bool) -> None:
        """On a sampled step: sizes of the gradients, and a copy of weights for the update ratio."""
        self.sampler.before_step(optimizer, scaler, scale_left, half, last)

    def after_step(self) -> None:
        """On a sampled step: the update ratio; the copy is freed."""
        self.sampler.after_step()

    # -- weights between windows ---------------------------------------------------------------------------------

    def changed_since_last(self) -> dict[str, Tensor]:
        """(C,) bool per layer: whether a bit of the kernel, in any of its parameters, changed since the last call."""
        changed = {}
        for layer in self.reader.watched:
            sums = [
                checksums(rows)
                for rows in (layer.rows_of(whole(leaf.detach())) for leaf in layer.leaves if leaf.requires_grad)
                if rows is not None
            ]
            if not sums:
                continue
            now = torch.stack(sums)
            before = self.checksums.get(layer.name)
            if before is not None and before.shape == now.shape:
                changed[layer.name] = (now != before.to(now.device)).any(0)
            self.checksums[layer.name] = now
        return changed

    # -- ranks and resume ----------------------------------------------------------------------------------------

    def sites_known(self) -> list[tuple[ActivationKey, int]]:
        """Sites and their channels, for the ranks to agree on one layout."""
        return sorted(self.evidence.sites.items())

    def agree_on_sites(self, sites: Sequence[tuple[ActivationKey, int]]) -> None:
        """Lays the evidence out in the order that all ranks use."""
        if list(self.evidence.sites.items()) != list(sites):
            self.evidence.arrange(self.evidence.sources, dict(sites))
            self._settled = False


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter)
