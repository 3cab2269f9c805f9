"""The report and its JSON: what is written is read back, and what cannot be read is said clearly."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from dataclasses import fields, replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.example_reports import malicious_report, sick_report
from helpers.reports import codes
from lightning_deadkernel.observation import STATISTICS, WindowTensors
from lightning_deadkernel.report import codec as schema
from lightning_deadkernel.report.records import (
    SEVERITIES,
    ChannelValues,
    Finding,
    LayerReport,
    Savings,
)
from lightning_deadkernel.report.report import Report, write_atomically
from lightning_deadkernel.report.states import COUNTED, FLAGS, STATES
from lightning_deadkernel.thresholds import Thresholds

VERSION_1 = Path(__file__).parent / "golden" / "version_1.json"

numbers = st.floats(allow_nan=False)
maybe = st.none() | numbers
# JSON text is Unicode, lone surrogates are not.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 2**40)


@st.composite
def layers(draw: st.DrawFn) -> LayerReport:
    channels = draw(st.integers(0, 12))
    code = st.builds(lambda state, flags: state | flags << 4, st.integers(0, len(STATES) - 1), st.integers(0, 15))
    row = st.none() | st.lists(numbers, min_size=channels, max_size=channels)
    return LayerReport(
        name=draw(texts),
        kind=draw(texts),
        channels=channels,
        depth=draw(counts),
        activation=draw(st.none() | texts),
        codes=bytes(draw(st.lists(code, min_size=channels, max_size=channels))),
        excluded=draw(st.none() | texts),
        note=draw(st.none() | texts),
        evidence=draw(st.sampled_from(["activation", "sampled activation", "gradient", "weight"])),
        firing_rate=draw(maybe),
        gradient_ratio=draw(maybe),
        update_ratio_max=draw(maybe),
        hoyer=draw(maybe),
        parameters=draw(counts),
        values=draw(st.none() | st.builds(ChannelValues, row, row, row, row)),
    )


_NUMBER_WORDS = {"NaN", "Infinity", "-Infinity"}
findings = st.builds(
    Finding,
    kind=texts,
    severity=st.sampled_from(SEVERITIES),
    layer=st.none() | texts,
    channels=st.sets(st.integers(0, 40)).map(lambda found: tuple(sorted(found))),
    evidence=st.dictionaries(
        texts, numbers | counts | texts.filter(lambda text: text not in _NUMBER_WORDS), max_size=3
    ),
    cause=texts,
    advice=texts,
    reference=texts,
    window=counts,
    samples=st.none() | counts,
)
reports = st.builds(
    Report,
    window=counts,
    epoch=counts,
    global_step=counts,
    samples=st.none() | counts,
    batches=counts,
    optimizer_steps=counts,
    sampled_steps=counts,
    layers=st.lists(layers(), max_size=3).map(tuple),
    findings=st.lists(findings, max_size=3).map(tuple),
    savings=st.none() | st.builds(Savings, counts, counts, counts, st.lists(texts, max_size=2).map(tuple)),
    notes=st.lists(texts, max_size=2).map(tuple),
    gradient_norm=maybe,
    audited=st.none() | texts,
)


@settings(max_examples=50)
@given(reports)
def test_json_gives_the_same_report_back_and_is_strict(report: Report) -> None:
    text = schema.to_json(report)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    json.loads(text, parse_constant=refuse)
    assert schema.from_json(Report, text) == report


@settings(max_examples=50)
@given(reports)
def test_packing_gives_the_compact_report_back(report: Report) -> None:
    packed = schema.pack(report)
    assert packed.dtype == torch.uint8
    assert schema.unpack(Report, packed) == report.compact()


def test_non_finite_numbers_come_back_as_they_were() -> None:
    report = sick_report()
    layer = replace(report.layers[0], firing_rate=math.nan, gradient_ratio=math.inf, update_ratio=-math.inf)
    finding = replace(report.findings[0], evidence={"ratio": math.inf, "what": "text"})
    back = schema.from_json(Report, schema.to_json(replace(report, layers=(layer,), findings=(finding,))))
    assert math.isnan(back.layers[0].firing_rate or 0.0)
    assert (back.layers[0].gradient_ratio, back.layers[0].update_ratio) == (math.inf, -math.inf)
    assert back.findings[0].evidence == {"ratio": math.inf, "what": "text"}


def test_codes_are_written_as_words_and_indices() -> None:
    record = json.loads(schema.to_json(sick_report()))
    first, _, _, head, stem = record["layers"]
    assert first["states"] == {"dead": [3, 11]}
    assert first["flags"] == {"dormant": [3, 11], "rare": [7], "zero_kernel": [3, 11]}
    assert (head["states"], head["flags"]) == ({}, {})
    assert stem["states"] == {"excluded": list(range(8))}
    assert "codes" not in first


def test_every_property_of_a_layer_tells_the_channels_with_its_code() -> None:
    words = list(dict.fromkeys([*STATES, *FLAGS]))
    layer = LayerReport(
        name="x",
        kind="Linear",
        channels=len(words),
        depth=0,
        activation="relu",
        codes=codes(len(words), {w: (n,) for n, w in enumerate(words)}),
    )
    assert (layer.dead, layer.saturated, layer.silent, layer.starved) == ([1], [2], [3], [4])
    assert (layer.frozen, layer.zero_gradient) == ([5], [6])
    assert (layer.unknown, layer.zero_kernels, layer.dormant, layer.rare) == ([8], [9], [10], [11])
    assert layer.states == [*STATES, "active", "active", "active"]


def test_saving_as_json_and_loading_gives_the_same_report_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "report.json"
    report = replace(
        sick_report(), tensors=WindowTensors(first_layer="features.0", first_kernels=torch.ones(2, 1, 3, 3))
    )
    report.save(path)
    back = Report.load(path)
    assert back == report
    assert (back.run, back.tensors) == (report.run, None)
    assert back.run is not None
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("lightning_deadkernel.report.report.os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_ending_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.json, \.md or \.html, but got .*report\.pkl"):
        sick_report().save(tmp_path / "report.pkl")


def test_every_cut_of_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = schema.to_json(sick_report()).rstrip()
    path = tmp_path / "cut.json"
    for end in range(0, len(whole), 97):
        path.write_text(whole[:end])
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*damaged or cut off"):
            Report.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=3), "version 3 of the schema, this package reads up to 2"),
        (lambda r: r.update(version="1"), "positive int, but got '1'"),
        (lambda r: r.update(schema="other"), "not a report of this package"),
        (lambda r: r.update(window="3"), "expected an integer at window, but got '3'"),
        (lambda r: r.update(window=True), "expected an integer at window, but got True"),
        (lambda r: r.pop("layers"), "layers is missing"),
        (lambda r: r.update(extra=1), "extra is not a key of version 2"),
        (lambda r: r.update(layers={}), "expected a list at layers"),
        (lambda r: r["layers"].append(7), r"expected an object at layers\[5\], but got 7"),
        (lambda r: r["layers"][1].update(channels=-1), r"a number of channels at layers\[1\]\.channels"),
        (lambda r: r["layers"][1].update(channels=10**12), r"a number of channels at layers\[1\]\.channels"),
        (lambda r: r["layers"][1].update(codes="AAA="), r"layers\[1\]\.codes is not a key"),
        (lambda r: r["layers"][1].pop("states"), r"expected an object at layers\[1\]\.states, but got None"),
        (lambda r: r["layers"][1]["states"].update(dead=[32]), r"channels from 0 to 31 at layers\[1\]\.states\.dead"),
        (lambda r: r["layers"][1]["states"].update(asleep=[1]), "expected one of dead, saturated.* but got 'asleep'"),
        (lambda r: r["layers"][1]["states"].update(starved=[0]), "one state per channel"),
        (lambda r: r["layers"][1].update(evidence="hearsay"), "one of activation, sampled activation"),
        (lambda r: r["layers"][0]["values"].update(norms=[None]), r"a number at layers\[0\]\.values\.norms\[0\]"),
        (
            lambda r: r["findings"][0].update(severity="fatal"),
            r"one of info, warning, error at findings\[0\]\.severity",
        ),
        (lambda r: r["findings"][0]["evidence"].update(x=[1]), r"a number at findings\[0\]\.evidence\.x"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_what_is_wrong_where(change: object, message: str, tmp_path: Path) -> None:
    record = json.loads(schema.to_json(sick_report()))
    change(record)  # type: ignore[operator]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        Report.load(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"[]", b"null", b"NaN", b"[" * 100_000, b"\xff\xfe{}"])
def test_a_foreign_file_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Report.load(path)


@settings(max_examples=50)
@given(st.data())
def test_a_changed_byte_is_read_or_refused_but_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(schema.to_json(malicious_report()).encode())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        report = schema.from_json(Report, bytes(whole), "a file")
    except ValueError as error:
        assert str(error).startswith("a file: ")  # noqa: PT017
    else:
        assert isinstance(report, Report)


def test_damaged_packed_reports_are_errors() -> None:
    packed = schema.pack(sick_report())
    with pytest.raises(ValueError, match="the packed report: not compressed"):
        schema.unpack(Report, packed[:-9])
    with pytest.raises(ValueError, match="the packed report"):
        schema.unpack(Report, torch.zeros(0, dtype=torch.uint8))


def test_a_layer_with_too_few_codes_is_not_written() -> None:
    layer = replace(sick_report().layers[0], codes=b"\0")
    with pytest.raises(ValueError, match=r"'features\.0' has 16 channels and 1 codes"):
        schema.to_json(replace(sick_report(), layers=(layer,)))


@pytest.mark.parametrize("random_codes", [0.1, 1.0])
def test_resnet_50_keeps_300_windows_in_16_megabytes(random_codes: float) -> None:
    """54 layers and 26 560 channels; at 1.0 each code and half of the channels of four findings a layer are random."""
    rng = random.Random(0)
    widths = [491] * 53 + [26_560 - 53 * 491]
    base, size, windows = sick_report(), 0, 3
    for window in range(windows):
        layers, findings = [], []
        for place, width in enumerate(widths):
            name = f"layer{place // 14}.{place // 4}.conv{place % 4}"
            code = bytes(
                rng.randrange(len(STATES)) | rng.getrandbits(4) << 4 if rng.random() < random_codes else 0
                for _ in range(width)
            )
            measures = {f.name: rng.random() for f in fields(LayerReport) if f.type == "float | None"}
            layers.append(replace(base.layers[0], name=name, channels=width, codes=code, **measures))
            for kind in ("dead_channels", "zero_kernels", "dormant_channels", "frozen_weights"):
                chosen = tuple(c for c in range(width) if rng.random() < random_codes / 2)
                evidence: dict[str, float | int | str] = {"ratio": rng.random(), "since_window": window}
                findings.append(replace(base.findings[1], kind=kind, layer=name, channels=chosen, evidence=evidence))
        size += len(schema.pack(replace(base, window=window, layers=tuple(layers), findings=tuple(findings))))
    assert size / windows * 300 < 16e6


def test_a_compact_report_keeps_all_but_values_and_tensors() -> None:
    report = replace(sick_report(), tensors=WindowTensors())
    compact = report.compact()
    assert compact.tensors is None
    assert all(layer.values is None for layer in compact.layers)
    assert compact.summary() == report.summary()
    assert compact.findings == report.findings


def test_a_report_that_version_0_1_0_wrote_still_reads_and_shows_itself() -> None:
    report = Report.load(VERSION_1)
    assert report.dead_channels == {"conv1": [3, 5, 11]}
    assert report["conv1"].zero_kernels == [5]
    assert [finding.title for finding in report.findings] == ["dead channels", "dead channels", "zero kernels"]
    assert (report.run, report.thresholds) == (None, Thresholds())
    assert "of 16 kernels" not in report.verdict
    assert report.verdict.startswith("conv1: dead channels")
    assert schema.from_json(Report, schema.to_json(report)) == report


def test_a_report_in_text_is_a_few_lines() -> None:
    lines = str(sick_report()).splitlines()
    assert lines[:2] == ["window 3 (epoch 2, global step 60)", sick_report().verdict]
    assert len(lines) == 3
    assert repr(sick_report()) == f"<Report of {lines[0]}: {lines[1]}>"


def test_a_dataframe_has_a_row_a_layer_and_one_a_channel() -> None:
    pytest.importorskip("pandas")
    report = sick_report()
    layers = report.to_dataframe().set_index("layer")
    assert list(layers.index) == [layer.name for layer in report.layers]
    assert (layers.loc["features.0", "dead"], layers.loc["features.0", "zero_kernels"]) == (2, 2)
    assert layers.loc["attention.mix", "gradient_ratio"] == 3.1e-9
    assert {shown.name for shown in STATISTICS} | {word.attribute for word in COUNTED} <= set(layers.columns)
    channels = report.channels_dataframe()
    assert len(channels) == sum(layer.channels for layer in report.layers)
    dead = channels[channels.state == "dead"]
    assert dead.groupby("layer").channel.apply(list).to_dict() == report.dead_channels
    assert list(dead.firing_rate) == [0.0] * 8
    assert channels[channels.zero_kernel].channel.to_list() == [3, 11]


def test_an_unknown_layer_is_told_with_near_names() -> None:
    with pytest.raises(KeyError, match=r"no layer named 'feature\.0'; near names: 'features\.0'"):
        sick_report()["feature.0"]
    with pytest.raises(KeyError, match="no layer named 0; near names: "):
        sick_report()[0]  # type: ignore[index]


def test_the_summary_counts_watched_channels_only() -> None:
    summary = sick_report().summary()
    assert summary["dead_channels"] == 8
    assert summary["dead_fraction"] == 8 / 122
    assert summary["zero_kernel_fraction"] == 2 / 122
    assert summary["min_gradient_ratio"] == 3.1e-9
    assert summary["vanishing_layers"] == 1
    assert sick_report().dead_channels == {"features.0": [3, 11], "features.3": [0, 1, 2, 3, 7, 20]}


def test_what_killed_writers_left_unfinished_is_removed_and_nothing_that_is_young_or_not_ours(tmp_path: Path) -> None:
    def left(name: str, age: float, ending: str | None = None) -> Path:
        path = tmp_path / f".{name}.{ending or uuid4().hex}.tmp"
        path.write_text("half of")
        os.utime(path, (time.time() - age,) * 2)
        return path

    a_day, hash_of = 86_400.0, "0123456789abcdef"
    stale = [left("report.json", a_day), left("report.json", a_day), left(f"report.{hash_of}.npz", a_day)]
    of_others = [
        left("report.json", 0),
        left(f"report.{hash_of}.npz", 0),
        left("report.json", a_day, "tar"),
        left("other.json", a_day),
        left("report.md", a_day),
        left("report.notes.npz", a_day),
    ]
    sick_report().save(tmp_path / "report.json")
    assert set(tmp_path.iterdir()) == {tmp_path / "report.json", *of_others}
    assert not any(path.exists() for path in stale)
    sick_report().save(tmp_path / "report.md")
    assert not of_others[4].exists()
