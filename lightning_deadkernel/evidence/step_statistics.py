"""Sizes of gradients and updates, taken on sampled steps only; kept on the device, read once per window.

A step only notes this rank's part and talks to no other rank; `StepStatistics.tables` adds the parts up.
Past 300 lines because each statistic of a step is measured and thinned beside the others, on the same copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_deadkernel.evidence.buffers import on_device
from lightning_deadkernel.evidence.lost_updates import Asked, LostUpdates
from lightning_deadkernel.functional.firing import why_unreadable
from lightning_deadkernel.functional.kernels import SQUARED, gradient_ratios, row_norms
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.sharding import is_sharded, local, share

LIMIT = 512
"""Samples of one window that are kept; past it half of them are dropped, so that memory stays bounded."""
GOLDEN = (5**0.5 - 1) / 2
ASKS = 0.34
"""Share of the sampled steps on which lost updates are counted: of a window's eight, the first, third, sixth, last."""
SERIES = ("norms", "updates", "underflow")
OF_LAYERS = ("learning_rates", "first_rates", "decays", "optimizers", "turns")
HALF_SUBNORMAL = 2.0**-14
"""float16 below this loses bits, and below 2^-24 everything."""
TURN = 1 << 21
"""Weights that are copied for the update ratio on a sampled step between a window's first and last: of a larger network
each such step measures other layers, in turn, so that a copy of many gigabytes is made twice a window at most."""
NEAR_UNDERFLOW = 0.01
"""Exact zeros count as underflow where this share of the other entries is subnormal, or where nothing else is left;
elsewhere they are mere zeros."""


@dataclass
class Series:
    """Rows of numbers, one per sampled step."""

    columns: int
    rows: list[tuple[Sequence[int], Tensor]] = field(default_factory=list)
    """Of each the columns that were observed, and the numbers in them."""
    stride: int = 1
    offered: int = 0

    @classmethod
    def of(cls, table: Tensor, stride: int, offered: int) -> Series:
        """Of a (steps, columns) table; NaN: not observed."""
        return cls(table.shape[1], [(range(table.shape[1]), row) for row in table], stride, offered)

    def keeps(self, place: int) -> bool:
        """Whether a row is kept: one in `stride`, spread by the golden ratio, so that what comes up every second or
        third step is thinned like the rest, and what a longer stride keeps a shorter one has kept."""
        return place * GOLDEN % 1 < 1 / self.stride

    def append(self, columns: Sequence[int], row: Tensor) -> None:
        """Keeps the row, or one in `stride` once the window is long."""
        if self.keeps(self.offered):
            self.rows.append((columns, row))
        self.skip()
        while len(self.rows) > LIMIT:
            places = [place for place in range(self.offered) if self.keeps(place)]
            self.stride *= 2
            self.rows = [row for place, row in zip(places, self.rows, strict=True) if self.keeps(place)]

    def skip(self) -> None:
        """Passes over a row that would not be kept."""
        self.offered += 1

    def moved(self, places: list[int], device: torch.device) -> Series:
        """The same rows with other columns: from these places, NaN where that is -1."""
        table = self.table()
        padded = torch.cat([table, table.new_full((len(table), 1), torch.nan)], dim=1)
        return Series.of(padded[:, places].to(device), self.stride, self.offered)

    def table(self) -> Tensor:
        """(steps, columns) on the CPU; NaN: not observed."""
        if not self.rows:
            return torch.empty(0, self.columns)
        found = torch.cat([row for _, row in self.rows]).cpu()
        table = found.new_full((len(self.rows), self.columns), torch.nan)
        into, start = table.numpy(), 0  # whose small operations take a third of the time
        for at, (columns, row) in enumerate(self.rows):
            into[at, columns] = found[start : start + len(row)]
            start += len(row)
        return table


@dataclass
class StepTables:
    """All sampled steps of a window, over all ranks; float64 on the CPU, NaN: not observed."""

    ratios: Tensor
    """(steps, L) R_l = rms(grad_l) / max_w rms(grad_w) over all weights w."""
    rms: Tensor
    """(steps, L) rms of each weight's gradient, unscaled and unclipped."""
    totals: Tensor
    """(steps,) L2 norm of all gradients."""
    updates: Tensor
    """(steps, L) ||dW|| / ||W||."""
    over_rate: Tensor
    """(steps, L) rms of dW over the learning rate of the step, less all that decoupled decay can have added."""
    underflow: Tensor
    """(steps, L) share of gradient entries that underflowed."""
    lost: Tensor
    """(L,) share of the entries with a gradient whose update was lost."""
    lost_elsewhere: dict[str, float]
    """The same of parameters with one axis (gains and shifts of norms, biases), by name."""
    largest_at: str | None
    """Weight with the largest rms(grad) on the last step."""


