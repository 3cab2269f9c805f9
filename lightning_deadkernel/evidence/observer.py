"""One model under observation: what is done at each point of a training step. Knows torch, not Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence, renamed
from lightning_deadkernel.evidence.looks import Look
from lightning_deadkernel.evidence.one_sample import take_sample
from lightning_deadkernel.evidence.open_window import Checksums, OpenWindow
from lightning_deadkernel.evidence.sampled import Sample, sums_of
from lightning_deadkernel.evidence.step_statistics import StepStatistics
from lightning_deadkernel.functional.firing import channel_max
from lightning_deadkernel.functional.kernels import offset_and_spread
from lightning_deadkernel.graph.facts import ActivationKey, Source
from lightning_deadkernel.graph.layers import LayerTable
from lightning_deadkernel.graph.ops import CHECKPOINTS, canonical, peek
from lightning_deadkernel.graph.reader import MAPS, GraphReader, StepMap
from lightning_deadkernel.graph.sharding import local, unsharded

FEWEST = 4
"""Samples and positions of which the spread is some."""


class Observer:
    """Reads each step's graph and gradients into the open window.

    Args:
        model: what is trained.
        table: its layers.
        toggles: steps may turn `requires_grad` off for a moment (`toggle_optimizer` of manual optimization).
        several_optimizers: each backward may be of a part of the model, while the rest holds stale gradients.
        compiled: the model is known to run through `torch.compile`.
        reads_compiled: activations of a compiled model are to be read, on steps that run eagerly.
        update_ratio: whether to measure it.
        layer_lost: called with a layer's name and the reason when it can no longer be watched.
        layers_changed: called when the model has other layers than before, with the table of those before and what
            those that stay are called now.
    """

    def __init__(
        self,
        model: nn.Module,
        table: LayerTable,
        *,
        toggles: bool = False,
        several_optimizers: bool = False,
        compiled: bool = False,
        reads_compiled: bool = True,
        update_ratio: bool = True,
        layer_lost: Callable[[str, str], None] = lambda name, reason: None,
        layers_changed: Callable[[LayerTable, dict[str, str]], None] = lambda before, names: None,
    ) -> None:
        self.model = model
        self.several_optimizers, self.reads_compiled = several_optimizers, reads_compiled
        self.toggles = toggles
        self.layer_lost, self.layers_changed = layer_lost, layers_changed
        self.reader = GraphReader(table, compiled, self._check_while_whole)
        layers = table.watched
        first = next((layer.main for layer in layers), None)
        device = local(first).device if first is not None else torch.device("cpu")
        self.window = OpenWindow(
            ChannelEvidence(device, {}, {}),
            StepStatistics(model, layers, device, update_ratio),
        )
        self._outdated = False
        """What graphs taught before the layers changed is to be forgotten when the window ends."""
        self._hides = False
        """Reentrant activation checkpointing keeps the ops of some layers out of the graph."""
        self._looks: dict[int, tuple[StepMap, dict[int, Look]]] = {}
        """id of a map -> the map, which is held so that no other has its id, and its looks."""
        self._taking_part: frozenset[str] | None = None
        """Layers in the graph of this backward; None: all that have a gradient."""
        self._looked_up: dict[str, Tensor] = {}
        """Tables of this backward -> (n,) the rows that it looks up."""
        self.arrange()

    def arrange(self, names: Mapping[str, str] | None = None) -> None:
        """Gives every layer and every activation known so far its place in the evidence; `names` as in `renamed`."""
        facts = self.reader.facts
        activations = {renamed(key, names): channels for key, channels in self.window.channels.activations.items()}
        activations.pop((), None)
        for layer in facts.values():
            activations.update((key, layer.layer.channels) for key in layer.activations if key not in activations)
        # of all in the table, so that the ranks hold the same whatever is excluded later
        sources = {
            name: (facts[name].source if facts[name].excluded is None else None) or Source(facts[name].layer)
            for name in (layer.name for layer in self.window.steps.layers)
        }
        self.window.arrange(sources, activations, names)

    def begin_window(self, index: int, checksums: Checksums | None = None) -> None:
        """See `OpenWindow.reset`. Where layers have changed meanwhile, graphs teach anew from here on."""
        if self._outdated or self.reader.has_dropped:
            self.reader.forget() if self._outdated else self.reader.forget_unused()
            self.arrange({})
            self._outdated = False
        self.window.reset(index, checksums)

    def exclude(self, reasons: dict[str, str]) -> None:
        """Watches these layers (name -> why not) no more; those that are excluded already keep their reason."""
        for name, reason in reasons.items():
            if self.reader.facts[name].excluded is None:
                self.reader.facts[name].exclude(reason)

    def check_layers(self, in_step: bool = False) -> bool:
        """Takes up the layers that the model has now, where they are others than before; whether they are."""
        table = self.reader.table.now(in_step and self.toggles)
        if table is None:
            return False
        before, names = self.reader.table, {was: name for name, was in table.names_in(self.reader.table).items()}
        self.reader.renew(table)
        self.window.renew(self.model, table.watched, names)
        self.arrange(names)
        self._outdated = True
        self.layers_changed(before, names)
        return True

    def _check_while_whole(self) -> None:
        if not self.window.steps.sharded:  # whose modules hold other parameters during a step
            self.check_layers(in_step=True)

    # -- one step ------------------------------------------------------------------------------------------------

    def before_backward(self, loss: Tensor, sampled: bool, for_pictures: bool = False) -> None:
        """Reads this step's activations where some channel has not fired yet, and all of them on a sampled step; for
        pictures also what the network makes of one sample."""
        window = self.window
        began = window.is_first_bad_loss(loss)
        sampled = began or sampled  # the graph shows where that began
        if self._looked_up:
            self._looked_up = {}
        if window.settled and not sampled:
            return
        # with several optimizers each graph tells who takes part in its step
        if loss.grad_fn is None or (not sampled and not self.several_optimizers and window.check_settled()):
            return
        gathered = unsharded(self.model) if window.steps.sharded else None
        nodes, found, new = self.reader.read(loss.grad_fn, gathered, window.looked)
        if new:
            self.arrange()
            self._hides = self._hides or any(canonical(node) in CHECKPOINTS for node in nodes)
        elif sampled and found.says_otherwise(nodes):
            self.reader.unbind(found)
            self._outdated = True
        self._taking_part = found.names if self.several_optimizers else None
        window.add_graph(found.names, found.compiled)
        if not found.compiled:
            if sampled:
                self._read_data(nodes, found, began)
            self._read(nodes, found, sampled)
            self._read_lookups(nodes, found)
            if for_pictures:
                channels = window.channels
                pending = channels.not_fired.parts
                window.feature_maps |= take_sample(nodes, found, channels.activations, pending, window.rows)

    def wants_to_look(self) -> bool:
        """Of a compiled model: whether activations may be read, and none were in this window."""
        return self.reads_compiled and not self.window.looked

    def _read(self, nodes: list[Any], found: StepMap, sampled: bool) -> None:
        channels, rows = self.window.channels, self.window.rows
        pending, looks = channels.not_fired.parts, self._looks_of(found)
        seen: dict[ActivationKey, Tensor] = {}
        samples: dict[Any, list[Sample]] = {}
        for place, ((key, read), counted) in enumerate(zip(found.reads, found.counted, strict=True)):
            if not sampled and key not in pending:
                continue
            try:
                look = None if sampled else looks.get(place)
                if look is not None:
                    largest = look.again(nodes[read.node], rows, channels.not_fired.left(key, channels.device))
                    if largest is not None:
                        if look.counted is not None:
                            channels.count(key, look.counted)
                        _add(seen, key, largest)
                        continue
                activation = read.live(nodes[read.node])
                self.reader.notice(key, activation, read.part.mask)
                saved = activation.saved_tensor(nodes[read.node])
                if not read.fits(saved):
                    self.reader.drop(found)
                    if self.check_layers(in_step=True):
                        self.window.counts.unread += 1  # the map is of a model that is no more
                        return
                    raise LookupError("its feature map changes shape from step to step")
                along = read.samples_along(saved.shape, rows)
                passed = read.passed(saved, along) if counted else None
                if passed is not None:
                    channels.count(key, passed)
                if sampled:
                    sample = Sample(key, read, activation, saved, along if counted else None)
                    samples.setdefault(sample.alike or place, []).append(sample)
                    continue
                largest = channel_max(*read.laid_out(activation.positive(saved) if activation.positive else saved))
                _add(seen, key, read.spread(largest, channels.activations[key]))
                if Look.fits(read, activation, channels.activations[key]):
                    looks[place] = Look(read, activation, saved, rows, passed)
            except Exception as error:  # a surprise at one activation ends the watch over its layers alone
                self._give_up(key, error)
        if summed := [sums for group in samples.values() for sums in self._sums_of(group)]:
            channels.add_samples(summed)
        if seen:
            channels.read_activations(seen)

    def _read_data(self, nodes: list[Any], found: StepMap, began: bool) -> None:
        """Takes the size of what enters the network, once a window, and where NaN `began` also whether it is finite."""
        entering, counts = self.window.entering, self.window.counts
        for name, (place, saved, features) in found.entrances.items():
            data = peek(nodes[place], saved) if began or name not in entering else None
            if isinstance(data, Tensor) and data.is_floating_point() and data.layout is torch.strided and data.numel():
                if (
                    name not in entering and data.numel() >= FEWEST * data.shape[features]
                ):  # of one alone, none is spread
                    entering[name] = offset_and_spread(data, features)
                if began and counts.bad_data is None and not bool(data.isfinite().all()):
                    counts.bad_data = name

    def _looks_of(self, found: StepMap) -> dict[int, Look]:
        """Place of a read in a map -> how it is read on ordinary steps."""
        if len(self._looks) > MAPS:
            self._looks = {}
        return self._looks.setdefault(id(found), (found, {}))[1]

    def _sums_of(self, group: list[Sample]) -> list[tuple[tuple[ActivationKey, ...], Sequence[Tensor]]]:
        """What `ChannelEvidence.add_samples` takes, of activations that are alike."""
        try:
            keys = tuple(one.key for one in group)
            return [(keys, sums_of(group, [self.window.channels.activations[key] for key in keys]))]
        except Exception as error:
            if len(group) > 1:  # which of them it was
                return [sums for one in group for sums in self._sums_of([one])]
            self._give_up(group[0].key, error)
            return []

    def _read_lookups(self, nodes: list[Any], found: StepMap) -> None:
        pending = self.window.channels.without_gradient
        for name, places in found.lookups.items():
            indices = [peek(nodes[place], "indices") for place in places] if name in pending else []
            rows = [part.detach().flatten() for part in indices if isinstance(part, Tensor)]
            if rows and len(rows) == len(places):
                self._looked_up[name] = torch.cat(rows)

    def _give_up(self, key: ActivationKey, error: Exception) -> None:
        for name in key:
            if self.reader.facts[name].excluded is None:
                reason = f"reading its activation failed: {error}"
                self.exclude({name: reason})
                self.layer_lost(name, reason)

    def after_backward(self, sampled: bool) -> None:
        """Takes the gradients of this backward: the flat ones on every step, unseen kernels on a sampled one."""
        window = self.window
        window.counts.backwards += 1
        if self._hides and not self.several_optimizers:
            for layer in self.reader.watched:
                if layer.name not in window.reached and layer.main.grad is not None:
                    window.reached.add(layer.name)
                    facts = self.reader.facts[layer.name]
                    facts.remark = facts.remark or "activation checkpointing (reentrant) hides its ops"
        try:
            window.channels.read_gradients(self._taking_part, self._looked_up)
        except (ValueError, RuntimeError):
            if not self.check_layers(in_step=True):
                raise
            window.channels.read_gradients(self._taking_part, self._looked_up)
        if sampled:
            window.channels.read_kernels()


def _add(seen: dict[ActivationKey, Tensor], key: ActivationKey, largest: Tensor) -> None:
    """Beside what another part of the same activation has shown."""
    seen[key] = torch.fmax(seen[key], largest) if key in seen else largest
