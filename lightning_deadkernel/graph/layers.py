"""The table of layers: which parameters make one kernel each, and along which axis the channels run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from lightning_deadkernel.errors import OptionError
from lightning_deadkernel.functional.firing import why_unreadable
from lightning_deadkernel.graph.layer import Layer
from lightning_deadkernel.graph.rows import KERNELS, spans_of

FROZEN = "requires_grad=False"
"""Why a layer that nothing is to train is not watched."""

NOT_KERNELS = (nn.LayerNorm, nn.GroupNorm, nn.PReLU, _NormBase)
"""Owners of tensors that may have two or more axes, which are scales, shifts and slopes."""


def _own_weights(name: str, module: nn.Module) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
    """The tensors of a module that may be kernels, each with the parameters behind it."""
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict):
        for tensor, chain in parametrizations.items():
            yield tensor, tuple(chain.parameters(recurse=False))
    own = dict(module.named_parameters(recurse=False))
    for key in list(own):
        if key.endswith("_g") and f"{key[:-2]}_v" in own:  # torch.nn.utils.weight_norm
            yield key[:-2], (own.pop(key), own.pop(f"{key[:-2]}_v"))
    for key, parameter in own.items():
        # torch.nn.utils.spectral_norm and prune keep the leaf as `weight_orig`
        yield key.removesuffix("_orig"), (parameter,)


def _candidates(model: nn.Module) -> Iterator[Layer]:
    owners = [name for name, module in model.named_modules() if hasattr(module, "parametrizations")]
    inside = tuple(f"{name}.parametrizations".lstrip(".") for name in owners)
    for name, module in model.named_modules():
        if isinstance(module, NOT_KERNELS) or any(name.startswith(prefix) for prefix in inside):
            continue
        for tensor, leaves in _own_weights(name, module):
            lazy = any(isinstance(leaf, UninitializedParameter) for leaf in leaves)
            if not leaves or (not lazy and max(leaf.ndim for leaf in leaves) < 2):
                continue
            if not lazy and not all(leaf.is_floating_point() or leaf.is_complex() for leaf in leaves):
                continue
            title = name if tensor == "weight" and name else ".".join(filter(None, (name, tensor)))
            standard = isinstance(module, (_ConvNd, nn.Linear)) and tensor == "weight"
            if lazy:
                if tensor != "bias":
                    reason = "its lazy parameters were never initialised"
                    yield Layer(title, module, tensor, leaves, 0, excluded=reason, standard=standard)
                continue
            main, groups, transposed = max(leaves, key=lambda leaf: leaf.numel()), 1, False
            if standard and isinstance(module, _ConvNd):
                groups, transposed = module.groups, module.transposed
            bias = getattr(module, "bias", None)
            for span in (KERNELS,) if standard else spans_of(module, tensor, main):
                channels = len(range(main.shape[0])[span.start : span.stop])
                if standard and isinstance(module, _ConvNd):
                    channels = module.out_channels
                yield Layer(
                    f"{title}.{span.name}" if span.name else title,
                    module,
                    tensor,
                    leaves,
                    channels,
                    channel_dim=int(transposed),
                    transposed=transposed,
                    groups=groups,
                    bias=bias if isinstance(bias, nn.Parameter) and bias.numel() == channels else None,
                    standard=standard,
                    span=span,
                    shape=tuple(main.shape),
                )


def _registered(model: nn.Module) -> tuple[list[Any], dict[int, bool]]:
    """All that a table of layers is made from, fast to make and to compare: the types and names of modules, and names,
    ids, shapes and types of their parameters; and id of a parameter -> whether it is trained."""
    found: list[Any] = []
    trained: dict[int, bool] = {}
    modules, seen = [model], {id(model)}
    for module in modules:
        found.append(type(module))
        if module._parameters:
            found.append(id(module))
            for name, parameter in module._parameters.items():
                found += (name, id(parameter))
                if parameter is not None:
                    trained[id(parameter)] = parameter.requires_grad
                    found += () if isinstance(parameter, UninitializedParameter) else (parameter.shape, parameter.dtype)
        for name, child in module._modules.items():
            found += (name, id(child))
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return found, trained


@dataclass
class LayerTable:
    """All layers of a model, watched or not, by name and by parameter."""

    layers: list[Layer]
    by_leaf: dict[int, Layer] = field(default_factory=dict)
    """id of a leaf parameter -> the layer it belongs to; the first where it has several."""
    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    """All parameters of the model by their ids, which are no others' as long as they are held here."""
    model: nn.Module | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    registered: list[Any] = field(default_factory=list)
    """What the model had when this was made."""
    trained: dict[int, bool] = field(default_factory=dict)
    """id of a parameter -> whether it is trained."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        include: Sequence[str] | None,
        exclude: Sequence[str] | None,
        trained: Mapping[int, bool] | None = None,
    ) -> LayerTable:
        """The layers of `model` whose names match a pattern of `include` (None: all) and none of `exclude`.

        Args:
            model: whose layers.
            include: glob patterns.
            exclude: glob patterns.
            trained: id of a parameter -> whether it is trained; of those that are not in it, `requires_grad` tells.
        """
        parameters = {id(parameter): parameter for parameter in model.parameters()}
        registered, now = _registered(model)
        table = cls([], {}, parameters, model, include, exclude, registered, now | dict(trained or {}))
        candidates = list(_candidates(model))
        kernels = {id(leaf) for layer in candidates if not layer.is_looked_up for leaf in layer.leaves}
        for layer in candidates:
            if layer.is_looked_up and any(id(leaf) in kernels for leaf in layer.leaves):
                continue  # tied to a linear layer: its rows are that layer's kernels
            first = next((table.by_leaf[id(leaf)] for leaf in layer.leaves if id(leaf) in table.by_leaf), layer)
            if (first.module, first.tensor) != (layer.module, layer.tensor):
                layer = replace(layer, excluded=f"it shares its weight with {first.name}, where it is watched")
            else:
                layer = replace(layer, excluded=layer.excluded or table._why_excluded(layer))
                table.by_leaf.update((id(leaf), layer) for leaf in layer.leaves if id(leaf) not in table.by_leaf)
            table.layers.append(layer)
        return table

    def now(self, toggled: bool = False) -> LayerTable | None:
        """The table of the model as it is now; None where it is as it was when this one was made.

        Args:
            toggled: `requires_grad` may be turned off for a moment: that of known parameters is not looked at.
        """
        if self.model is None:
            return None
        registered, trained = _registered(self.model)
        if toggled:
            trained = {key: self.trained.get(key, is_trained) for key, is_trained in trained.items()}
        if registered == self.registered and trained == self.trained:
            return None
        return LayerTable.of(self.model, self.include, self.exclude, trained)

    def names_in(self, older: LayerTable) -> dict[str, str]:
        """Own names of the layers whose kernels `older` had, and the names they had there."""
        named = {layer.name: layer for layer in older.layers}
        by_main = {(id(layer.main), layer.span): layer for layer in reversed(older.layers) if layer.shape}
        found: dict[str, str] = {}
        for layer in (layer for layer in self.layers if layer.shape):
            for other in (named.get(layer.name), by_main.get((id(layer.main), layer.span))):
                if other is not None and layer.has_kernels_of(other) and other.name not in found.values():
                    found[layer.name] = other.name
                    break
        return found

    def _why_excluded(self, layer: Layer) -> str | None:
        if self.include is not None and not any(fnmatchcase(layer.name, pattern) for pattern in self.include):
            return "left out by `include`"
        if self.exclude is not None and any(fnmatchcase(layer.name, pattern) for pattern in self.exclude):
            return "left out by `exclude`"
        if not any(self.trained[id(leaf)] for leaf in layer.leaves):
            return FROZEN
        if layer.main.numel() == 0:
            return "its weight is empty"
        return next((f"its weight {reason}" for reason in map(why_unreadable, layer.leaves) if reason), None)

    def spans_of(self, layer: Layer) -> list[Layer]:
        """A layer with those whose rows stand beside its own in one weight."""
        if not layer.span.name:
            return [layer]
        return [other for other in self.layers if other.module is layer.module and other.tensor == layer.tensor]

    @property
    def names(self) -> list[str]:
        """Names of all layers, in module order."""
        return [layer.name for layer in self.layers]

    @property
    def watched(self) -> list[Layer]:
        """The layers that are not excluded, in module order."""
        return [layer for layer in self.layers if layer.excluded is None]


def check_patterns(option: str, patterns: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raises:
    OptionError: if a glob pattern matches no layer name.
    """
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise OptionError(
                f"Expected every pattern of `{option}` to match a layer, but {pattern!r} matches none of: {shown}."
            )
