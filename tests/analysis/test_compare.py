"""Several runs side by side: overlaps against known answers, chance against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from helpers.example_reports import healthy_report, malicious_report, sick_report
from helpers.reports import codes
from lightning_deadkernel.analysis.compare import DRAWS, _draw_shared, compare, expected_jaccard, jaccard
from lightning_deadkernel.report.console import to_text
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report


def run(channels: int, *dead: Sequence[int]) -> Report:
    """A report with one layer for each set of dead channels."""
    layers = tuple(
        LayerReport(
            name=f"layer{n}",
            kind="Linear",
            channels=channels,
            depth=0,
            activation="relu",
            codes=codes(channels, {"dead": tuple(where)}),
        )
        for n, where in enumerate(dead)
    )
    return replace(healthy_report(), layers=layers)


def test_the_same_dead_kernels_have_index_1_and_others_0() -> None:
    same, apart = compare([run(40, range(5), range(5)), run(40, range(5), range(5, 10))]).layers
    assert (same.jaccard, same.always, same.ever) == (1.0, tuple(range(5)), tuple(range(5)))
    assert (apart.jaccard, apart.always, apart.ever) == (0.0, (), tuple(range(10)))
    assert same.p_value == 1 / (DRAWS + 1)  # one in C(40, 5) = 658 008 draws would be the same
    assert apart.p_value == 1.0


def test_the_index_of_many_runs_is_the_mean_over_their_pairs() -> None:
    (layer,) = compare([run(9, {0, 1}), run(9, {1, 2}), run(9, {0, 1})]).layers
    assert layer.jaccard == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert layer.dead == (2, 2, 2)
    assert layer.always == (1,)


def test_runs_without_dead_kernels_have_no_index() -> None:
    comparison = compare([run(9, ()), run(9, ())])
    assert comparison.layers[0].jaccard is None
    assert comparison.p_value is None
    assert "No kernel is dead" in comparison.verdict()
    assert jaccard(frozenset(), frozenset()) is None
    assert expected_jaccard(9, 0, 0) is None


def test_dead_kernels_in_one_run_only_have_index_0_and_no_p_value() -> None:
    comparison = compare([run(9, {1, 2}), run(9, ())])
    (layer,) = comparison.layers
    assert (layer.jaccard, layer.chance, layer.p_value) == (0.0, None, None)
    assert "Only one run has dead kernels" in comparison.verdict()
    assert "drawn at random" not in comparison.to_markdown()


@pytest.mark.parametrize("channels", [1, 2, 5, 7])
def test_chance_is_the_mean_over_all_pairs_of_sets(channels: int) -> None:
    for first, second in itertools.product(range(channels + 1), repeat=2):
        if not first + second:
            continue
        fixed = set(range(first))
        drawn = [set(chosen) for chosen in itertools.combinations(range(channels), second)]
        mean = sum(len(fixed & other) / len(fixed | other) for other in drawn) / len(drawn)
        assert expected_jaccard(channels, first, second) == pytest.approx(mean, rel=1e-9)


def test_chance_holds_for_wide_layers() -> None:
    """Half of many channels each: the overlap is about a quarter of them and the union three quarters."""
    assert expected_jaccard(50_000, 25_000, 25_000) == pytest.approx(1 / 3, abs=1e-4)
    assert expected_jaccard(50_000, 50_000, 50_000) == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", [(2, 3), (2, 2, 3), (5, 1, 4)])
def test_random_draws_share_as_many_channels_as_all_possible_sets_do(sizes: tuple[int, ...]) -> None:
    channels = 5
    every = [list(itertools.combinations(range(channels), size)) for size in sizes]
    shared = [
        sum(len(set(a) & set(b)) for a, b in itertools.combinations(chosen, 2)) for chosen in itertools.product(*every)
    ]
    drawn = _draw_shared(channels, sizes, np.random.default_rng(1))
    for value in range(max(shared) + 1):
        exact = shared.count(value) / len(shared)
        # Five standard deviations of a share of DRAWS draws; an impossible value must never come.
        assert abs(np.mean(drawn == value) - exact) <= 5 * (exact * (1 - exact) / DRAWS) ** 0.5
    assert drawn.max() <= max(shared)


def test_random_sets_are_seldom_called_the_same() -> None:
    rng = random.Random(0)
    pairs = [[run(64, rng.sample(range(64), 12)) for _ in range(2)] for _ in range(200)]
    significant = sum((compare(pair).p_value or 0.0) < 0.05 for pair in pairs)
    assert significant <= 20  # at most 10 of 200 are expected; 20 is three standard deviations above


def test_many_layers_tell_together_what_none_tells_alone() -> None:
    first = run(6, *[{0, 1}] * 12)
    second = run(6, *[{0, 2}] * 12)
    comparison = compare([first, second])
    assert min(layer.p_value or 0.0 for layer in comparison.layers) > 0.05
    assert comparison.p_value is not None
    assert comparison.p_value < 0.05
    assert comparison.verdict().startswith(
        "The same kernels die more often than chance would have it: 12 of 36 kernels"
    )


def test_the_same_reports_give_the_same_numbers_each_time() -> None:
    reports = [run(32, range(6), range(3)), run(32, range(3, 9), range(9))]
    assert compare(reports) == compare(reports)


def test_findings_come_go_and_stay() -> None:
    sick = sick_report()
    sick = replace(sick, findings=sick.findings[:4])
    without, only = replace(sick, findings=sick.findings[1:]), replace(sick, findings=sick.findings[:1])
    assert [found.change for found in compare([sick, without]).findings] == ["went", "stayed", "stayed", "stayed"]
    assert [found.change for found in compare([without, sick]).findings] == ["stayed", "stayed", "stayed", "came"]
    three = compare([only, without, only]).findings
    assert [found.change for found in three] == ["comes and goes"] * 4
    assert three[0].kind == "identical_kernels"
    assert three[0].severities == ("error", None, "error")


def test_layers_that_cannot_be_compared_are_left_out_with_the_reason() -> None:
    sick = sick_report()
    wider = replace(sick.layers[0], channels=17, codes=codes(17, {}))
    comparison = compare([sick, replace(sick, layers=(wider, *sick.layers[2:]))], ["a", "b"])
    assert dict(comparison.left_out) == {
        "features.0": "of different widths: 16, 17",
        "features.3": "not in b",
        "attention.mix": "read without activations in a, b, so dead kernels cannot be told there",
        "head": "read without activations in a, b, so dead kernels cannot be told there",
        "backbone.stem": "not watched in a, b",
    }
    assert comparison.layers == ()


def test_nothing_in_common_is_said() -> None:
    gradients_alone = replace(run(4, {1}), layers=tuple(replace(la, evidence="gradient") for la in run(4, {1}).layers))
    for others in ([sick_report(), run(4, {1})], [gradients_alone] * 2, [run(4, {1}), run(5, {1})]):
        assert compare(others).verdict().startswith("Nothing can be compared: no layer was read by its activations")


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [
        (1, None, "at least two reports to compare, but got 1"),
        (2, ["a"], "different name"),
        (2, ["a", "a"], "different name"),
    ],
)
def test_too_few_reports_or_names_are_refused(count: int, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare([sick_report()] * count, names)


def test_the_table_in_the_terminal_has_the_indices_and_fits() -> None:
    comparison = compare([run(40, range(5)), run(40, range(1, 6))], ["seed 1", "seed 2"])
    text = to_text(comparison.document(), 100)
    row = next(line for line in text.splitlines() if line.startswith("layer0"))
    assert row.split()[:3] == ["layer0", "40", "0.667"]
    assert row.split()[-3:] == ["4", "5", "5"]
    for width in (1, 40, 80):
        lines = to_text(compare([sick_report(), malicious_report()]).document(), width).splitlines()
        assert max(map(len, lines)) <= max(width, 20)


def test_the_markdown_opens_with_the_answer_and_makes_no_markup_of_names() -> None:
    text = compare([sick_report(), sick_report()], ["adam", "adamw"]).to_markdown()
    assert text.splitlines()[2].startswith(
        "**The same kernels die more often than chance would have it: 8 of 8 kernels"
    )
    assert "| `features.3` | 32 | 1 |" in text
    html = (
        MarkdownIt("commonmark").enable("table").render(compare([malicious_report()] * 2, ["<i>", "|"]).to_markdown())
    )
    assert "<script" not in html
    assert "<i>" not in html
    assert html.count("<table>") == 2
