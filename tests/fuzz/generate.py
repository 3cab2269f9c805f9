"""A random program from a seed. Each line is tried on real tensors as it is added; what does not fit stays out."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn

from fuzz.kills import KERNEL_KILLS, NORM_KILLS
from fuzz.network import Network, batches, build, kill_op
from fuzz.ops import OPS
from fuzz.oracle import probed
from fuzz.programs import Op, Program

NORMS_WITH_SCALE = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
REFUSALS = (RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError)
"""What torch raises of a line that does not fit."""

LARGE = 1e4
"""Where the loss and the gradients are smaller, a step changes next to nothing."""

GROUPS = {"layer": 4.0, "again": 0.8, "sequence": 1.5, "norm": 2.5, "activation": 5.0, "join": 3.0, "shape": 4.0}
GROUPS_AFTER_LAYER = {"norm": 3.0, "activation": 7.0, "shape": 2.0, "join": 1.5, "layer": 0.2}
GROUPS_AFTER_NORM = {"activation": 10.0, "shape": 2.0, "join": 1.0, "layer": 0.3}
GROUPS_AFTER_ACTIVATION = {"layer": 6.0, "again": 1.5, "sequence": 1.5, "join": 2.5, "shape": 5.0, "norm": 1.0}


def program(seed: int) -> Program:
    """The program of a seed: the first attempt that trains."""
    for attempt in range(100):
        random = Random(f"{seed} {attempt}")
        made = _Draft(random, seed).finished()
        if made is not None and trains(made):
            return made
    raise AssertionError(f"seed {seed}: no network of 100 could be trained")


def trains(made: Program) -> bool:
    """Whether it runs, forward and backward, on numbers that are finite, with a layer that has a gradient."""
    try:
        net = build(made)
        optimizer = net.configure_optimizers()
        for number, batch in enumerate(batches(made)):
            optimizer.zero_grad()
            loss = net.run_step(batch, number)
            loss.backward()
            if net.data_loss is None or not net.data_loss.requires_grad or not float(loss.detach().abs()) < LARGE:
                return False
            gradients = [p.grad for p in net.parameters() if p.grad is not None]
            if not all(float(gradient.abs().amax()) < LARGE for gradient in gradients):
                return False
            optimizer.step()
        probed(net, batches(made)[0], 0)  # what the oracle cannot cut where it works in place is left out
    except REFUSALS:
        return False
    return bool(net.kernels)


class _Draft:
    """A program in the making, with the values that its lines give."""

    def __init__(self, random: Random, seed: int) -> None:
        self.random = random
        frame = Program(
            seed,
            (),
            batch_size=random.choices((1, 2, 4, 6), (1, 1, 4, 4))[0],
            dtype=random.choices(("float32", "float64", "bfloat16"), (8, 2, 1))[0],
            channels_last=random.random() < 0.2,
        )
        self.frame = frame
        self.net = Network(frame)
        self.ops: list[Op] = []
        self.values: dict[str, tuple[Tensor, str]] = {}
        self.groups: dict[str, str] = {}
        """Value -> group of the op that made it."""

    def finished(self) -> Program | None:
        torch.manual_seed(0)
        self._begin()
        for _ in range(self.random.randint(3, 14)):
            self._grow()
        self._end()
        if not self.net.kernels or not any(op.target == "loss" for op in self.ops):
            return None
        if self.random.random() < 0.8:
            self._drop_unused()
        if not self.net.kernels:
            return None
        for _ in range(self.random.choices((0, 1, 2, 3), (1, 5, 3, 1))[0]):
            self._kill()
        return self.frame.having(*self.ops)

    # -- lines -----------------------------------------------------------------------------------------------------

    def _try(self, op: Op, form: str | None) -> bool:
        """Runs a line; keeps it if it does not raise."""
        try:
            out = OPS[op.name].run(self.net, op, *(self.values[name][0] for name in op.args))
        except REFUSALS:
            if op.target in self.net._modules:
                del self.net._modules[op.target]
                self.net.kernels.pop(op.target, None)
            return False
        if form is not None and (not bool(out.isfinite().all()) or out.numel() == 0 or out.numel() > 2000):
            return False
        self.ops.append(op)
        if form is not None:
            self.values[op.target] = (out, form)
            self.groups[op.target] = OPS[op.name].group
        return True

    def _begin(self) -> None:
        random = self.random
        form = random.choices(("flat", "rows", "line", "map", "tokens"), (4, 3, 2, 4, 1))[0]
        width = random.randint(3, 6)
        shapes = {
            "flat": (width,),
            "rows": (random.randint(2, 4), width),
            "line": (width, 4),
            "map": (random.randint(1, 3), 4, 4),
        }
        if form == "tokens":
            op = Op("v0", "tokens", (), {"shape": (3,), "vocabulary": 7, "width": width})
        else:
            options: dict[str, object] = {"shape": shapes[form]}
            if random.random() < 0.15:
                options["gradient"] = True
            if random.random() < 0.15 and form != "flat":
                options["grows"] = 2 if form == "rows" else 1  # the axis, from the right
            op = Op("v0", "input", (), options)
        self.net.values = dict(batches(self.frame.having(op), 1)[0])
        assert self._try(op, "rows" if form == "tokens" else form)

    def _grow(self) -> None:
        random, names = self.random, list(self.values)
        for _ in range(20):
            first = names[-1] if random.random() < 0.75 else self._any_value()
            form = self.values[first][1]
            tables = {"layer": GROUPS_AFTER_LAYER, "norm": GROUPS_AFTER_NORM, "activation": GROUPS_AFTER_ACTIVATION}
            table = tables.get(self.groups[first], GROUPS | {"messages": 1.0})
            group = random.choices(list(table), list(table.values()))[0]
            fitting = [name for name, spec in OPS.items() if spec.group == group and form in spec.forms]
            if not fitting:
                continue
            name = random.choices(fitting, [OPS[name].weight for name in fitting])[0]
            if self._add(name, first, form):
                return

    def _any_value(self) -> str:
        """A value to go on from; mostly one behind an activation, since what leaves it before opens a path past it."""
        names = list(self.values)
        behind = [name for name in names if self.groups[name] in ("activation", "input", "join")]
        return self.random.choice(behind if behind and self.random.random() < 0.7 else names)

    def _add(self, name: str, first: str, form: str) -> bool:
        spec, random = OPS[name], self.random
        args = [first]
        if spec.values == 2:
            same = [other for other, (x, f) in self.values.items() if f == form and other != first]
            fits = [other for other in same if self.values[other][0].shape == self.values[first][0].shape]
            chosen = fits if fits and random.random() < 0.9 else same
            if not chosen:
                return False
            behind = [other for other in chosen if self.groups[other] == self.groups[first]]
            args.append(random.choice((behind or chosen)[-4:]))
            random.shuffle(args)
        try:
            options = spec.draw(random, self.values[first][0])
        except (ValueError, IndexError):
            return False
        if "layer" in options:
            options["layer"] = random.choice(list(self.net.kernels)) if self.net.kernels else ""
        return self._try(Op(f"v{len(self.ops)}", name, tuple(args), options), spec.to or form)

    def _end(self) -> None:
        random, names = self.random, list(self.values)
        heads = [names[-1], *(self._any_value() for _ in range(random.choice((0, 0, 0, 0, 1, 2))))]
        for head in dict.fromkeys(heads):
            form = self.values[head][1]
            if random.random() < 0.6:
                if form in ("map", "line"):
                    head = self._after(head, "mean_pool") or head
                head = self._after(head, "linear") or head
            self._lose(head)
        if random.random() < 0.15 and self.net.kernels:
            self._try(Op("loss", "penalty", (), {"layer": random.choice(list(self.net.kernels))}), None)
        if self.ops[0].options.get("gradient") and random.random() < 0.7:
            self._try(Op("loss", "gradient_penalty", (heads[0],), {"input": "v0"}), None)

    def _after(self, value: str, name: str) -> str | None:
        """A value made of another by the op of this name; None where it does not fit."""
        target, form = f"v{len(self.ops)}", self.values[value][1]
        return target if form in OPS[name].forms and self._add(name, value, form) else None

    def _lose(self, head: str) -> None:
        random, (x, form) = self.random, self.values[head]
        for _ in range(10):
            name = random.choices(
                [n for n, s in OPS.items() if s.group == "loss"], [s.weight for s in OPS.values() if s.group == "loss"]
            )[0]
            if form not in OPS[name].forms:
                continue
            args = [head]
            if OPS[name].values == 2:
                others = [o for o, (y, _) in self.values.items() if o != head and y.shape == x.shape]
                if not others:
                    continue
                args.append(random.choice(others))
            if self._try(Op("loss", name, tuple(args)), None):
                return

    def _drop_unused(self) -> None:
        """Takes out the lines whose values nothing reads (a few networks keep them)."""
        for op in reversed(self.ops[1:]):
            named = {name for other in self.ops for name in (*other.args, other.options.get("layer"))}
            if op.target not in named and op.target != "loss" and "inplace" not in op.name:
                self.ops.remove(op)
                for name in [n for n in self.net.kernels if n == op.target or n.startswith(f"{op.target}_")]:
                    del self.net.kernels[name]
                if op.target in self.net._modules:
                    del self.net._modules[op.target]

    # -- kills -----------------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        random = self.random
        norms = [n for n, m in self.net.named_children() if isinstance(m, NORMS_WITH_SCALE) and m.weight is not None]
        if norms and random.random() < 0.4:
            name, way = random.choice(norms), random.choice(NORM_KILLS)
            weight = self.net.get_submodule(name).weight
            options = {"shift": random.choice((0, 1))} if way == "scale_zero" else {}
            count = len(weight)
        else:
            name, way = random.choice(list(self.net.kernels)), random.choice(KERNEL_KILLS)
            kernel = self.net.kernels[name]
            count = kernel.leaves()[0].shape[1] if way == "unread" else kernel.channels
            options = {}
        if "." in name:
            return
        channels = tuple(sorted(random.sample(range(count), k=min(count, random.choice((1, 2, 2, count))))))
        self.ops.append(kill_op(way, name, channels, **options))
