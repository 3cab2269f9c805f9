"""The pictures, by what is drawn in them: titles, cells, colours, axes."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from helpers.reports import SMALL, finding, history, plain, resnet
from helpers.short_runs import Training, digits, mlp, sgd
from helpers.training import fit, quiet
from lightning_deadkernel import Thresholds, figures
from lightning_deadkernel.figures.canvas import PALE, Panel
from lightning_deadkernel.figures.first_layer_kernels import as_image, first_layer_kernels
from lightning_deadkernel.figures.gradient_flow import gradient_flow
from lightning_deadkernel.figures.kernel_map import MOST_CELLS, kernel_map, map_layout, shares_of
from lightning_deadkernel.figures.life_lines import life_lines, life_of
from lightning_deadkernel.figures.overview import overview
from lightning_deadkernel.figures.update_ratios import update_ratios
from lightning_deadkernel.figures.weights import GAUSSIAN_NEAR_ZEROS, spread_of, weights
from lightning_deadkernel.functional.histograms import bit_histogram, to_edges
from lightning_deadkernel.observation import STATISTICS, WindowTensors
from lightning_deadkernel.report.records import LayerReport, OptimizerDescription, Problem, RunDescription
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import COLOURS, DORMANT, RARE, STATES, WORD_OF_CODE, WORDS, ZERO_KERNEL, word_of


def title(figure: Any) -> str:
    return figure.get_suptitle().replace("\n", " ")


def texts(figure: Any) -> list[str]:
    papers = [figure, *figure.subfigs, *figure.axes]
    found = [text for paper in papers for text in paper.texts]
    return [text.get_text().replace("\n", " ") for text in found]


def cells(axes: Any) -> Counter[str]:
    """Word -> number of cells of its colour in the pictures of an axes."""
    words = {colour.lower(): word for word, colour in COLOURS.items()}
    counted: Counter[str] = Counter()
    for image in axes.images:
        for colour in np.asarray(image.get_array()).reshape(-1, 3):
            counted[words.get(to_hex(colour / 255), "paper")] += 1
    return counted


def surfaces(axes: Axes, colour: str) -> list[Bbox]:
    """What is filled with that colour, apart from patches."""
    found = [surfaces for surfaces in axes.collections if isinstance(surfaces, PolyCollection)]
    return [
        path.get_extents()
        for one in found
        for path, shown in zip(one.get_paths(), one.get_facecolor(), strict=True)
        if to_hex(shown) == colour.lower()
    ]


def drawn(reports: list[Report]) -> dict[str, Any]:
    found = {name: picture(reports) for name, picture in figures.PICTURES.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def legend_words(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def with_layer(report: Report, name: str, **changes: Any) -> Report:
    layers = [dataclasses.replace(layer, **changes) if layer.name == name else layer for layer in report.layers]
    return dataclasses.replace(report, layers=tuple(layers))


@pytest.fixture
def unwell() -> list[Report]:
    """Three of conv2's 32 kernels dead since epoch 2, one that came back, and one of conv1's 16 dead from the start."""
    return history(dies={"conv2": {3: 3, 5: 3, 8: 3, 9: 4}, "conv1": {2: 1}}, revives={"conv2": {9: 5}})


# -- palette ---------------------------------------------------------------------------------------------------------


def test_every_state_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == {*STATES, "dormant", "rare"}
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_channel_is_shown_by_its_state_and_by_a_flag_only_where_it_is_active() -> None:
    dead = STATES.index("dead")
    assert word_of(dead | DORMANT | RARE) == "dead"
    assert word_of(DORMANT | RARE) == "dormant"
    assert word_of(RARE) == "rare"
    assert [WORDS[place] for place in bytes([0, dead | ZERO_KERNEL]).translate(WORD_OF_CODE)] == ["active", "dead"]


# -- kernel map ------------------------------------------------------------------------------------------------------


def test_the_kernel_map_has_one_cell_per_channel_coloured_by_state(unwell: list[Report]) -> None:
    (axes,) = kernel_map(unwell).axes
    shown = cells(axes)
    shown.pop("paper")
    assert sum(shown.values()) == 16 + 32 + 10
    assert shown["dead"] == 4
    assert [image.get_label() for image in axes.images] == ["conv1", "conv2", "fc"]
    row = np.asarray(axes.images[1].get_array())[0]
    assert [i for i, colour in enumerate(row) if to_hex(colour / 255) == COLOURS["dead"].lower()] == [3, 5, 8]


def test_the_kernel_map_says_which_layer_is_unhealthy_and_since_when(unwell: list[Report]) -> None:
    figure = kernel_map(unwell)
    assert title(figure) == "conv2: 3 of 32 kernels dead since epoch 2; 1 more in 1 other layer"
    assert "3 of 32 dead" in texts(figure)
    assert legend_words(figure.axes[0])[:2] == ["active", "dead"]
    assert any("60,000 samples" in text for text in texts(figure))


def test_the_kernel_map_of_a_healthy_network_claims_no_more_than_was_found() -> None:
    assert title(kernel_map(history())) == "None of 58 kernels found dead, saturated, starved or frozen"


def test_windows_shorter_than_an_epoch_are_told_by_their_step(unwell: list[Report]) -> None:
    reports = [dataclasses.replace(report, epoch=0) for report in unwell]
    assert "dead since step 300" in title(kernel_map(reports))
    (axes,) = life_lines(reports).axes
    assert axes.get_xlabel() == "global step"


def test_a_row_tells_all_that_is_wrong_in_it_where_there_is_room() -> None:
    reports = history(dies={"conv1": {0: 1}})
    starved = [STATES.index("starved")]
    few, many = bytes([1, *starved * 5, *[0] * 10]), bytes([1, 2, *starved, *[0] * 29])
    reports[-1] = with_layer(with_layer(reports[-1], "conv1", codes=few), "conv2", codes=many)
    assert {"1 dead, 5 starved", "1 of 32 dead", "10"} <= set(texts(kernel_map(reports)))


def test_kernels_that_died_at_different_times_are_not_given_one_date() -> None:
    reports = history(dies={"conv2": {1: 2, 2: 4}})
    assert title(kernel_map(reports)) == "conv2: 2 of 32 kernels dead one by one from epoch 1 on"


def test_a_layer_that_was_dead_in_the_first_window_is_dead_from_the_start() -> None:
    assert "dead from the start" in title(kernel_map(history(dies={"conv1": {0: 1, 1: 1}})))


def test_zero_kernels_have_a_dot(unwell: list[Report]) -> None:
    codes = bytearray(16)
    codes[4] = codes[7] = ZERO_KERNEL
    (axes,) = kernel_map([with_layer(unwell[-1], "conv1", codes=bytes(codes))]).axes
    (dots,) = [dots for dots in axes.collections if dots.get_label() == "zero kernel"]
    assert [x for x, _ in dots.get_offsets()] == [4.5, 7.5]
    assert "zero kernel" in legend_words(axes)


def test_the_map_of_resnet_18_wraps_wide_layers_and_says_so() -> None:
    reports = history(resnet(), 1, tensors=False)
    figure = kernel_map(reports)
    shown = cells(figure.axes[0])
    shown.pop("paper")
    assert sum(shown.values()) == reports[-1].channels == 5800
    assert any("128 cells a line" in text for text in texts(figure))
    assert figure.get_size_inches()[1] < 10


def test_of_very_many_kernels_shares_are_drawn_the_worst_first_and_none_too_small_to_be_seen() -> None:
    reports = history(plain(30, 4096), 1, dies={"features.3": {77: 1}}, tensors=False)
    assert reports[-1].channels > MOST_CELLS
    figure = kernel_map(reports)
    (axes,) = figure.axes
    dead = surfaces(axes, COLOURS["dead"])
    assert [(box.x0, box.width, box.height) for box in dead] == [(0, pytest.approx(0.006), 1)]
    assert "1 of 4,096 dead" in texts(figure)
    assert any("colours are shares" in text for text in texts(figure))
    counts = [0] * len(WORDS)
    counts[WORDS.index("active")], counts[WORDS.index("dead")], counts[WORDS.index("rare")] = 40, 40, 20
    assert shares_of(counts) == [("dead", 0.4), ("rare", 0.2), ("active", pytest.approx(0.4))]


def test_neighbours_of_a_deep_network_share_rows_that_say_what_is_wrong_in_them() -> None:
    names = [f"net.stages.{stage}.block.{block}.conv" for stage in range(4) for block in range(75)]
    dies = {name: dict.fromkeys(range(3), 1) for name in names[170:173]}
    reports = history([(name, "Conv2d", 8, "relu") for name in names], 1, dies=dies, tensors=False)
    layout = map_layout(reports[-1].watched)
    assert sum(map(len, layout.rows)) == 300
    assert len(layout.rows) <= 60
    assert len(set(layout.names())) == len(layout.rows)
    figure = kernel_map(reports)
    assert sum(int(text.split()[0]) for text in texts(figure) if re.fullmatch(r"\d+ of \d+ dead", text)) == 9
    assert figure.get_size_inches()[1] < 20


@pytest.mark.parametrize("layers", [4, 30, 60, 200])
def test_every_row_of_a_map_has_its_name_and_room_for_it(layers: int) -> None:
    reports = history(plain(layers, 4), 1, dies={"features.3": {0: 1}}, tensors=False)
    (axes,) = kernel_map(reports).axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named == map_layout(reports[-1].watched).names()
    inches = axes.bbox.height / 100 / (axes.get_ylim()[0] - axes.get_ylim()[1])
    assert min(b - a for a, b in pairwise(axes.get_yticks())) * inches * 72 > 8.5


def test_excluded_layers_are_not_drawn_but_counted(unwell: list[Report]) -> None:
    figure = kernel_map([with_layer(unwell[-1], "fc", excluded="requires_grad=False")])
    assert len(figure.axes[0].images) == 2
    assert any("1 layer not watched" in text for text in texts(figure))


# -- life lines ------------------------------------------------------------------------------------------------------


def test_life_lines_show_the_unhealthy_channels_of_the_worst_layer_by_window(unwell: list[Report]) -> None:
    figure = life_lines(unwell)
    (axes,) = figure.axes
    colours = np.asarray(axes.images[0].get_array())
    dead = [[to_hex(colour / 255) == COLOURS["dead"].lower() for colour in row] for row in colours]
    assert dead == [[False] * 3 + [True] * 3, [False] * 4 + [True, False]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3, 5, 8", "9"]
    assert title(figure) == "conv2: 3 of 32 kernels dead since epoch 2; 1 came back to life"
    assert any("28 always healthy not shown" in text for text in texts(figure))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["init", "0", "1", "2", "3", "4"]
    assert axes.get_xlabel() == "epoch"


def test_of_windows_that_were_not_kept_titles_claim_no_more_than_is_known() -> None:
    kept = [
        report for report in history(windows=8, dies={"conv2": {3: 4}}) if report.window % 3 == 0 or report.window > 6
    ]
    figure = life_lines(kept)
    assert figure is not None
    assert title(figure) == "conv2: 1 of 32 kernels dead since epoch 2 to epoch 5"
    assert "9 windows, 5 of them shown" in "".join(text.get_text() for text in figure.findobj(Text))


def test_channels_of_one_fate_share_a_row_and_the_longest_unhealthy_come_first() -> None:
    dies = {"fc1": {1500: 2, 7: 5, 900: 3, **dict.fromkeys(range(20, 60), 4)}}
    reports = history((("fc1", "Linear", 2048, "relu"),), 6, dies=dies, tensors=False)
    life = life_of(reports, "fc1")
    assert life.rows == ((1500,), (900,), tuple(range(20, 60)), (7,))
    assert (life.healthy, life.left_out, life.came_back) == (2048 - 43, 0, 0)
    figure = life_lines(reports)
    assert title(figure) == "fc1: 43 of 2,048 kernels dead one by one from epoch 1 on"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["1500", "900", "40 channels", "7"]


def test_of_very_many_fates_the_longest_are_shown_and_the_others_counted() -> None:
    dies = {"fc1": {channel: 1 + channel for channel in range(60)}}
    life = life_of(history((("fc1", "Linear", 64, "relu"),), 60, dies=dies, tensors=False), "fc1")
    assert (len(life.rows), life.left_out, life.healthy) == (40, 20, 4)


def test_a_layer_in_which_nothing_was_ever_wrong_has_no_life_lines(unwell: list[Report]) -> None:
    assert life_of(unwell, "fc") is None
    assert life_lines(history()) is None


def test_a_window_in_which_a_layer_was_not_watched_is_left_white(unwell: list[Report]) -> None:
    unwell[2] = with_layer(unwell[2], "conv2", excluded="a surprise")
    colours = np.asarray(life_lines(unwell).axes[0].images[0].get_array())
    assert (colours[:, 2] == 255).all()
    assert not (colours[:, 1] == 255).all()


def test_time_labels_of_300_windows_are_few() -> None:
    (axes,) = life_lines(history(SMALL, 300, dies={"conv1": {0: 9}}, tensors=False)).axes
    assert len(axes.get_xticklabels()) <= 13


# -- gradient flow and updates ---------------------------------------------------------------------------------------


def line(axes: Any, label: str) -> Any:
    return next(line for line in axes.lines if line.get_label() == label)


def test_gradient_flow_has_a_log_axis_with_the_bands_and_the_last_window_strong(unwell: list[Report]) -> None:
    (axes,) = gradient_flow(unwell).axes
    assert axes.get_yscale() == "log"
    assert "rms(grad) / largest rms(grad)" in axes.get_ylabel()
    assert list(line(axes, "last").get_ydata()) == [layer.gradient_ratio for layer in unwell[-1].layers]
    past = [line for line in axes.lines if line.get_label() == "_past"]
    assert len(past) == 4, "windows 1 to 4; there is no gradient at initialisation"
    assert all(one.get_linewidth() < line(axes, "last").get_linewidth() for one in past)
    bands = sorted(patch.get_y() + patch.get_height() for patch in axes.patches)
    assert bands == pytest.approx([1e-6, 1e-3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "conv2", "fc"]


def test_gradient_flow_says_where_the_gradient_vanishes() -> None:
    reports = history(plain(60, 4), 3, shrink=0.5, tensors=False)
    below = sum(layer.gradient_ratio < 1e-6 for layer in reports[-1].layers)
    assert title(gradient_flow(reports)).startswith(f"The gradient vanishes in {below} of 60 layers, smallest at")


def test_gradient_flow_of_a_healthy_network_names_the_smallest_ratio(unwell: list[Report]) -> None:
    assert re.match(
        r"Gradients reach every layer; the smallest ratio is 0\.\d+, at conv1", title(gradient_flow(unwell))
    )


def test_an_exact_zero_gradient_is_marked_and_told_apart_from_a_small_one(unwell: list[Report]) -> None:
    figure = gradient_flow([with_layer(unwell[-1], "conv2", gradient_ratio=0.0)])
    assert title(figure) == "No gradient at all reaches conv2"
    assert list(line(figure.axes[0], "no gradient").get_xdata()) == [1]
    assert math.isnan(line(figure.axes[0], "last").get_ydata()[1])


def test_the_bands_and_the_titles_are_those_of_the_users_thresholds(unwell: list[Report]) -> None:
    limits = Thresholds(vanishing_gradient=0.1, weak_gradient=0.75, update_small=1e-2, update_large=2e-2)
    reports = [dataclasses.replace(report, thresholds=limits) for report in unwell]
    flow, updates = gradient_flow(reports), update_ratios(reports)
    assert title(flow).startswith("The gradient is weak in 1 of 3 layers, smallest at conv1")
    assert sorted(patch.get_y() + patch.get_height() for patch in flow.axes[0].patches) == pytest.approx([0.1, 0.75])
    assert title(updates).startswith("The weights of 3 of 3 layers hardly change")
    bands = [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in updates.axes[0].patches]
    assert max(bottom for bottom, _ in bands) == pytest.approx(2e-2)
    assert min(top for _, top in bands) == pytest.approx(1e-2)
    assert title(flow) in map(title, overview(reports).subfigs)


def test_a_training_hands_its_thresholds_to_the_pictures() -> None:
    limits = Thresholds(weak_gradient=0.999, vanishing_gradient=0.998)
    net = Training(mlp(64, 16, 16, 10), sgd(0.05))
    monitor = fit(net, DataLoader(digits(), 64), monitor=quiet(thresholds=limits))
    assert title(gradient_flow(monitor.reports)).startswith("The gradient vanishes in")


def test_without_gradients_there_is_no_picture_of_them() -> None:
    assert gradient_flow(history(gradient=None)) is None


def test_update_ratios_have_a_line_of_medians_and_a_dot_for_the_largest_step(unwell: list[Report]) -> None:
    figure = update_ratios(unwell)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert list(line(axes, "conv2").get_ydata()[1:]) == [report["conv2"].update_ratio for report in unwell[1:]]
    dots = [list(dots.get_ydata()) for dots in axes.lines if dots.get_label() == "_largest"]
    assert dots == [[3e-3] * 5] * 3
    assert {"conv1", "conv2", "fc"} <= set(texts(figure))
    assert title(figure).startswith("Update ratios are between")


def test_one_reckless_step_is_in_the_title_whenever_it_was(unwell: list[Report]) -> None:
    unwell[2] = with_layer(unwell[2], "conv2", update_ratio_max=0.69)
    figure = update_ratios(unwell)
    assert title(figure) == "A step in epoch 1 changed conv2 by 69% of its norm; above 10% is reckless"
    assert "reckless " in texts(figure)


@pytest.mark.parametrize(("optimizer", "healthy"), [("SGD", True), ("AdamW", False)])
def test_a_ratio_is_called_healthy_only_under_the_optimizer_that_it_is_for(
    unwell: list[Report], optimizer: str, healthy: bool
) -> None:
    run = RunDescription("Net", (OptimizerDescription(optimizer, {"lr": 0.1}),))
    figure = update_ratios([*unwell[:-1], dataclasses.replace(unwell[-1], run=run)])
    assert ("about 0.001 is healthy" in title(figure)) == healthy
    assert any("healthy" in text for text in texts(figure)) == healthy


def test_an_update_of_zero_lies_on_the_axis(unwell: list[Report]) -> None:
    figure = update_ratios([*unwell[:-1], with_layer(unwell[-1], "conv2", update_ratio=0.0)])
    (axes,) = figure.axes
    assert line(axes, "conv2").get_ydata()[-1] == axes.get_ylim()[0]
    assert "0" in texts(figure)


def test_of_many_layers_the_extremes_are_named() -> None:
    reports = history(plain(60, 4), 3, tensors=False)
    figure = update_ratios(reports)
    order = sorted(reports[-1].layers, key=lambda layer: layer.update_ratio)
    named = {text for text in texts(figure) if text.startswith("features")}
    assert named == {layer.name for layer in (*order[:3], *order[-3:])}


def test_of_many_layers_those_that_never_move_break_no_picture() -> None:
    reports = history(plain(60, 4), 3, tensors=False)
    for name in [layer.name for layer in reports[-1].layers][:5]:  # two more than are named: these have no point
        reports = [with_layer(report, name, update_ratio=0.0, update_ratio_max=0.0) for report in reports]
    (others,) = [found for found in update_ratios(reports).axes[0].collections if found.get_label() == "_others"]
    assert len(others.get_segments()) == 60 - 6 - 2


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (0.5, "Reckless updates in 1 of 3 layers: each step changes conv2 by 50%"),
        (1e-8, "The weights of 1 of 3 layers hardly change: update ratio 1.0e-08 at conv2"),
        (0.0, "The weights of 1 of 3 layers do not change: update ratio 0 at conv2"),
    ],
)
def test_update_ratios_say_what_is_wrong(unwell: list[Report], ratio: float, said: str) -> None:
    assert title(update_ratios([*unwell[:-1], with_layer(unwell[-1], "conv2", update_ratio=ratio)])) == said


def test_one_window_alone_can_be_drawn() -> None:
    reports = history(SMALL, 1, dies={"conv2": {0: 1}})[1:]
    assert list(figures.draw_all(reports).pictures) == list(figures.PICTURES)


# -- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_on_a_symmetric_log_axis_with_a_gaussian_behind_each(unwell: list[Report]) -> None:
    figure = weights(unwell)
    (axes,) = figure.axes
    assert axes.get_xscale() == "symlog"
    counts = unwell[-1].tensors.histograms["weights"]
    (outlines,) = [found for found in axes.collections if isinstance(found, LineCollection) and found.get_zorder()]
    for base, (name, outline) in zip((2, 1, 0), zip(counts, outlines.get_segments(), strict=True), strict=True):
        assert (outline[0][1], outline[-1][1]) == (base, base), name
        assert base + 0.5 < outline[:, 1].max() < base + 1, name
        assert outline[-1][0] == to_edges(counts[name])[1][-1], name
    behind = [box for box in surfaces(axes, PALE) if box.width > 0.01]
    assert [math.floor(box.y0) for box in behind] == [2, 1, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "conv2", "fc"]
    assert {"2%", "4%", "zeros", "near zeros"} <= set(texts(figure))


def test_gaussian_weights_lie_on_their_gaussian() -> None:
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.05
    spread = spread_of(bit_histogram(weights), 2.0**-13)
    assert spread.density == pytest.approx(spread.gaussian, abs=0.004)
    assert spread.center is not None
    assert pytest.approx(math.erf(1e-2 / math.sqrt(2)), abs=1e-4) == GAUSSIAN_NEAR_ZEROS


def test_what_is_near_zero_is_one_bucket_that_holds_its_share() -> None:
    weights = torch.cat([torch.zeros(300), torch.full((100,), 1e-6), torch.full((600,), 0.3)])
    spread = spread_of(bit_histogram(weights), 2.0**-10)
    assert spread.density[spread.center] == pytest.approx(0.4)
    assert spread_of(bit_histogram(torch.tensor([math.nan, math.inf])), 2.0**-10) is None


@pytest.mark.parametrize(
    ("zeros", "near", "said"),
    [
        (0.53, 0.6, "conv2: 53% of the weights are exactly zero"),
        (0.0, 0.6, "conv2: 60% of the weights are near zero (a Gaussian has 0.8%)"),
    ],
)
def test_weights_say_when_most_are_zero(unwell: list[Report], zeros: float, near: float, said: str) -> None:
    report = with_layer(unwell[-1], "conv2", weight_sparsity=zeros, weight_near_zeros=near)
    assert title(weights([report])) == said


def test_layers_of_zeros_and_of_nan_can_be_drawn(unwell: list[Report]) -> None:
    broken = {"conv1": bit_histogram(torch.zeros(10)), "conv2": bit_histogram(torch.full((5,), math.nan))}
    report = dataclasses.replace(unwell[-1], tensors=WindowTensors({"weights": broken}))
    figure = weights([report])
    figures.png(figure)
    assert "nothing finite" in texts(figure)
    only_zeros = WindowTensors({"weights": {"conv1": broken["conv1"]}})
    figures.png(weights([dataclasses.replace(unwell[-1], tensors=only_zeros)]))


# -- first kernels ---------------------------------------------------------------------------------------------------


def test_the_first_layers_kernels_are_images_and_dead_ones_are_framed(unwell: list[Report]) -> None:
    codes = bytearray(unwell[-1]["conv1"].codes)
    codes[6] = ZERO_KERNEL
    figure = first_layer_kernels([*unwell[:-1], with_layer(unwell[-1], "conv1", codes=bytes(codes))])
    (axes,) = figure.axes
    assert len(axes.images) == 16
    frames = [to_hex(patch.get_edgecolor()) for patch in axes.patches]
    assert frames[2] == COLOURS["dead"].lower()
    assert frames[6] == "#000000"
    assert len(set(frames)) == 3
    assert [text.get_text() for text in axes.texts][5:8] == ["5", "6 zero", "7"]
    assert title(figure) == "conv1: 1 of 16 kernels dead from the start, 1 zero"


def test_a_weight_of_zero_is_mid_grey_and_the_largest_is_white() -> None:
    kernel = torch.tensor([[[0.0, 2.0], [-2.0, math.nan]]])
    assert as_image(kernel, 2.0).tolist() == [[0.5, 1.0], [0.0, 0.5]]
    assert as_image(torch.zeros(3, 5, 5), 0.0).shape == (5, 5, 3)


def test_of_many_kernels_those_at_fault_are_among_those_shown() -> None:
    reports = history((("conv1", "Conv2d", 512, "relu"),), 1, dies={"conv1": {500: 1}})
    figure = first_layer_kernels(reports)
    assert len(figure.axes[0].images) == 96
    assert "500" in texts(figure)
    assert any("96 of 512 shown" in text for text in texts(figure))


# -- overview and all ------------------------------------------------------------------------------------------------


def test_the_overview_tells_what_was_found_and_what_to_do_before_all_pictures(unwell: list[Report]) -> None:
    figure = overview(unwell)
    shown = " ".join(texts(figure))
    assert unwell[-1].findings[0].advice in shown
    assert unwell[-1].findings[0].headline in shown
    alone = [title(picture(unwell)) for picture in (kernel_map, life_lines, gradient_flow, update_ratios)]
    assert sorted(title(part) for part in figure.subfigs) == sorted(alone)
    lowest = min(text.get_position()[1] for text in figure.texts if text.get_text().startswith("Why: "))
    assert lowest * figure.bbox.height > max(part.bbox.y1 for part in figure.subfigs)


def test_a_problem_is_told_once_in_its_own_words_and_its_findings_are_not_told_again(unwell: list[Report]) -> None:
    findings = (*(finding("dead_channels", name, [0]) for name in ("conv1", "conv2")), finding("rare", "fc", [1]))
    problem = Problem(
        "conv1 died", "warning", "conv1 died: it died of decay. Use AdamW.", "decayed", "Use AdamW.", "", (0, 1)
    )
    figure = overview([*unwell[:-1], dataclasses.replace(unwell[-1], findings=findings, problems=(problem,))])
    shown = texts(figure)
    assert shown.count("conv1 died") == 1
    assert "It died of decay. Use AdamW." in shown
    assert not any(findings[1].headline in text for text in shown)
    assert any(findings[2].headline in text for text in shown)
    assert not any("more finding" in text for text in shown)


def test_layers_of_one_fate_are_one_story_and_what_is_left_out_is_counted(unwell: list[Report]) -> None:
    alike = [finding("dead_channels", name, [0]) for name in ("conv1", "conv2", "fc")]
    others = [finding(kind, "fc", severity="info") for kind in ("sparse_weights", "weak_gradient", "update_too_small")]
    last = dataclasses.replace(unwell[-1], findings=tuple(alike + others))
    shown = texts(overview([*unwell[:-1], last]))
    assert any(text.endswith("; also conv2, fc") for text in shown)
    assert "and 1 more finding: see the report" in shown


def broken(**changes: Any) -> list[Report]:
    """A run in whose last window every layer's numbers are those, whatever they were."""
    *past, last = history()
    layers = tuple(dataclasses.replace(layer, **changes) for layer in last.layers)
    return [*past, dataclasses.replace(last, layers=layers)]


