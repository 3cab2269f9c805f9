"""Every kind of logger, read back with its own tools."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import math
import re
import statistics
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2

from helpers.reports import SMALL, fake_tensors, history, plain
from lightning_deadkernel.errors import DeadKernelWarning
from lightning_deadkernel.functional.histograms import bit_histogram
from lightning_deadkernel.loggers import LAYER_SCALARS, Adapter, RunLog, report_folder
from lightning_deadkernel.loggers.adapter import adapter_of, compact
from lightning_deadkernel.loggers.scalars import stages_in, worst_layers, worst_scalars
from lightning_deadkernel.observation import WindowTensors
from lightning_deadkernel.report.report import Report

HISTOGRAMS = ("weights", "gradients", "firing_rate", "kernel_norms")
SUMMARY = {
    "deadkernel/dead_fraction",
    "deadkernel/dead_channels",
    "deadkernel/zero_kernel_fraction",
    "deadkernel/starved_fraction",
    "deadkernel/dormant_fraction",
    "deadkernel/weight_sparsity",
    "deadkernel/activation_sparsity",
    "deadkernel/min_gradient_ratio",
    "deadkernel/vanishing_layers",
}
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{name} is not installed")
    for name, module in {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml", "swanlab": "swanlab"}.items()
}


class MemoryLogger(Logger):
    """A user's own logger: keeps what it is given."""

    def __init__(self, separator: str = "/", breaks_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []
        self.separator, self.breaks_at = separator, breaks_at

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    @property
    def group_separator(self) -> str:
        return self.separator

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.breaks_at is not None and len(self.calls) >= self.breaks_at:
            raise ConnectionError("server is gone")
        self.calls.append((step, dict(metrics)))


@pytest.fixture
def reports() -> list[Report]:
    """Five windows of a small network, two kernels of conv2 dead since the third, each window with its histograms."""
    made = history(dies={"conv2": {3: 3, 5: 3}})
    generator = torch.Generator().manual_seed(0)
    return [dataclasses.replace(report, tensors=fake_tensors(SMALL, generator)) for report in made]


def png(width: int = 30, height: int = 20) -> bytes:
    kept = io.BytesIO()
    Image.new("RGBA", (width, height), "red").save(kept, "png")
    return kept.getvalue()


def log_all(loggers: list[Any], reports: list[Report], **options: Any) -> RunLog:
    log = RunLog(loggers, **options)
    for report in reports:
        step = report.global_step
        log.scalars(report, step)
        log.histograms(report, step)
        log.text(f"# Window {report.window}", step)
        log.pictures({"overview": png(), "map": png()}, step)
    return log


def read_tensorboard(logger: TensorBoardLogger) -> EventAccumulator:
    logger.save()
    events = EventAccumulator(logger.log_dir, dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0))
    return events.Reload()


# -- TensorBoard ------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_summary_and_each_layer_at_the_true_steps(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    events = read_tensorboard(logger)
    tags = set(events.Tags()["scalars"])
    assert tags >= SUMMARY
    assert [event.step for event in events.Scalars("deadkernel/dead_channels")] == [100, 200, 300, 400, 500]
    assert [event.value for event in events.Scalars("deadkernel/dead_channels")] == [0, 0, 2, 2, 2]
    assert [event.value for event in events.Scalars("deadkernel.dead_fraction/conv2")] == [0, 0, 2 / 32, 2 / 32, 2 / 32]
    assert events.Scalars("deadkernel.gradient_ratio/conv1")[-1].value == pytest.approx(
        reports[-1]["conv1"].gradient_ratio, rel=1e-6
    )


def test_tensorboard_gets_one_event_for_all_scalars_of_a_window_and_one_for_all_histograms(
    tmp_path: Path, reports: list[Report]
) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    logger.save()
    kinds: Counter[tuple[int, str]] = Counter()
    for file in Path(logger.log_dir).glob("events*"):
        for event in EventFileLoader(str(file)).Load():
            kinds.update((event.step, value) for value in {v.tag.split("/")[0] for v in event.summary.value})
    assert kinds[500, "deadkernel.gradient_ratio"] == 1
    assert kinds[500, "deadkernel.histograms.weights"] == 1


