"""The open window: all that is gathered between two verdicts, merged over ranks at its end, kept by a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadkernel.evidence.channel_evidence import ChannelEvidence, Segments
from lightning_deadkernel.evidence.late_losses import LateLosses
from lightning_deadkernel.evidence.step_statistics import StepStatistics
from lightning_deadkernel.functional.kernels import SMALL, by_rows, checksums
from lightning_deadkernel.graph.facts import ActivationKey, Source
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.sharding import whole
from lightning_deadkernel.observation import Entering, FeatureMaps

VERSION = 4
"""Of the state that a checkpoint holds."""

INFINITY = float("inf")

is_at_hand = attrgetter("is_cpu")
"""Whether the values of a tensor are known without waiting for a device. To ask for the device takes ten times as long.
"""

Checksums = dict[str, Tensor]
"""Layer -> (parameters, C) checksums of its kernels."""


@dataclass(slots=True)
class Counts:
    """What happened in a window so far."""

    batches: int = 0
    optimizer_steps: int = 0
    sampled_steps: int = 0
    samples: int | None = 0
    """None where a batch's size cannot be told."""
    backwards: int = 0
    unread: int = 0
    """Backwards whose pending activations were not read (compiled steps)."""
    bad_loss: int | None = None
    """Place among the backwards of the first whose loss was NaN or infinite."""
    bad_data: str | None = None
    """First layer that was given NaN or infinite data on that backward, of what no parameter had made."""
    bad_loss_read: bool = True
    """Whether activations were read on that backward: where the loss is looked at before it (on the CPU)."""


@dataclass(frozen=True)
class Seen:
    """What a window showed on all ranks together."""

    counts: Counts
    reached: frozenset[str]
    """Layers that were in some graph of the window."""
    looked: frozenset[str]
    """Those of them that were in one whose activations were read."""
    segments: Segments
    passed: Mapping[ActivationKey, list[int]]
    """See `ChannelEvidence.passed`."""
    samples_before: Mapping[str, int]
    """Layers that came in the middle of the window -> the samples of it that they have not seen."""
    entering: Mapping[str, Entering]
    """Layers that data enters -> its size on the first rank that has it."""


