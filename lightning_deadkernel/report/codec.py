"""Reports as strict JSON, for files, and as compressed bytes, for checkpoints. `docs/report_schema.md` describes both.

Reading is driven by the dataclasses' own type hints, so what a report holds is written down once, in `records.py`, and
every value is checked on its way in. Past 300 lines because writing and reading are each other's mirror.
"""

from __future__ import annotations

import json
import math
import re
import types
import zlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from lightning_deadkernel.report.arrays import MOST_CHANNELS, Arrays, from_file, moved, put_back, to_file
from lightning_deadkernel.report.records import LayerReport, ReportRecord
from lightning_deadkernel.report.states import FLAGS, STATE_BITS, STATES, channels_with

SCHEMA = "lightning-deadkernel/report"
VERSION = 2
"""Goes up whenever a key is added, dropped or changes its meaning: readers refuse what is newer than they are."""

MAX_CHANNELS = 1 << 24
"""No layer is as wide: a damaged channel count must not ask for gigabytes."""

MASKS = (("findings", "channels"), ("layers", "certified_dead"))
"""Lists of channels that are packed as bits."""
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNSAVED = "tensors"
_CONTROL = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What JSON may hold as it is, but a terminal takes for a command, or no encoding has: lone surrogates."""

R = TypeVar("R", bound=ReportRecord)


def to_json(report: ReportRecord) -> str:
    """The report as strict JSON (RFC 8259: no NaN literal), with lists of numbers on one line.

    Raises:
        TypeError: if a value is neither a number nor text.
        ValueError: if a layer has not one code per channel.
    """
    return _json({"summary": _plain(report.summary()), **_plain(report)})


def to_files(report: ReportRecord, stem: str) -> tuple[str, dict[str, bytes]]:
    """The JSON, and what is too long for it: names and contents of files beside it, which are to be written first.

    Args:
        report: what to write.
        stem: of the JSON's own name.

    Raises:
        TypeError, ValueError: as of `to_json`.
    """
    arrays: Arrays | None = {} if sum(layer.channels for layer in report.layers) > MOST_CHANNELS else None
    record = {"summary": _plain(report.summary()), **_plain(report, arrays=arrays)}
    if not arrays:
        return _json(record), {}
    name, content = to_file(arrays, stem)
    return _json({"arrays": name, **record}), {name: content}


def _json(record: dict[str, Any]) -> str:
    text = _indented({"schema": SCHEMA, "version": VERSION, **record}) + "\n"
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def from_json(
    kind: type[R], text: str | bytes, source: str = "the report", beside: Callable[[str], bytes] | None = None
) -> R:
    """Read what `to_json` or `to_files` wrote.

    Args:
        kind: of report.
        text: the JSON.
        source: what to call it.
        beside: gives the content of a file beside it, by name; what it raises goes through.

    Raises:
        ValueError: if it is not a report, is damaged, or is of a newer version; the message starts with `source`.
    """
    record = _opened(text, source)
    record.pop("summary", None)
    name = record.pop("arrays", None)
    if name is None:
        return _report(kind, record, source)
    if beside is None or not isinstance(name, str) or PurePath(name).name != name:
        raise ValueError(f"{source}: its numbers per channel are in another file, {_shown(name)}")
    try:
        return _report(kind, put_back(record, from_file(name, beside(name))), source)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{source}: {name} does not hold its arrays ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def pack(report: ReportRecord) -> Tensor:
    """The compact report as a uint8 tensor `(bytes,)`, for checkpoints that load with `weights_only=True`.

    Codes and the findings' channels go in as bytes and bits, not as text, so that a window costs about a byte per
    channel even where every channel is in a state of its own.
    """
    report = report.compact()
    codes = [layer.codes for layer in report.layers]
    record = {"schema": SCHEMA, "version": VERSION, **_plain(report, readable=False)}
    lists = [(item, key) for items, key in MASKS for item in record[items]]
    masks = [_mask(item[key]) for item, key in lists]
    for layer, code in zip(record["layers"], codes, strict=True):
        layer["codes"] = len(code)
    for (item, key), mask in zip(lists, masks, strict=True):
        item[key] = len(mask)
    head = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    body = b"".join([len(head).to_bytes(4, "little"), head, *codes, *masks])
    return torch.frombuffer(bytearray(zlib.compress(body, 9)), dtype=torch.uint8)


def unpack(kind: type[R], packed: Tensor) -> R:
    """Read what `pack` wrote.

    Raises:
        ValueError: if the tensor does not hold a whole packed report of this version or an older one.
    """
    source = "the packed report"
    try:
        body = zlib.decompress(bytes(packed.tolist()))
    except (zlib.error, ValueError, TypeError) as error:
        raise ValueError(f"{source}: not compressed by this package ({error})") from None
    end = 4 + int.from_bytes(body[:4], "little")
    record = _opened(body[4:end], source)
    try:
        for items, key in (("layers", "codes"), *MASKS):
            for item in record[items]:
                start, end = end, end + item.get(key, 0)  # older ones have no certificates
                item[key] = body[start:end] if key == "codes" else _unmasked(body[start:end])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: damaged: {error!r}") from None
    if end != len(body):
        raise ValueError(f"{source}: damaged: expected {end} bytes, but got {len(body)}")
    return _report(kind, record, source)


def _opened(text: str | bytes, source: str) -> dict[str, Any]:
    """The JSON object, known to be a report of a version that can be read, without its header."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not readable as JSON ({error}); is it damaged or cut off?") from None
    if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
        raise ValueError(f'{source}: not a report of this package (it has no "schema": "{SCHEMA}")')
    version = record.pop("version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f'{source}: expected "version" to be a positive int, but got {_shown(version)}')
    if version > VERSION:
        raise ValueError(
            f"{source}: written in version {version} of the schema, this package reads up to {VERSION}; "
            "a newer lightning-deadkernel is needed"
        )
    return record


def _report(kind: type[R], record: dict[str, Any], source: str) -> R:
    try:
        report: R = _read(kind, record, "")
    except ValueError as error:
        raise ValueError(f"{source}: damaged report: {error}") from None
    return report


# -- writing -----------------------------------------------------------------------------------------------------------


def _plain(value: Any, readable: bool = True, arrays: Arrays | None = None) -> Any:
    """Dataclasses, tuples and floats as what JSON has; `readable` spells codes out, long lists go to `arrays`."""
    if isinstance(value, LayerReport) and readable:
        if len(value.codes) != value.channels:
            raise ValueError(
                f"Expected one code per channel, but layer {value.name!r} has {value.channels} channels and "
                f"{len(value.codes)} codes."
            )
        record = {f.name: _plain(getattr(value, f.name), arrays=arrays) for f in fields(value) if f.name != "codes"}
        # Before `excluded`, where the codes are in the dataclass, so that files read in the same order.
        place = list(record).index("activation") + 1
        spelled = _plain(_spelled(value.codes), arrays=arrays)
        return dict([*list(record.items())[:place], *spelled.items(), *list(record.items())[place:]])
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), readable, arrays) for f in fields(value) if _is_saved(f)}
    if isinstance(value, dict):
        return {key: _plain(item, readable, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if arrays is not None and (stand_in := moved(value, arrays)) is not None:
            return stand_in
        return list(value) if _finite_numbers(value) else [_plain(item, readable, arrays) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return None
    raise TypeError(f"Expected numbers and text in a report, but got {_shown(value)}.")


def _is_saved(field: Field[Any]) -> bool:
    return field.name != _UNSAVED and field.metadata.get("saved", True)


def _finite_numbers(values: Sequence[Any]) -> bool:
    """Whether a list, mostly one number per channel, goes into JSON as it is."""
    kinds = set(map(type, values))
    return kinds <= {int} or (kinds <= {int, float} and all(map(math.isfinite, values)))


def _spelled(codes: bytes) -> dict[str, dict[str, list[int]]]:
    """State and flag names -> channel indices; active channels and empty lists are left out."""
    states = {state: channels_with(codes, STATE_BITS, n) for n, state in enumerate(STATES) if n}
    flags = {flag: channels_with(codes, bit, bit) for flag, bit in FLAGS.items()}
    return {
        "states": {state: where for state, where in states.items() if where},
        "flags": {flag: where for flag, where in flags.items() if where},
    }


def _mask(channels: Sequence[int]) -> bytes:
    """Channel indices as bits, the lowest first."""
    bits = np.zeros(max(channels, default=-1) + 1, np.uint8)
    bits[list(channels)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _unmasked(bits: bytes) -> list[int]:
    found: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()
    return found


def _indented(value: Any, margin: str = "") -> str:
    """JSON with two spaces a level, and what holds no further list or object on one line."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not {dict, list} & set(map(type, items)):
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = margin + "  "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_indented(v, inner)}" for key, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    return "[\n" + ",\n".join(inner + _indented(item, inner) for item in value) + f"\n{margin}]"


# -- reading -----------------------------------------------------------------------------------------------------------

_hints = cache(get_type_hints)


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, straight from JSON, as the type `kind`; ValueError says where it is not one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        if len(kinds) == 1:
            return _read(kinds[0], value, where)
        # The one union of several kinds is that of numbers and text: JSON's own type decides.
        if isinstance(value, str):
            return _NON_FINITE.get(value, value)
        return _read(int if type(value) is int else float, value, where)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (list, tuple):
        _expect(isinstance(value, list), where, "a list", value)
        if set(map(type, value)) <= {int, arguments[0]} & {int, float}:
            return origin(value)  # the same as below, for the longest lists
        return origin(_read(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        _expect(value in arguments, where, f"one of {', '.join(arguments)}", value)
        return value
    if kind is float:
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        _expect(type(value) in (int, float), where, "a number", value)
        return value
    _expect(type(value) is kind, where, {int: "an integer", str: "text", bool: "true or false"}[kind], value)
    return value


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where or "the whole", "an object", value)
    value = dict(value)
    dot = f"{where}." if where else ""
    read = {}
    if kind is LayerReport:
        channels = _read(int, value.get("channels"), f"{dot}channels")
        _expect(0 <= channels <= MAX_CHANNELS, f"{dot}channels", "a number of channels", channels)
        if isinstance(value.get("codes"), bytes):  # from `unpack`: JSON has no bytes
            codes = value.pop("codes")
            _expect(len(codes) == channels, f"{dot}codes", f"{channels} codes", len(codes))
        else:
            codes = _codes(channels, value.pop("states", None), value.pop("flags", None), dot)
        read["codes"] = codes
    for field in fields(kind):
        if field.name in value and field.name not in read:
            read[field.name] = _read(_hints(kind)[field.name], value.pop(field.name), dot + field.name)
        elif field.name not in read and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{dot}{field.name} is missing")
    if value:
        raise ValueError(f"{dot}{next(iter(value))} is not a key of version {VERSION}")
    return kind(**read)


def _codes(channels: int, states: Any, flags: Any, dot: str) -> bytes:
    codes = bytearray(channels)
    numbers = {state: number for number, state in enumerate(STATES) if number}
    for name, table, spelled in (("states", numbers, states), ("flags", FLAGS, flags)):
        for word, where in _read(dict[str, list[int]], spelled, dot + name).items():
            place = f"{dot}{name}.{word}"
            _expect(word in table, place, f"one of {', '.join(table)}", word)
            for channel in where:
                _expect(0 <= channel < channels, place, f"channels from 0 to {channels - 1}", channel)
                taken = name == "states" and codes[channel]
                _expect(not taken, place, "one state per channel", channel)
                codes[channel] |= table[word]
    return bytes(codes)


def _expect(holds: bool, where: str, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"expected {what} at {where}, but got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