def test_a_layer_has_only_the_statistics_that_mean_something_for_it(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    tags = set(read_tensorboard(logger).Tags()["scalars"])
    assert "deadkernel.firing_rate/conv1" in tags
    assert "deadkernel.firing_rate/fc" not in tags, "the last layer has no activation"
    assert "deadkernel.zero_gradient_fraction/fc" in tags
    assert "deadkernel.zero_gradient_fraction/conv1" not in tags
    assert not any("saturated" in tag for tag in tags), "a ReLU does not saturate"


def test_a_sigmoid_layer_has_a_saturated_share(tmp_path: Path) -> None:
    logger = MemoryLogger()
    log_all([logger], history((("fc1", "Linear", 8, "sigmoid"),), 1, dies={"fc1": {0: 1, 1: 1}}, state="saturated"))
    assert logger.calls[0][1]["deadkernel.saturated_fraction/fc1"] == 0.25


def test_tensorboard_histograms_hold_the_counts_from_initialisation_on(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    events = read_tensorboard(logger)
    assert set(events.Tags()["histograms"]) == {
        f"deadkernel.histograms.{statistic}/{layer}"
        for statistic in HISTOGRAMS
        for layer in ("conv1", "conv2", "fc")
        if (statistic, layer) != ("firing_rate", "fc")
    }
    kept = events.Histograms("deadkernel.histograms.weights/conv2")
    assert [event.step for event in kept] == [0, 100, 200, 300, 400, 500]
    counts = reports[2].tensors.histograms["weights"]["conv2"]
    assert kept[2].histogram_value.num == counts.sum() == sum(kept[2].histogram_value.bucket)


def test_no_tag_is_both_a_scalar_and_a_histogram_or_a_picture(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    tags = read_tensorboard(logger).Tags()
    seen = Counter(tag for kind in ("scalars", "histograms", "images", "tensors") for tag in tags[kind])
    assert seen.most_common(1)[0][1] == 1


def test_tensorboard_has_the_pictures_and_the_text_of_each_window(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], reports)
    events = read_tensorboard(logger)
    assert set(events.Tags()["images"]) == {"deadkernel/overview", "deadkernel.figures/map"}
    picture = events.Images("deadkernel.figures/map")[-1]
    assert (picture.step, picture.width, picture.height, picture.encoded_image_string) == (500, 30, 20, png())
    texts = events.Tensors("deadkernel/report/text_summary")
    assert [text.tensor_proto.string_val[0] for text in texts][-1] == b"# Window 5"


def layout_of(events: EventAccumulator) -> layout_pb2.Layout:
    (config,) = events.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])


@pytest.mark.parametrize("prefix", ["", "run(1)"])
def test_the_custom_scalars_layout_charts_every_scalar_with_the_summary_first(
    tmp_path: Path, reports: list[Report], prefix: str
) -> None:
    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    log_all([logger], reports)
    events = read_tensorboard(logger)
    layout = layout_of(events)
    assert [category.title for category in layout.category] == ["deadkernel: the network", "deadkernel: layer by layer"]
    charts = {chart.title: chart.multiline.tag for category in layout.category for chart in category.chart}
    tags = events.Tags()["scalars"]
    shown = {title: {tag for tag in tags for regex in every if re.match(regex, tag)} for title, every in charts.items()}
    assert shown["gradient ratio"] == {
        logger._prefix + ("-" if prefix else "") + f"deadkernel.gradient_ratio/{layer}"
        for layer in ("conv1", "conv2", "fc")
    }
    unshown = set(tags) - set().union(*shown.values())
    assert {tag.rsplit("/")[-1] for tag in unshown} == {"dead_channels"}


