"""The smallest network that still fails: lines are taken out one by one as long as the same kind of failure stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fuzz.claims import disagreements
from fuzz.generate import trains
from fuzz.programs import Op, Program

TRIES = 200
"""Networks that are tried at most: a minute or so."""


def shrunk(program: Program, kind: str) -> Program:
    """The program with as few lines as a greedy search leaves it, one disagreement of this kind among those it has."""
    tries = 0
    while True:
        for smaller in _smaller(program):
            tries += 1
            if tries > TRIES:
                return program
            if trains(smaller) and any(found.kind == kind for found in disagreements(smaller)):
                program = smaller
                break
        else:
            return program


def _smaller(program: Program) -> Iterator[Program]:
    """Each program with one thing less, the last lines first."""
    ops = program.ops
    for index in range(len(ops) - 1, 0, -1):
        rest = (*ops[:index], *ops[index + 1 :])
        if ops[index].target in ("loss", "kill") or not _named(rest, ops[index].target):
            yield program.having(*rest)
        else:
            for stand_in in dict.fromkeys(ops[index].args):
                yield program.having(*(_renamed(op, ops[index].target, stand_in) for op in rest))
    for index, op in enumerate(ops):
        for channel in op.options.get("channels", ())[1:]:
            fewer = tuple(c for c in op.options["channels"] if c != channel)
            yield program.having(*ops[:index], replace(op, options=op.options | {"channels": fewer}), *ops[index + 1 :])
    if program.dtype != "float32":
        yield replace(program, dtype="float32")
    if program.channels_last:
        yield replace(program, channels_last=False)
    for option in ("gradient", "grows"):
        if ops[0].options.get(option):
            plain = {key: value for key, value in ops[0].options.items() if key != option}
            yield program.having(replace(ops[0], options=plain), *ops[1:])


def _named(ops: tuple[Op, ...], target: str) -> bool:
    return any(target in (*op.args, op.options.get("layer")) for op in ops)


def _renamed(op: Op, old: str, new: str) -> Op:
    return replace(op, args=tuple(new if name == old else name for name in op.args))