def in_all_states(layers: Sequence[tuple[str, str, int, str | None]]) -> list[Report]:
    """A run in whose last windows the kernels of every layer are in one state after the other, some of zeros."""
    first, *later = history(layers)
    every = [*range(len(STATES)), DORMANT, RARE, ZERO_KERNEL]
    return [
        first,
        *(
            dataclasses.replace(
                report,
                layers=tuple(
                    dataclasses.replace(layer, codes=bytes(every[c % len(every)] for c in range(layer.channels)))
                    for layer in report.layers
                ),
            )
            for report in later
        ),
    ]


NUMBERS = [statistic.name for statistic in STATISTICS]
NOTHING_FINITE = {name: {"conv1": bit_histogram(torch.full((5,), math.nan))} for name in ("weights", "kernel_norms")}


SITUATIONS = {
    "healthy": lambda: history(),
    "no gradient": lambda: history(gradient=None),
    "initialisation": lambda: history(windows=0),
    "60 layers": lambda: history(plain(60, 8, "sigmoid"), 2, dies={"features.9": {0: 1}}, state="saturated"),
    "one layer": lambda: history((("fc", "Linear", 3, None),), 2),
    "all dead": lambda: history(dies={"conv1": dict.fromkeys(range(16), 1), "conv2": dict.fromkeys(range(32), 1)}),
    "all NaN": lambda: broken(**dict.fromkeys(NUMBERS, math.nan)),
    "all infinite": lambda: broken(**dict.fromkeys(NUMBERS, math.inf)),
    "all zero": lambda: broken(**dict.fromkeys(NUMBERS, 0.0)),
    "weights NaN": lambda: [
        dataclasses.replace(report, tensors=WindowTensors(NOTHING_FINITE, "conv1", torch.full((16, 3, 5, 5), math.nan)))
        for report in history()
    ],
    "kernels stored by input": lambda: [
        dataclasses.replace(report, tensors=WindowTensors({}, "conv1", torch.rand(3, 16, 5, 5))) for report in history()
    ],
    "all states at once": lambda: in_all_states(SMALL),
    "all states at once under long names": lambda: in_all_states(
        [(f"encoder.{'block' * 3}.{i}.x", *SMALL[1][1:]) for i in range(3)]
    ),
    "all without a gradient": lambda: history(
        dies={"conv1": dict.fromkeys(range(16), 1), "conv2": dict.fromkeys(range(32), 1)}, state="zero-gradient"
    ),
    "wide layers saturated": lambda: history(
        plain(3, 4096, "sigmoid"), 2, {f"features.{i}": dict.fromkeys(range(1024), 1) for i in (0, 3, 6)}, "saturated"
    ),
    "from disk": lambda: [dataclasses.replace(report, tensors=None) for report in history()],
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_text_is_cut_off_or_lies_over_other_text(situation: str) -> None:
    for name, figure in drawn(SITUATIONS[situation]()).items():
        figures.png(figure)
        page = figure.bbox
        boxes = [(text, text.get_window_extent()) for text in visible_texts(figure)]
        for text, box in boxes:
            inside = page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
            assert inside, f"{name}: {text.get_text()!r} leaves the page"
        upright = [(text, box) for text, box in boxes if not text.get_rotation() and text.get_text() != "■"]
        for i, (text, box) in enumerate(upright):
            for other, place in upright[:i]:
                overlap = min(box.x1, place.x1) - max(box.x0, place.x0), min(box.y1, place.y1) - max(box.y0, place.y0)
                assert min(overlap) < 3, f"{name}: {text.get_text()!r} over {other.get_text()!r}"


@pytest.mark.parametrize("layers", [3, 60, 144, 300])
def test_all_pictures_of_a_net_of_any_depth_can_be_read(layers: int) -> None:
    names = [f"model.mask.encoder.stages.{i // 40}.block.{i % 40}.conv" for i in range(layers)]
    dies = {name: {0: 1} for name in names[1::7]}
    reports = history([(name, "Conv2d", 8, "relu") for name in names], 2, dies=dies)
    for name, figure in drawn(reports).items():
        figures.png(figure)
        for axes in figure.axes:
            turned = [label for label in axes.get_xticklabels() if label.get_rotation() and label.get_text()]
            corners = [label.get_window_extent().x1 for label in turned]
            assert all(later - earlier > 8 for earlier, later in pairwise(corners)), name
        for text in visible_texts(figure):
            box = text.get_window_extent()
            assert -1 < box.x0 < box.x1 < figure.bbox.x1 + 1, f"{name}: {text.get_text()!r} leaves the page"


def test_a_name_of_many_lines_is_cut_in_its_middle() -> None:
    name = "stage." + "long_" * 100 + "7"
    reports = history([(name, "Conv2d", 8, "relu"), SMALL[2]], 2, dies={name: {0: 1}})
    for kind, figure in drawn(reports).items():
        assert figure.get_suptitle().count("\n") <= 3, kind
    assert "_7:1of8kernelsdead" in title(kernel_map(reports)).replace(" ", "")


def visible_texts(figure: Any) -> list[Any]:
    """Texts that are drawn: matplotlib also keeps labels of ticks beyond the ends of an axis."""
    unseen = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.majorTicks, *axis.minorTicks):
            if not low <= tick.get_loc() <= high:
                unseen |= {id(tick.label1), id(tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen
    ]


def test_nothing_watched_gives_no_pictures() -> None:
    (report,) = history((("fc", "Linear", 3, None),), 0)
    assert figures.draw_all([with_layer(report, "fc", excluded="requires_grad=False")]) == ({}, {}, {})
    assert figures.draw_all([]) == ({}, {}, {})


def test_every_picture_is_named_after_its_file_and_says_what_it_shows() -> None:
    assert next(iter(figures.PICTURES)) == "overview"
    for name, picture in figures.PICTURES.items():
        assert picture.plan.__module__ == f"lightning_deadkernel.figures.{name}"
        assert picture.plan.__doc__


def test_a_fault_in_one_picture_costs_that_picture_alone(unwell: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(reports: Any) -> None:
        raise ZeroDivisionError("of this test")

    monkeypatch.setitem(figures.PICTURES, "weights", fails)
    pictures, faults, _ = figures.draw_all(unwell)
    assert list(pictures) == [name for name in figures.PICTURES if name != "weights"]
    assert faults == {"weights": "ZeroDivisionError: of this test"}


def test_nothing_is_drawn_twice(unwell: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[tuple[str, Any]] = Counter()

    def count(owner: Any, method: str, of: Callable[..., Any]) -> None:
        called = getattr(owner, method)

        @functools.wraps(called)
        def counting(self: Any, *args: Any, **options: Any) -> Any:
            made[method, of(self)] += 1
            return called(self, *args, **options)

        monkeypatch.setattr(owner, method, counting)

    count(Panel, "draw_on", lambda panel: (panel.title, panel.below))
    count(FigureCanvasAgg, "draw", lambda canvas: canvas.figure)
    count(FigureCanvasSVG, "print_svg", lambda canvas: tuple(p for p in canvas.figure.subfigs if p.get_visible()))
    drawn = figures.draw_all(unwell)
    page = drawn.for_page()
    assert list(drawn.pictures) == list(figures.PICTURES)
    assert list(page) == [name for name in figures.PICTURES if name != "overview"]
    panels, parts = len(page), 4
    kinds = Counter(method for method, _ in made)
    assert kinds["draw_on"] == panels
    assert kinds["draw"] == 1 + panels - parts
    assert all(times == 1 for (method, _), times in made.items() if method != "print_svg")
    assert sum(made["print_svg", (drawn.papers[name],)] for name in page) == parts
    assert made["print_svg", ()] == panels - parts
    words = {name: title(drawn.papers[name]).split(" ")[0] for name in page}
    assert all(words[name].encode() in picture for name, picture in page.items())


def test_a_part_of_the_overview_is_the_picture_that_it_is_alone(unwell: list[Report]) -> None:
    drawn = figures.draw_all(unwell).pictures
    for picture in (kernel_map, life_lines, gradient_flow, update_ratios):
        both = (drawn[picture.name], figures.png(picture(unwell)))
        shown, alone = (np.asarray(Image.open(io.BytesIO(one)), dtype=float) for one in both)
        assert shown.shape == alone.shape
        # some versions of matplotlib round a letter's place otherwise in a part
        assert (np.abs(shown - alone).max(-1) > 8).mean() < 0.01, picture.name


def test_png_is_a_picture_of_the_figures_size(unwell: list[Report]) -> None:
    figure = kernel_map(unwell)
    picture = Image.open(io.BytesIO(figures.png(figure)))
    assert picture.size == tuple(int(inches * 100) for inches in figure.get_size_inches())


def test_a_net_of_any_size_has_pictures() -> None:
    wide = LayerReport(name="fc", kind="Linear", channels=200_001, depth=0, activation="relu", codes=bytes(200_001))
    assert {"overview", "kernel_map"} <= set(drawn([dataclasses.replace(history(windows=1)[-1], layers=(wide,))]))
    assert figures.why_none() is None


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'lightning-deadkernel[plots]'" in figures.why_none()


def test_drawing_needs_no_pyplot(unwell: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert figures.draw_all(unwell).faults == {}


# -- real runs -------------------------------------------------------------------------------------------------------


class StoredByInput(nn.Module):
    """A convolution in a transformer's dress: its weight is (in, out), as GPT-2's ``Conv1D`` keeps it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize(
    ("net", "rate"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), 1e30),
        (nn.Sequential(nn.Flatten(), StoredByInput(64, 16), nn.ReLU(), StoredByInput(16, 10)), 0.05),
    ],
    ids=["ends in NaN", "weights stored by input"],
)
def test_a_real_run_has_pictures_and_no_fault_whatever_became_of_it(net: nn.Module, rate: float) -> None:
    monitor = fit(Training(net, sgd(rate)), DataLoader(digits(), 64), max_epochs=2)
    pictures, faults, _ = figures.draw_all(monitor.reports)
    assert faults == {}
    assert {"overview", "kernel_map"} <= set(pictures)


@pytest.mark.parametrize("layers", [40, 100, 144, 300])
def test_names_of_stages_under_the_gradients_keep_their_distance(layers: int) -> None:
    names = [f"model.encoder.stages.{place // 40}.block.{place % 40}.conv" for place in range(layers)]
    figure = gradient_flow(history([(name, "Conv2d", 8, "relu") for name in names], 1))
    assert figure is not None
    axes = figure.axes[0]
    inches = axes.get_position().width * figure.get_size_inches()[0] / (axes.get_xlim()[1] - axes.get_xlim()[0])
    ticks = sorted(axes.get_xticks())
    assert len(ticks) > 2
    assert min(b - a for a, b in itertools.pairwise(ticks)) * inches > 0.2
    assert set(range(40, layers, 40)) <= set(ticks), "a stage's beginning is left out for the end of the one before"