def _is_decay_apart(optimizer: Any, group: dict[str, Any]) -> bool | None:
    """Whether it applies weight decay apart from the gradient, and not through it; None: not known."""
    kind = type(optimizer)
    if group.get("decoupled_weight_decay") or "AdamW" in kind.__name__ or kind.__name__ in ("Adafactor", "Muon"):
        return True
    return False if kind.__module__.startswith("torch.optim.") else None


class StepStatistics:
    """Measures one optimizer step: gradients before it, the update after it.

    Args:
        model: all of whose real parameters' gradients are compared.
        layers: of it, whose weights are measured.
        device: where the numbers are kept.
        update_ratio: copy the weights during a sampled step, to compare them with what the step makes of them.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], device: torch.device, update_ratio: bool = True
    ) -> None:
        self.layers = list(layers)
        self.device = device
        known = [(n, p) for n, p in model.named_parameters() if not isinstance(p, UninitializedParameter)]
        parameters = {n: p for n, p in known if why_unreadable(p) is None}
        self._parts = [layer for layer in self.layers if layer.span.name]
        """Layers that are some rows of a parameter: their numbers stand behind those of the parameters."""
        self.names = [*parameters, *(layer.name for layer in self._parts)]
        sizes = [p.numel() for p in parameters.values()] + [layer.own(layer.main).numel() for layer in self._parts]
        self.sizes = torch.tensor(sizes, dtype=torch.float64)
        are_weights = [p.ndim > 1 for p in parameters.values()] + [True] * len(self._parts)
        self._weights = torch.tensor(are_weights, dtype=torch.bool)
        self._column = {id(parameter): index for index, parameter in enumerate(parameters.values())}
        self._part_column = {layer.name: len(parameters) + index for index, layer in enumerate(self._parts)}
        self._layer_column = [
            self._part_column.get(layer.name, self._column.get(id(layer.main), -1)) for layer in self.layers
        ]
        self._place = {layer.name: index for index, layer in enumerate(self.layers)}
        self.sharded = any(is_sharded(layer.main) for layer in self.layers)
        self.scaled = False
        """A gradient scaler is in use: a step whose gradients overflowed is skipped."""
        self._update_ratio = update_ratio
        self._lost = LostUpdates(len(self.names), device)
        self.reset()

    def renewed(self, model: nn.Module, layers: Sequence[Layer], names: Mapping[str, str]) -> StepStatistics:
        """The same for a model that has other parameters and layers by now; `names`: what layers that stay were
        called -> what they are."""
        new = StepStatistics(model, layers, self.device, self._update_ratio)
        new.scaled = self.scaled
        before = {now: name for name, now in names.items()}
        place = [self._place.get(before.get(layer.name, ""), -1) for layer in new.layers]
        parts = [self._part_column.get(before.get(layer.name, ""), -1) for layer in new._parts]
        columns = [self._column.get(key, -1) for key in new._column] + parts
        new.norms = self.norms.moved(columns, self.device)
        known = torch.tensor(columns, device=self.device) >= 0
        new._lost.load(torch.where(known, self._lost.counts[:, columns], 0.0))
        new.underflow = self.underflow.moved(place, self.device)
        blocks = (block * len(self.layers) for block in range(3))
        new.updates = self.updates.moved(
            [at + begin if at >= 0 else -1 for begin in blocks for at in place], self.device
        )
        for kept in OF_LAYERS:
            setattr(new, kept, {names[name]: of for name, of in getattr(self, kept).items() if name in names})
        return new

    def reset(self) -> None:
        """Begins a new window."""
        count = len(self.layers)
        self.norms, self.updates, self.underflow = Series(len(self.names)), Series(3 * count), Series(count)
        self._lost.reset()
        self.learning_rates: dict[str, float] = {}
        self.first_rates: dict[str, float] = {}
        """Layer -> learning rate on the window's first sampled step; `learning_rates` has the largest."""
        self.decays: dict[str, tuple[float, bool | None]] = {}
        """Layer -> weight decay, and whether it is applied apart from the gradient."""
        self.optimizers: dict[str, tuple[str, float]] = {}
        """Layer -> class name of its optimizer, and SGD's momentum."""
        self._noted: dict[int, Any] = {}
        """id of an optimizer -> its settings and what it steps, as they have been noted in this window."""
        self.turns: dict[str, int] = {}
        """Layer -> how often its update was measured in this window."""
        self._before: dict[str, tuple[Layer, Tensor, Tensor | None, float | Tensor]] = {}

    @torch.no_grad()
    def before_step(
        self,
        optimizer: torch.optim.Optimizer,
        loss_scale: Tensor | None = None,
        scale_left: Tensor | None = None,
        half: bool = False,
        last: bool = False,
    ) -> None:
        """Reads the gradients that `optimizer` is about to use: accumulated, unclipped.

        Args:
            optimizer: whose parameters are read.
            loss_scale: device scalar, of the gradient scaler that skips steps whose gradients overflowed; None without.
            scale_left: device scalar that the gradients are still multiplied by; None if they are unscaled.
            half: gradients are computed in float16, where small ones become exact zeros.
            last: it is the last step of the window, as far as that is foreseen.
        """
        gradients: dict[int, tuple[Tensor, Tensor]] = {
            id(p): (p, grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self._column and (grad := p.grad) is not None and not grad.is_sparse
        }
        self._note_groups(optimizer)
        self.scaled = loss_scale is not None
        if not gradients:
            return
        parts = [layer for layer in self._parts if id(layer.main) in gradients]
        grads = [local(grad) for _, grad in gradients.values()]
        grads += [layer.own(gradients[id(layer.main)][1]) for layer in parts]
        norms = _norms(grads, self.device)
        norms.nan_to_num_(torch.inf, torch.inf)  # NaN is kept for "not observed"
        if scale_left is not None:
            norms = norms / scale_left.to(self.device)
        finite = torch.isfinite(norms).all() if self.scaled else None
        if self.sharded:
            whole = [*(p for p, _ in gradients.values()), *(layer.main for layer in parts)]
            norms = norms * torch.tensor([share(p) for p in whole], device=self.device).sqrt()
        columns = [self._column[key] for key in gradients] + [self._part_column[layer.name] for layer in parts]
        asks = self.norms.offered * GOLDEN % 1 < ASKS  # as evenly of several optimizers as of one
        self.norms.append(columns, norms)
        # of a table a step changes the few rows that were looked up
        layers = [layer for layer in self.layers if id(layer.main) in gradients and not layer.is_looked_up]
        if half and not self.sharded:  # a shard's share says little of the whole
            self._note_underflow(layers, 1.0 if loss_scale is None or scale_left is not None else loss_scale)
        searches = isinstance(optimizer, torch.optim.LBFGS)
        rates = {id(p): group.get("lr", 0.0) for group in optimizer.param_groups for p in group["params"]}
        if asks:
            pieces: list[tuple[Tensor, slice | None]] = [(p, None) for p, _ in gradients.values()]
            pieces += [(layer.main, slice(layer.span.start, layer.span.stop)) for layer in parts]
            asked = [Asked(at, p, rows, rates[id(p)]) for at, (p, rows) in zip(columns, pieces, strict=True)]
            self._lost.before_step(asked, finite, searches)
        if self._update_ratio:
            self._copy_weights(layers, rates, finite, searches, last)

    def _note_underflow(self, layers: list[Layer], scale: Tensor | float) -> None:
        shares = []
        for layer in layers:
            assert layer.main.grad is not None
            size = (layer.own(local(layer.main.grad)).float() * scale).abs()
            zeros = (size == 0).float().mean()
            subnormal = ((size > 0) & (size < HALF_SUBNORMAL)).float().mean()
            near = (subnormal > NEAR_UNDERFLOW * (1 - zeros)) | (zeros == 1)
            shares.append(torch.where(near, zeros, 0.0).to(self.device))
        if shares:
            self.underflow.append([self._place[layer.name] for layer in layers], torch.stack(shares))

    def _copy_weights(
        self,
        layers: list[Layer],
        rates: Mapping[int, float | Tensor],
        finite: Tensor | None,
        searches: bool,
        last: bool,
    ) -> None:
        """Copies for `after_step`; of a second step in one batch too, but not within a line search (LBFGS)."""
        again = [layer.name for layer in layers if layer.name in self._before]
        if again and searches:
            return
        if again:
            self._measure(again)
        first = not self.updates.offered
        if not self.updates.keeps(self.updates.offered):
            self.updates.skip()
            return
        for layer in layers if first or last else self._in_turn(layers):
            rate = rates[id(layer.main)]
            rate = rate.clone() if isinstance(rate, Tensor) else rate  # a schedule may write into it
            self._before[layer.name] = (layer, layer.own(local(layer.main)).detach().clone(), finite, rate)
            self.turns[layer.name] = self.turns.get(layer.name, 0) + 1

    def _in_turn(self, layers: list[Layer]) -> list[Layer]:
        """Those measured least often so far, `TURN` weights together at most, or a single larger one."""
        waiting = sorted(layers, key=lambda layer: self.turns.get(layer.name, 0))
        sizes = accumulate(layer.own(layer.main).numel() for layer in waiting)
        return [layer for layer, size in zip(waiting, sizes, strict=True) if size <= TURN] or waiting[:1]

    def _note_groups(self, optimizer: Any) -> None:
        kind, groups = type(optimizer).__name__, optimizer.param_groups
        settings = []
        for group in groups:
            rate = group.get("lr", 0.0)
            decay = float(group.get("weight_decay", 0.0) or 0.0), _is_decay_apart(optimizer, group)
            momentum = float(group.get("momentum", 0.0) or 0.0)
            settings.append((None if isinstance(rate, Tensor) else float(rate), decay, momentum))
        held = {id(p): place for place, group in enumerate(groups) for p in group["params"]}
        if self._noted.get(id(optimizer)) == (settings, held):
            return
        self._noted[id(optimizer)] = settings, held
        for layer in self.layers:
            place = held.get(id(layer.main))
            if place is None:
                continue
            rate, decay, momentum = settings[place]
            if rate is not None:
                self.learning_rates[layer.name] = max(rate, self.learning_rates.get(layer.name, 0.0))
                self.first_rates.setdefault(layer.name, rate)
            self.decays[layer.name] = decay
            self.optimizers[layer.name] = kind, momentum

    @torch.no_grad()
    def after_step(self) -> None:
        """Compares the weights with what they were before the step, and lets the copies go."""
        self._lost.after_step()
        if self._before:
            self._measure(list(self._before))

    def _measure(self, names: list[str]) -> None:
        copies = {name: self._before.pop(name) for name in names}
        # a parameter that has another shape now has no update
        news = {name: layer.own(local(layer.main)).detach() for name, (layer, *_) in copies.items()}
        taken = {name: copy for name, copy in copies.items() if news[name].shape == copy[1].shape}
        if not taken:
            return
        olds = [old for _, old, _, _ in taken.values()]
        sizes = _norms(olds, self.device)
        if all(old.device == self.device for old in olds):
            torch._foreach_sub_(olds, [news[name] for name in taken])
        else:  # which it refuses
            for name, old in zip(taken, olds, strict=True):
                old.sub_(news[name])
        changes = _norms(olds, self.device)
        if self.scaled:  # AMP skips a step whose gradients overflowed
            valid = torch.stack([torch.ones_like(sizes[0]) if v is None else v for _, _, v, _ in taken.values()]).bool()
            changes = torch.where(valid, changes, torch.nan)
        rates = self._on_device([rate for *_, rate in taken.values()])
        if self.sharded:
            shares = torch.tensor([share(layer.main) for layer, *_ in taken.values()], device=self.device).sqrt()
            sizes, changes = sizes * shares, changes * shares
            rates = rates / torch.distributed.get_world_size() ** 0.5  # squares are added up over the ranks
        places, count = [self._place[name] for name in taken], len(self.layers)
        row = torch.cat([sizes, changes, rates.to(sizes.dtype)])
        self.updates.append([at + block * count for block in range(3) for at in places], row)

    def _on_device(self, rates: list[float | Tensor]) -> Tensor:
        """(n,) learning rates, those that are on the device already without waiting for it."""
        numbers = tuple(torch.nan if isinstance(rate, Tensor) else rate for rate in rates)
        found = on_device(numbers, torch.float32, self.device)
        late = {at: rate for at, rate in enumerate(rates) if isinstance(rate, Tensor)}
        found = found.clone() if late else found
        for at, rate in late.items():
            found[at] = rate
        return found

    # -- window ends ---------------------------------------------------------------------------------------------

    def tables(self) -> StepTables:
        """All steps of the window. With sharded weights (FSDP2) a collective: every rank must call it."""
        norms, updates, underflow = (getattr(self, name).table().double() for name in SERIES)
        if self.sharded and len(norms):
            norms, updates = _over_ranks(norms, self.device), _over_ranks(updates, self.device)
        rms = norms / self.sizes.sqrt()
        ratios = gradient_ratios(rms, self._weights)
        sizes, changes, rates = updates.chunk(3, dim=1)
        known = norms[:, : len(self._column)]
        asked, lost = self._lost.totals(self.sharded)
        shares = torch.where(asked > 0, lost / asked, torch.nan)
        return StepTables(
            ratios=self._of_layers(ratios),
            rms=self._of_layers(rms),
            totals=row_norms(torch.where(known.isnan(), 0.0, known)),
            updates=torch.where(sizes > 0, changes / sizes, torch.nan),
            over_rate=self._over_rate(sizes, changes, rates),
            underflow=underflow,
            lost=self._of_layers(shares[None])[0],
            lost_elsewhere={
                name: float(share)
                for name, share, is_weight in zip(self.names, shares, self._weights, strict=True)
                if not is_weight and not share.isnan()
            },
            largest_at=self._largest_at(rms[-1]) if len(rms) else None,
        )

    def _over_rate(self, sizes: Tensor, changes: Tensor, rates: Tensor) -> Tensor:
        decays = [self.decays.get(layer.name, (0.0, False)) for layer in self.layers]
        apart = torch.tensor([decay * bool(decoupled) for decay, decoupled in decays], dtype=torch.float64)
        entries = self._of_layers(self.sizes[None])[0]
        return torch.where(rates > 0, (changes / rates - apart * sizes).clamp(min=0) / entries.sqrt(), torch.nan)

    def _largest_at(self, rms: Tensor) -> str:
        known = (rms.isfinite() & self._weights)[: len(self._column)]
        return self.names[int(torch.where(known, rms[: len(self._column)], -1.0).argmax())]

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain data: numbers of whole weights. With sharded weights every rank must call it."""
        return {
            "layers": [[layer.name, layer.channels] for layer in self.layers],
            "parameters": list(self.names),
            "series": {name: self._packed(name) for name in SERIES},
            "lost": self._lost.totals(self.sharded),
            **{kept: dict(getattr(self, kept)) for kept in OF_LAYERS},
        }

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether a state is about these layers and parameters."""
        layers = [[layer.name, layer.channels] for layer in self.layers]
        return bool(state["layers"] == layers and state["parameters"] == self.names)

    def load_state_dict(self, state: dict[str, Any], first_rank: bool) -> None:
        """Takes up what `state_dict` gave. Where parts are added up, the first rank holds the whole."""
        for name in SERIES:
            setattr(self, name, self._unpacked(name, state["series"][name], first_rank))
        if first_rank or not self.sharded:
            self._lost.load(state["lost"])
        for kept in OF_LAYERS:
            of = state.get(kept, {}).items()
            setattr(self, kept, {name: tuple(value) if isinstance(value, list) else value for name, value in of})

    def _packed(self, name: str) -> dict[str, Any]:
        series: Series = getattr(self, name)
        table = series.table()
        if self.sharded and len(table) and name != "underflow":
            table = _over_ranks(table.double(), self.device).to(table.dtype)
        return {"rows": list(table), "stride": series.stride, "offered": series.offered}

    def _unpacked(self, name: str, state: dict[str, Any], first_rank: bool) -> Series:
        series: Series = getattr(self, name)
        table = torch.stack(state["rows"]) if state["rows"] else series.table()
        if self.sharded and not first_rank and name != "underflow":
            table = torch.where(table.isnan(), table, 0)
        return Series.of(table.to(self.device), int(state["stride"]), int(state["offered"]))

    def _of_layers(self, table: Tensor) -> Tensor:
        padded = torch.cat([table, table.new_full((len(table), 1), torch.nan)], dim=1)
        return padded[:, self._layer_column]


def _norms(tensors: list[Tensor], device: torch.device) -> Tensor:
    """L2 norm of each, in at least float32, also where it cannot hold the squares."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if wide else torch.float32
    if device.type != "cpu":  # to look at them would wait for the device
        return torch.stack([norm.to(device, dtype) for norm in _exact_norms(tensors)])
    found = torch.stack([norm.to(device) for norm in torch._foreach_norm(tensors, 2, dtype=dtype)])
    for at, norm in enumerate(found.tolist()):
        if not SQUARED[0] < norm < SQUARED[1]:
            found[at] = row_norms(tensors[at].reshape(1, -1))[0]
    return found


def _exact_norms(tensors: list[Tensor]) -> list[Tensor]:
    """The same without a look at any: float64 holds the squares of all narrower numbers, and its own are scaled."""
    norms = list(torch._foreach_norm(tensors, 2, dtype=torch.float64))
    for at, tensor in enumerate(tensors):
        if tensor.dtype == torch.float64 and tensor.numel():
            largest = tensor.abs().amax()
            scalable = (largest > 0) & largest.isfinite()
            exact = torch.linalg.vector_norm(tensor / torch.where(scalable, largest, 1)) * largest
            norms[at] = torch.where(scalable, exact, norms[at])
    return norms


def _over_ranks(norms: Tensor, device: torch.device) -> Tensor:
    """Norms of wholes from the norms of the ranks' parts."""
    squares = norms.square().to(device)
    torch.distributed.all_reduce(squares)
    return squares.sqrt().cpu()