class OpenWindow:
    """Everything that is gathered while a window is open."""

    def __init__(self, channels: ChannelEvidence, steps: StepStatistics) -> None:
        self.channels, self.steps = channels, steps
        self._tables = {layer.name for layer in steps.layers if layer.is_looked_up}
        self.checksums: Checksums = {}
        """Of the weights at the window's beginning."""
        self.reset(0)

    def reset(self, index: int, checksums: Checksums | None = None) -> None:
        """Begins a window.

        Args:
            index: 0 for the state at initialisation; windows count from 1.
            checksums: of the weights now; None: those that are known are still right.
        """
        self.counts = Counts()
        self._losses = LateLosses()
        self.samples_before: dict[str, int] = {}
        """Layers that came in the middle of the window -> the samples of it that they have not seen."""
        self.reached: set[str] = set()
        self.rows: int | None = None
        """Samples in the batch that is at hand; None: unknown."""
        self.looked: set[str] = set()
        """Layers whose activations were read in this window, or would have been if they had some."""
        self.feature_maps: dict[ActivationKey, FeatureMaps] = {}
        """Of one sample of the window's last step, for pictures."""
        self.entering: dict[str, Tensor] = {}
        """Layers that data enters -> (2,) its `offset_and_spread` on the first sampled step."""
        self.settled = False
        """Every layer was in some graph of this window, and every channel is known to have fired."""
        self.channels.reset()
        self.steps.reset()
        self.checksums = self.checksums if checksums is None else checksums
        self.index = index  # last: until then an interrupt finds the window before, which is closed

    # -- one step ------------------------------------------------------------------------------------------------

    def arrange(
        self,
        sources: dict[str, Source],
        activations: dict[ActivationKey, int],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Lays out the evidence for these layers and activations (key -> channels); what was seen before is kept.
        `names` as in `renamed`."""
        self.channels = self.channels.rearranged(sources, activations, names)
        self.settled = False

    def renew(self, model: nn.Module, layers: Sequence[Layer], names: Mapping[str, str]) -> None:
        """Takes up the layers of a model as it is now; what was seen of those that stay (`names`: what they were
        called -> what they are) is kept. `arrange` must follow."""
        stayed = {names[layer.name] for layer in self.steps.layers if layer.name in names}
        came = [layer for layer in layers if layer.name not in stayed]
        self.steps = self.steps.renewed(model, layers, names)
        self._tables = {layer.name for layer in layers if layer.is_looked_up}
        self.reached = {names[name] for name in self.reached if name in names}
        self.looked = {names[name] for name in self.looked if name in names}
        self.entering = {names[name]: size for name, size in self.entering.items() if name in names}
        self.checksums = {names[name]: sums for name, sums in self.checksums.items() if name in names}
        if not self.steps.sharded:  # for which all ranks would have to come here together
            self.checksums |= self.compare_weights(came)[1]
        unseen = {names[name]: samples for name, samples in self.samples_before.items() if name in names}
        self.samples_before = unseen | {layer.name: self.counts.samples or 0 for layer in came if self.counts.batches}

    def is_first_bad_loss(self, loss: Tensor) -> bool:
        """Whether this backward's loss is the window's first that is NaN or infinite, so far as it need not be waited
        for: what comes from another device is looked at when the window ends."""
        if self.counts.bad_loss is not None or loss.ndim:
            return False
        if not is_at_hand(loss):
            self._losses.append(self.counts.backwards, loss)
            return False
        value: Any = loss.tolist()  # reads the number in place, where `item` runs an operator
        if abs(value) < INFINITY:
            return False
        self.counts.bad_loss = self.counts.backwards
        return True

    def add_graph(self, layers: frozenset[str], compiled: bool) -> None:
        """Takes in which layers were in a graph, and whether its activations could be read."""
        self.reached |= layers
        self.counts.unread += compiled
        if not compiled:
            self.looked |= layers

    def check_settled(self) -> bool:
        """Whether every layer was in some graph and all channels have fired, so that no graph need be read any more.

        On the CPU all rows of tables must have been looked up, too: until then a graph tells which few are to be read.
        Elsewhere a table's whole gradient is read in a fraction of the time that a walk over a graph takes.
        """
        fired = self.channels.all_fired()  # first: it takes in what has been counted meanwhile
        seen = fired and len(self.reached) >= len(self.steps.layers)
        looked_up = not is_at_hand(self.channels.maxima) or self._tables.isdisjoint(self.channels.without_gradient)
        self.settled = seen and looked_up
        return self.settled

    def add_batch(self, size: int | None, optimizer_steps: int, sampled_steps: int) -> None:
        """Counts a batch that has ended.

        Args:
            size: samples in it; None where that cannot be told.
            optimizer_steps: of the whole window by now.
            sampled_steps: of this batch.
        """
        now = self.counts
        samples = None if size is None or now.samples is None else now.samples + size
        sampled = now.sampled_steps + sampled_steps
        # at once: an interrupt finds the batch counted, or not
        self.counts = Counts(
            now.batches + 1,
            optimizer_steps,
            sampled,
            samples,
            now.backwards,
            now.unread,
            now.bad_loss,
            now.bad_data,
            now.bad_loss_read,
        )

    # -- window ends ---------------------------------------------------------------------------------------------

    def compare_weights(self, layers: Sequence[Layer]) -> tuple[dict[str, Tensor], Checksums]:
        """What the window made of the weights. With sharded weights every rank must call it.

        Returns:
            (C,) bool per layer: whether a bit of the kernel, in any of its parameters, has changed since the window
            began; and the checksums for the next one.
        """
        names: list[str] = []
        sums: dict[int, Tensor] = {}
        small: dict[int, Tensor] = {}
        for layer, leaf in [(one, leaf) for one in layers for leaf in one.leaves if leaf.requires_grad]:
            rows = layer.rows_of(whole(leaf.detach()))
            if rows is not None:
                names.append(layer.name)
                if rows.numel() <= SMALL:
                    small[len(names) - 1] = rows
                else:  # at once: it may have been gathered from all ranks
                    sums[len(names) - 1] = checksums(rows)
        sums.update(zip(small, by_rows(checksums, list(small.values())), strict=True))
        parts: dict[str, list[Tensor]] = {}
        for place, name in enumerate(names):
            parts.setdefault(name, []).append(sums[place])
        now = {name: torch.stack(of) for name, of in parts.items()}
        changed: dict[str, Tensor] = {}
        for name, after in now.items():
            before = self.checksums.get(name)
            if before is not None and before.shape == after.shape:
                changed[name] = (after != before.to(after.device)).any(0)
        return changed, self.checksums | now

    def to_share(self) -> dict[str, Any]:
        """What the ranks tell one another before they `merge`: plain data."""
        late = self._losses.first_bad()
        if late is not None and self.counts.bad_loss is None:
            self.counts = replace(self.counts, bad_loss=late, bad_loss_read=False)
        return {
            "activations": self.channels.activations,
            "reached": self.reached,
            "looked": self.looked,
            "counts": self.counts,
            "samples_before": self.samples_before,
            "passed": self.channels.passed,
            "entering": {name: Entering(*found.tolist()) for name, found in self.entering.items()},
        }

    def prepare(self, shared: Sequence[dict[str, Any]]) -> None:
        """All that can go wrong on one rank before `merge`, in which all wait for one another; given `to_share` of
        every rank."""
        activations = {key: channels for other in shared for key, channels in other["activations"].items()}
        if activations.keys() != self.channels.activations.keys():
            self.arrange(self.channels.sources, activations)
        self.channels.flush()

    def merge(self, shared: Sequence[dict[str, Any]]) -> Seen:
        """What all ranks saw together, after `prepare`, from `to_share` of each; every rank must call it. Nothing of
        this rank's own evidence is changed."""
        samples = [other["counts"].samples for other in shared]
        bad = [other["counts"] for other in shared if other["counts"].bad_loss is not None]
        first = min(bad, key=lambda one: (one.bad_loss, not one.bad_loss_read), default=self.counts)
        counts = replace(
            self.counts,
            bad_loss=first.bad_loss,
            bad_data=first.bad_data,
            bad_loss_read=first.bad_loss_read,
            samples=None if None in samples else sum(samples),
            unread=max(other["counts"].unread for other in shared),
            backwards=max(other["counts"].backwards for other in shared),
        )
        passed: dict[ActivationKey, list[int]] = {}
        for other in shared:
            for key, numbers in other["passed"].items():
                passed[key] = [sum(pair) for pair in zip(passed.get(key, (0, 0, 0)), numbers, strict=True)]
        reached, looked = (frozenset[str]().union(*(other[of] for other in shared)) for of in ("reached", "looked"))
        before = {name: sum(other["samples_before"].get(name, 0) for other in shared) for name in self.samples_before}
        entering = {name: size for other in reversed(shared) for name, size in other["entering"].items()}
        segments = self.channels.segments(several_ranks=len(shared) > 1)
        return Seen(counts, reached, looked, segments, passed, before, entering)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self, shared: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The half-open window of all ranks together, from `to_share` of each, so that it may be taken up by any
        number of them: plain tensors, lists, strings and numbers. Every rank must call it."""
        seen = self.merge(shared)
        return {
            "version": VERSION,
            "index": self.index,
            "counts": asdict(seen.counts),
            "reached": sorted(seen.reached),
            "looked": sorted(seen.looked),
            "samples_before": dict(seen.samples_before),
            "passed": [[list(key), numbers] for key, numbers in seen.passed.items()],
            "activations": [[list(key), channels] for key, channels in self.channels.activations.items()],
            "segments": [
                [kind, list(key) if isinstance(key, tuple) else key, values]
                for (kind, key), values in seen.segments.items()
            ],
            "checksums": {name: values.cpu() for name, values in self.checksums.items()},
            "steps": self.steps.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], first_rank: bool) -> bool:
        """Takes up a half-open window. Sums are given to the first rank alone, so that they count once.

        Returns:
            False, with nothing changed, where the window was another version's or other layers'.
        """
        if state.get("version") != VERSION or not self.steps.fits(state["steps"]):
            return False
        counts = Counts(**state["counts"])
        if counts.samples is not None and not first_rank:
            counts.samples = 0
        activations = {tuple(key): channels for key, channels in state["activations"]}
        segments = {
            (kind, tuple(key) if isinstance(key, list) else key): values for kind, key, values in state["segments"]
        }
        self.channels = self.channels.loaded(segments, activations, counts.backwards, first_rank)
        if first_rank:
            self.channels.passed = {tuple(key): list(numbers) for key, numbers in state.get("passed", ())}
        self.counts, self.reached = counts, set(state["reached"])
        self.looked = set(state.get("looked", self.reached))
        before = state.get("samples_before", {})
        self.samples_before = {name: samples if first_rank else 0 for name, samples in before.items()}
        device = self.channels.device
        self.checksums = {name: values.to(device) for name, values in state["checksums"].items()}
        self.steps.load_state_dict(state["steps"], first_rank)
        return True