def test_values_too_small_for_a_normal_float_are_shown_as_zero() -> None:
    buckets = compact(bit_histogram(torch.tensor([0.0, -0.0, 1e-40, 0.3, -0.3])))
    assert buckets.edges == [-0.375, -0.25, 0.0, 0.0, 0.25, 0.375]
    assert buckets.counts == [1, 0, 3, 0, 1]
    assert compact(bit_histogram(torch.full((5,), math.nan))) is None


def test_a_layer_of_nan_weights_gives_no_histogram_and_breaks_nothing(tmp_path: Path, reports: list[Report]) -> None:
    logger = TensorBoardLogger(tmp_path)
    tensors = WindowTensors({"weights": {"conv1": bit_histogram(torch.tensor([math.nan, math.inf]))}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_all([logger], [dataclasses.replace(reports[1], tensors=tensors)])
    assert read_tensorboard(logger).Tags()["histograms"] == []


# -- constant keys ----------------------------------------------------------------------------------------------


def test_csv_keys_never_change_so_the_file_is_not_written_anew(
    tmp_path: Path, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    monkeypatch.setattr(type(logger.experiment), "_rewrite_with_new_header", lambda *_: pytest.fail("written anew"))
    excluded = dataclasses.replace(reports[3]["conv1"], excluded="a surprise", activation=None, gradient_ratio=None)
    reports[3] = dataclasses.replace(reports[3], layers=(*reports[3].layers[1:], excluded), tensors=None)
    log = RunLog([logger])
    for report in reports:
        log.scalars(report, report.global_step)
        logger.save()
    with open(Path(logger.log_dir, "metrics.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [100, 200, 300, 400, 500]
    assert rows[2]["deadkernel.gradient_ratio/conv1"] == "nan"
    assert rows[2]["deadkernel.weights_q50/conv1"] == "nan"
    assert float(rows[4]["deadkernel.dead_fraction/conv2"]) == 2 / 32


def test_a_layer_that_comes_late_is_logged_from_then_on_and_a_statistic_that_does_is_not(reports: list[Report]) -> None:
    late = dataclasses.replace(reports[3]["conv1"], name="late")
    without = tuple(dataclasses.replace(layer, gradient_ratio=None) for layer in reports[1].layers)
    reports[3] = dataclasses.replace(reports[3], layers=(*reports[3].layers, late))
    logger = MemoryLogger()
    log_all([logger], [dataclasses.replace(reports[1], layers=without), reports[2], reports[3], reports[4]])
    first, second, third, fourth = (set(metrics) for _, metrics in logger.calls)
    assert first == second
    assert {key.replace("/late", "/conv1") for key in third - first} <= first
    assert {key for key in third - first if "late" not in key} == set()
    assert len(third - first) > 1
    assert fourth == third


def test_nothing_but_histograms_and_text_is_logged_of_the_state_at_initialisation(reports: list[Report]) -> None:
    logger = MemoryLogger()
    log_all([logger], reports[:1])
    assert logger.calls == []


def test_all_scalars_of_a_window_come_in_one_call(reports: list[Report]) -> None:
    logger = MemoryLogger()
    log_all([logger], reports)
    assert [step for step, _ in logger.calls] == [100, 200, 300, 400, 500]
    assert len({tuple(metrics) for _, metrics in logger.calls}) == 1


def test_a_logger_without_histograms_gets_their_quartiles(reports: list[Report]) -> None:
    logger = MemoryLogger()
    rates = torch.linspace(0.01, 1, 100)
    tensors = WindowTensors({"firing_rate": {"conv1": bit_histogram(rates)}})
    log_all([logger], [dataclasses.replace(reports[1], tensors=tensors)])
    metrics = logger.calls[0][1]
    for name, quantile in (("q25", 0.25), ("q50", 0.5), ("q75", 0.75)):
        assert metrics[f"deadkernel.firing_rate_{name}/conv1"] == pytest.approx(quantile, rel=0.1)


def test_the_loggers_own_separator_is_used(reports: list[Report]) -> None:
    logger = MemoryLogger(separator="|")
    log_all([logger], reports)
    assert "deadkernel|dead_fraction" in logger.calls[0][1]
    assert "deadkernel.dead_fraction|conv1" in logger.calls[0][1]


@pytest.mark.parametrize(("layers", "histograms"), [(False, True), (False, False)])
def test_without_layers_the_summary_alone_is_logged(reports: list[Report], layers: bool, histograms: bool) -> None:
    logger = MemoryLogger()
    log_all([logger], reports, layers=layers, histograms=histograms)
    assert set(logger.calls[0][1]) == SUMMARY


# -- the worst layers -------------------------------------------------------------------------------------------


def test_the_worst_layers_are_ranked_anew_in_each_window_under_constant_keys() -> None:
    logger = MemoryLogger()
    reports = history(plain(60, 8), 3, dies={"features.90": dict.fromkeys(range(6), 3), "features.9": {0: 2}})
    log_all([logger], reports, layers=2)
    worst = [
        (metrics["deadkernel.dead_fraction/worst_1"], metrics["deadkernel.dead_fraction/worst_2"])
        for _, metrics in logger.calls
    ]
    assert worst == [(0, 0), (1 / 8, 0), (6 / 8, 1 / 8)]
    assert len({tuple(metrics) for _, metrics in logger.calls}) == 1
    assert worst_layers(reports[-1], 2) == ["features.90", "features.9"]


def test_low_gradients_and_updates_far_from_the_landmark_are_the_worst(reports: list[Report]) -> None:
    scalars = worst_scalars(reports[-1], 1)
    ratios = [layer.gradient_ratio for layer in reports[-1].layers]
    assert scalars["deadkernel.gradient_ratio", "worst_1"] == min(ratios)
    updates = [layer.update_ratio for layer in reports[-1].layers]
    assert scalars["deadkernel.update_ratio", "worst_1"] == max(
        updates, key=lambda ratio: abs(math.log10(ratio / 1e-3))
    )
    assert math.isnan(worst_scalars(reports[-1], 12)["deadkernel.weight_sparsity", "worst_12"])


def test_histograms_of_a_large_network_are_those_of_its_worst_layers(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_all([logger], history(plain(40, 8), 1, dies={"features.9": {0: 1}}), layers=1)
    assert {tag.split("/")[1] for tag in read_tensorboard(logger).Tags()["histograms"]} == {"features.9"}


DEEP = [(f"stages.{i // 50}.block.{i % 50}.conv", "Conv2d", 4, "relu") for i in range(200)]


def test_a_network_of_at_most_k_layers_has_curves_of_each_and_a_larger_one_a_bounded_number() -> None:
    layers = len(history(plain(20, 8), 1)[-1].watched)
    small, large, larger = MemoryLogger(), MemoryLogger(), MemoryLogger()
    log_all([small], history(plain(20, 8), 1), layers=layers, histograms=False)
    assert sum("features" in name for name in small.calls[0][1]) > 5 * layers
    assert not any("worst" in name or "stages" in name for name in small.calls[0][1])
    log_all([large], history(DEEP[:144], 2), layers=20, histograms=False)
    log_all([larger], history(DEEP, 2), layers=20, histograms=False)
    assert len(large.calls[0][1]) <= len(larger.calls[0][1]) <= 9 + len(LAYER_SCALARS) * (20 + 3 * 6)
    assert set(large.calls[0][1]) == set(large.calls[1][1])


def test_of_a_large_network_each_stage_has_the_range_of_its_layers() -> None:
    logger, reports = MemoryLogger(), history(DEEP, 1, dies={DEEP[60][0]: dict.fromkeys(range(3), 1)})
    log_all([logger], reports, layers=20, histograms=False)
    found = logger.calls[0][1]
    for stage in range(4):
        ratios = [reports[-1][name].gradient_ratio for name, *_ in DEEP if name.startswith(f"stages.{stage}.")]
        shown = [
            found[f"deadkernel.gradient_ratio.stages/stages.{stage}.block.0-49.conv_{end}"]
            for end in ("lowest", "median", "highest")
        ]
        assert shown == [min(ratios), statistics.median(ratios), max(ratios)]
    assert found["deadkernel.dead_fraction.stages/stages.1.block.0-49.conv_highest"] == 3 / 4
    assert not any("saturated" in name and "stages" in name for name in found), "a ReLU does not saturate"


def test_tensorboard_draws_a_stage_as_a_band_and_says_how_to_have_all_layers(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    log_all([board], history(DEEP, 1), layers=20)
    layout = layout_pb2.Layout.FromString(
        read_tensorboard(board).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    (ratios,) = (category for category in layout.category if "gradient ratio by stage" in category.title)
    assert len(ratios.chart) == 4
    (series,) = ratios.chart[0].margin.series
    tags = set(read_tensorboard(board).Tags()["scalars"])
    assert {series.value, series.lower, series.upper} <= tags
    assert (series.lower[-7:], series.value[-7:], series.upper[-7:]) == ("_lowest", "_median", "highest")
    (path,) = Path(board.log_dir).glob("events.*")
    said = {
        value.tag: value.metadata.summary_description
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.metadata.summary_description
    }
    assert said["deadkernel.update_ratio/worst_01"].endswith("`log_layers=True` logs every layer by its name.")
    assert "of a stage's layers" in said["deadkernel.update_ratio.stages/stages.0.block.0-49.conv_median"]
    assert len(read_tensorboard(board).Tags()["histograms"]) <= 4 * 20


def test_stages_that_would_be_called_the_same_are_called_by_their_first_and_last_layer() -> None:
    reports = history([(f"net.{i % 2}.x{i}.conv", "Conv2d", 4, "relu") for i in range(60)], 1)
    stages = stages_in(reports[-1], 6)
    assert [name for names in stages.values() for name in names] == [layer.name for layer in reports[-1].watched]
    assert len(stages) > 1


# -- several loggers, strange loggers ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_logger_that_raises_is_warned_of_once_and_the_others_go_on(
    tmp_path: Path, reports: list[Report], order: tuple[int, ...]
) -> None:
    board, broken, memory = TensorBoardLogger(tmp_path), MemoryLogger(breaks_at=1), MemoryLogger()
    loggers = [(board, broken, memory)[place] for place in order]
    with pytest.warns(DeadKernelWarning, match="MemoryLogger raised ConnectionError: server is gone") as caught:
        log_all(loggers, reports)
    assert len(caught) == 1
    assert (len(broken.calls), len(memory.calls)) == (1, 5)
    assert len(read_tensorboard(board).Scalars("deadkernel/dead_fraction")) == 5


def test_an_interrupt_by_the_user_is_not_swallowed(reports: list[Report]) -> None:
    class Interrupted(MemoryLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log_all([Interrupted()], reports)


def test_no_logger_and_the_dummy_of_fast_dev_run_are_fine(tmp_path: Path, reports: list[Report]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_all([], reports).files(tmp_path)
        log_all([DummyLogger()], reports).files(tmp_path)


def test_the_adapter_is_that_of_the_nearest_known_base(tmp_path: Path) -> None:
    class Mine(TensorBoardLogger):
        pass

    assert type(adapter_of(Mine(tmp_path))).__name__ == "TensorBoardAdapter"
    assert type(adapter_of(CSVLogger(tmp_path))) is Adapter
    assert type(adapter_of(type("WandbLogger", (MemoryLogger,), {})())) is Adapter, (
        "of the same name, but not Lightning's"
    )


def test_every_layer_card_of_tensorboard_says_what_it_shows_and_says_it_once(
    tmp_path: Path, reports: list[Report]
) -> None:
    board = TensorBoardLogger(tmp_path)
    log_all([board], reports)
    board.experiment.flush()
    (path,) = Path(board.log_dir).glob("events.*")
    described = Counter(
        (value.tag, value.metadata.summary_description)
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.metadata.summary_description
    )
    dead = ("deadkernel.dead_fraction/conv1", "Share of the layer's kernels each of which never fired behind a")
    assert [n for (tag, text), n in described.items() if tag == dead[0] and text.startswith(dead[1])] == [1]
    ratio = ("deadkernel.update_ratio/conv2", "Update ratio of each layer; about 0.001 is healthy.")
    assert described[ratio] == 1


def test_histograms_and_quartiles_of_shares_end_at_one(tmp_path: Path) -> None:
    rates = torch.cat([torch.ones(30), torch.full((10,), 0.8), torch.zeros(2)])
    tensors = WindowTensors(
        {"firing_rate": {"conv1": bit_histogram(rates)}, "weights": {"conv1": bit_histogram(rates)}}
    )
    report = dataclasses.replace(history(windows=1)[-1], tensors=tensors)
    board, memory = TensorBoardLogger(tmp_path), MemoryLogger()
    log_all([board, memory], [report])
    events = read_tensorboard(board)
    (shares,), (weights,) = (
        events.Histograms(f"deadkernel.histograms.{statistic}/conv1") for statistic in ("firing_rate", "weights")
    )
    assert (shares.histogram_value.max, weights.histogram_value.max) == (1.0, 1.5)
    assert (shares.histogram_value.num, sum(shares.histogram_value.bucket)) == (42, 42)
    assert memory.calls[0][1]["deadkernel.firing_rate_q75/conv1"] <= 1


def test_a_logger_is_one_class_that_names_whom_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "known", {**Adapter.known})

    class Shouting(Adapter, serves="ShoutingLogger"):
        def tag(self, key: Any) -> str:
            return super().tag(key).upper()

    kind = type("ShoutingLogger", (MemoryLogger,), {"__module__": "lightning.pytorch.loggers.shouting"})
    logger = kind()
    log_all([logger], history(windows=1))
    assert type(adapter_of(logger)) is Shouting
    assert "DEADKERNEL/DEAD_FRACTION" in logger.calls[0][1]


def test_all_adapters_are_found_where_no_loggers_package_is_installed() -> None:
    absent = ("tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "PIL")
    code = f"""
import sys
import lightning.pytorch  # which imports what it finds, as it likes
sys.modules.update(dict.fromkeys({absent}))
from lightning_deadkernel.loggers import Adapter
print(*sorted({{name for _, name in Adapter.known}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "CometLogger",
        "MLFlowLogger",
        "SwanLabLogger",
        "TensorBoardLogger",
        "WandbLogger",
    ]


def test_a_logger_of_the_other_namespace_is_known_without_importing_it() -> None:
    for namespace in ("pytorch_lightning.loggers.tensorboard", "lightning.pytorch.loggers.tensorboard"):
        kind = type("TensorBoardLogger", (MemoryLogger,), {"__module__": namespace})
        assert type(adapter_of(kind())).__name__ == "TensorBoardAdapter"


# -- folders ----------------------------------------------------------------------------------------------------


def test_the_report_goes_beside_the_first_logger_with_a_folder_of_this_run(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path / "tb", name="net", version=3)
    assert report_folder([MemoryLogger(), board], tmp_path) == tmp_path / "tb/net/version_3/deadkernel"
    assert report_folder([CSVLogger(tmp_path / "csv", version="a")], tmp_path).parts[-2:] == ("a", "deadkernel")


def test_a_folder_without_a_version_is_never_shared_by_two_runs(tmp_path: Path) -> None:
    unversioned = TensorBoardLogger(tmp_path / "tb", name="net", version="")
    for number in range(3):
        assert report_folder([], tmp_path) == tmp_path / f"deadkernel/version_{number}"
        assert report_folder([DummyLogger()], tmp_path / "dummy").name == f"version_{number}"
        assert report_folder([unversioned], tmp_path) == tmp_path / f"tb/net/deadkernel/version_{number}"


def test_a_logger_that_saves_to_save_dir_gets_name_and_version_below_it(tmp_path: Path) -> None:
    logger = type("Saves", (MemoryLogger,), {"save_dir": property(lambda self: str(tmp_path))})()
    assert report_folder([logger], "elsewhere") == tmp_path / "memory/0/deadkernel"
    remote = type("Remote", (MemoryLogger,), {"save_dir": property(lambda self: "s3://bucket/runs")})()
    assert report_folder([remote], tmp_path) == tmp_path / "deadkernel/version_0"


# -- Weights & Biases -------------------------------------------------------------------------------------------


def wandb_records(raw: bytes) -> Iterator[bytes]:
    """Records of a ``.wandb`` file: a header, then a LevelDB log (32 KiB blocks; checksum, length and type a chunk)."""
    at, part = 7, b""
    while at + 7 <= len(raw):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        if at + 7 + length > len(raw):
            break  # still being written
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            yield part
            part = b""


def read_wandb(folder: Path) -> list[dict[str, Any]]:
    """The history rows of the one offline run under a folder, from its own record file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(300):  # another process writes the file, and may still do so after the run has finished
        records = [wandb_internal_pb2.Record.FromString(raw) for raw in wandb_records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.1)
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


@needs["wandb"]
def test_wandb_offline_keeps_scalars_histograms_pictures_and_the_report(
    tmp_path: Path, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    settings = wandb.Settings(console="off", disable_git=True, x_disable_stats=True)
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings=settings, prefix="mine")
    (tmp_path / "deadkernel").mkdir()
    (tmp_path / "deadkernel/report.json").write_text("{}")
    log_all([logger], reports).files(tmp_path / "deadkernel")
    logger.experiment.finish()
    rows = read_wandb(tmp_path)
    scalars = [row for row in rows if "mine-deadkernel/dead_channels" in row]
    assert [row["mine-deadkernel/dead_channels"] for row in scalars] == [0, 0, 2, 2, 2]
    assert [row["trainer/global_step"] for row in scalars] == [100, 200, 300, 400, 500]
    assert not any("_q25" in key for row in rows for key in row), "it has histograms of its own"
    name = "mine-deadkernel.histograms.weights/conv2"
    (*_, kept) = [row for row in rows if f"{name}/_type" in row]
    expected = compact(reports[-1].tensors.histograms["weights"]["conv2"])
    assert kept[f"{name}/_type"] == "histogram"
    assert (kept[f"{name}/values"], kept[f"{name}/bins"]) == (expected.counts, expected.edges)
    assert kept["trainer/global_step"] == 500
    media = {key: value for row in rows for key, value in row.items() if key.endswith("/path")}
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    assert (folder / media["mine-deadkernel.figures/map/path"]).stat().st_size > 0
    assert "# Window 5" in (folder / media["mine-deadkernel/report/path"]).read_text()


# -- MLflow -----------------------------------------------------------------------------------------------------


@needs["mlflow"]
def test_mlflow_keeps_scalars_quartiles_pictures_and_the_report(tmp_path: Path, reports: list[Report]) -> None:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())
    (tmp_path / "deadkernel").mkdir()
    (tmp_path / "deadkernel/report.json").write_text("{}")
    log_all([logger], reports).files(tmp_path / "deadkernel")
    client = MlflowClient(uri)
    kept = sorted(client.get_metric_history(logger.run_id, "deadkernel/dead_channels"), key=lambda metric: metric.step)
    assert [(metric.step, metric.value) for metric in kept] == [(100, 0), (200, 0), (300, 2), (400, 2), (500, 2)]
    assert client.get_metric_history(logger.run_id, "deadkernel.weights_q75/conv1")[0].value > 0
    assert {item.path for item in client.list_artifacts(logger.run_id, "deadkernel/step_00000500")} == {
        f"deadkernel/step_00000500/{name}" for name in ("report.md", "overview.png", "map.png")
    }
    folder = Path(client.download_artifacts(logger.run_id, "deadkernel", str(tmp_path)))
    assert (folder / "report.json").read_text() == "{}"
    assert (folder / "step_00000300/report.md").read_text() == "# Window 3"
    assert (folder / "step_00000300/map.png").read_bytes() == png()


@needs["mlflow"]
def test_mlflow_takes_more_scalars_than_fit_in_one_of_its_batches(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())
    log_all([logger], history(plain(120, 4), 1))
    metrics = MlflowClient(uri).get_run(logger.run_id).data.metrics
    assert len(metrics) > 1000
    assert {f"deadkernel.gradient_ratio/features.{3 * i}" for i in range(120)} <= set(metrics)


# -- Comet ------------------------------------------------------------------------------------------------------


@needs["comet"]
def test_comet_offline_keeps_scalars_histograms_pictures_and_the_report(
    tmp_path: Path, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_LOGGING_CONSOLE", "error")
    import comet_ml
    from lightning.pytorch.loggers import CometLogger

    logger = CometLogger(online=False, prefix="mine")
    settings = comet_ml.ExperimentConfig(
        offline_directory=str(tmp_path), log_code=False, log_git_metadata=False, log_env_details=False
    )
    # Lightning's own offline experiment is a disabled one, which keeps nothing
    logger._experiment = comet_ml.start(online=False, mode="create", experiment_config=settings)
    (tmp_path / "deadkernel").mkdir()
    (tmp_path / "deadkernel/report.json").write_text("{}")
    log_all([logger], reports).files(tmp_path / "deadkernel")
    logger.experiment.end()
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        kept = [json.loads(line)["payload"] for line in archive.read("messages.json").decode().splitlines()]
        metrics = [message["metric"] for message in kept if message.get("metric")]
        dead = [m for m in metrics if m["metricName"] == "mine_deadkernel/dead_channels"]
        assert [(m["step"], m["metricValue"]) for m in dead] == [(100, 0), (200, 0), (300, 2), (400, 2), (500, 2)]
        assets = {m["additional_params"].get("fileName"): m for m in kept if m.get("additional_params")}
        histogram = assets["mine_deadkernel.histograms.weights/conv2"]
        content = json.loads(archive.read(histogram["file_path"]))
        counted = sum(count for _, count in content["index_values"])
        assert counted == 32 * 50
    assert "mine_deadkernel.histograms.firing_rate/conv1" in assets
    assert any(str(name).endswith("report.json") for name in assets)


# -- SwanLab ----------------------------------------------------------------------------------------------------


@needs["swanlab"]
def test_swanlab_offline_keeps_scalars_quartiles_pictures_and_the_report(
    tmp_path: Path, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    import swanlab
    from swanlab.integration.pytorch_lightning import SwanLabLogger
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    log_all([SwanLabLogger(mode="offline", log_dir=str(tmp_path), project="mine")], reports)
    swanlab.finish()
    (run,) = tmp_path.glob("run-*")
    reader = DataStoreReader()
    reader.open(next(run.glob("*.swanlab")))
    scalars: dict[str, list[tuple[int, float]]] = {}
    while (raw := reader.scan()) is not None:
        record = Record.FromString(raw)
        if record.HasField("scalar"):
            scalars.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
    reader.close()
    assert scalars["deadkernel/dead_channels"] == [(100, 0), (200, 0), (300, 2), (400, 2), (500, 2)]
    assert "deadkernel.weights_q75/conv1" in scalars
    assert {path.read_text() for path in run.glob("media/**/*.txt")} >= {"# Window 3", "# Window 5"}
    assert len(list(run.glob("media/**/*.png"))) >= 5
