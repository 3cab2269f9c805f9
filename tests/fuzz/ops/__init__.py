"""The ops that programs are made of; importing them fills the table."""

from fuzz.ops import activations, joins, layers, losses, moves, norms, sequences, shapes
from fuzz.ops.registry import OPS

__all__ = ["OPS", "activations", "joins", "layers", "losses", "moves", "norms", "sequences", "shapes"]
