"""One root, one story: findings put together by their cause over layers, root first, and reported once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.windows import ALL_OFF, FIRST_OFF, NO_GRADIENT, Run, alive, begun, layer, off, start
from lightning_deadkernel.diagnosis.problems import find_problems, new_problems
from lightning_deadkernel.observation import Consumer
from lightning_deadkernel.report import codec
from lightning_deadkernel.report.records import Finding
from lightning_deadkernel.report.report import Report


def knocked_out(*names: str) -> Run:
    run = Run().next(*map(start, names)).next(*(layer(name, update_ratio_max=0.8) for name in names))
    return run.next(*(layer(name, **FIRST_OFF) for name in names))


def test_one_cause_over_several_layers_is_one_problem_with_all_of_their_kernels() -> None:
    (problem,) = knocked_out("a", "b", "c").problems
    assert problem.title == "3 of 12 kernels in 3 layers are dead (knocked out)"
    assert [finding.layer for finding in problem.findings] == ["a", "b", "c"]
    assert (problem.severity, problem.places) == ("warning", (0, 1, 2))


@pytest.mark.parametrize(("of_keys", "heads"), [((0, 1), "head 0 of 2; "), ((2, 3), ""), ((0,), "")])
def test_a_problem_names_heads_where_all_of_its_layers_are_about_these(of_keys: tuple[int, ...], heads: str) -> None:
    gone = {"q": (0, 1), "k": of_keys}
    run = Run().next(*map(start, gone)).next(*(layer(name, update_ratio_max=0.8) for name in gone))
    (problem,) = run.next(*(layer(name, heads=2, **off(*some)) for name, some in gone.items())).problems
    assert problem.title == f"{2 + len(of_keys)} of 8 kernels in 2 layers are dead ({heads}knocked out)"


def test_a_problem_of_one_layer_has_the_headline_of_its_finding() -> None:
    run = knocked_out("conv")
    (problem,) = run.problems
    assert problem.title == run.findings[0].headline == "conv: 1 of 4 kernels is dead (knocked out)"


def test_a_story_says_what_since_when_by_the_runs_clock_and_what_to_do() -> None:
    (problem,) = knocked_out("conv").problems
    assert problem.story == (
        "conv: 1 of 4 kernels is dead (knocked out): fired until epoch 0 (step 20), when one optimizer step changed the"
        " weights by 0.8 of their own norm (above 0.1 is reckless). Since epoch 1 (step 40). Lower the learning rate"
        " three- to tenfold, or warm it up over the first few hundred steps; clip the gradient norm if the jump came"
        " late in training."
    )
    assert "window" not in problem.story


def _dead_in_the_middle() -> Run:
    names = ("a", "b", "c", "d", "e")
    run = Run().next(*map(start, names)).next(*map(layer, names))
    off: dict[str, Any] = ALL_OFF | {"shift": torch.full((4,), -99.0)}
    return run.next(
        layer("a", **NO_GRADIENT, consumers=(Consumer("b", 4),)),
        layer("b", **NO_GRADIENT, consumers=(Consumer("c", 4),)),
        layer("c", **off, producers=("b",)),
        layer("d", **ALL_OFF, producers=("c",)),
        alive("e"),
    )


def test_a_dead_layer_and_all_that_follows_from_it_up_and_down_are_one_problem_root_first() -> None:
    run = _dead_in_the_middle()
    (problem,) = run.problems
    assert [finding.layer for finding in problem.findings] == ["c", "a", "b", "d"]
    assert problem.title == "c: 4 of 4 kernels are dead (shift driven negative)"
    assert "It also holds up a, b, d." in problem.story
    assert problem.severity == "error"


def test_that_some_kernels_of_a_reader_are_dead_does_not_explain_why_the_others_have_no_gradient() -> None:
    """The output is shut, so nothing comes back to what it reads, dead kernels or not, and to what lies before that."""
    names = ("a", "b", "out")
    run = Run().next(*map(start, names)).next(layer("a"), layer("b", update_ratio_max=0.8), layer("out", depth=0))
    shut: dict[str, Any] = {"activation": "sigmoid", "gating": "bounded", "saturated_share": torch.ones(4), "depth": 0}
    run.next(
        layer("a", **NO_GRADIENT, consumers=(Consumer("b", 4),)),
        layer("b", **off(0) | NO_GRADIENT, consumers=(Consumer("out", 4),)),
        layer("out", **shut, **NO_GRADIENT, consumers=None),
    )
    root, other = run.problems
    assert [(finding.kind, finding.layer) for finding in root.findings] == [
        ("saturated_channels", "out"),
        ("starved_channels", "a"),
        ("starved_channels", "b"),
    ]
    assert [(finding.kind, finding.cause_word) for finding in other.findings] == [("dead_channels", "knocked out")]


def test_problems_of_different_roots_stay_apart_and_the_worst_comes_first() -> None:
    run = Run().next(start(), start("b")).next(layer(), layer("b"))
    run.next(layer(in_optimizer=False, unchanged=torch.ones(4, dtype=torch.bool)), layer("b", **ALL_OFF))
    assert [(problem.severity, problem.findings[0].kind) for problem in run.problems] == [
        ("error", "dead_channels"),
        ("warning", "frozen_weights"),
    ]


def test_what_is_only_worth_knowing_is_no_problem() -> None:
    run = begun().next(layer(gini=0.9))
    assert run.findings
    assert run.problems == ()


def test_a_net_of_144_layers_that_diverges_has_a_handful_of_problems() -> None:
    names = [f"layer{place}" for place in range(144)]
    run = Run().next(*map(start, names)).next(*(layer(name, update_ratio=0.5, update_ratio_max=3.0) for name in names))
    half, rest = names[:100], names[100:]
    reckless: dict[str, Any] = {"update_ratio": 0.4, "update_ratio_max": 0.9}
    run.next(*(layer(name, **reckless, **ALL_OFF) for name in half), *(layer(name, **reckless) for name in rest))
    assert len(run.findings) > 200
    assert 1 <= len(run.problems) <= 5
    assert run.problems[0].findings[0].cause_word in ("knocked out", "reckless updates")


def test_a_problem_is_reported_once_though_it_goes_on() -> None:
    run = knocked_out("a", "b")
    known: set[tuple[str, str | None]] = set()
    assert len(new_problems(run.problems, known)) == 1
    known |= {(finding.kind, finding.layer) for problem in run.problems for finding in problem.findings}
    run.next(*(layer(name, **FIRST_OFF) for name in ("a", "b")))
    assert len(run.problems) == 1
    assert new_problems(run.problems, known) == ()


@pytest.mark.parametrize("form", ["json", "packed"])
def test_problems_read_back_with_their_findings_which_are_kept_once(form: str) -> None:
    run = _dead_in_the_middle()
    report = Report(2, 1, 40, 600, 20, 20, 5, tuple(run.layers.values()), run.findings, problems=run.problems)
    text = codec.to_json(report)
    again = codec.from_json(Report, text) if form == "json" else codec.unpack(Report, codec.pack(report))
    assert again.problems == report.problems
    assert again.problems[0].findings == report.problems[0].findings != ()
    assert text.count('"kind": "starved_channels"') == 2


def test_a_problem_counts_all_kernels_of_its_layer_and_tells_of_the_first_to_go() -> None:
    def found(channels: tuple[int, ...], since: int) -> Finding:
        evidence = {"of": 16, "since_window": since}
        cause, title = f"decayed: gone at {since}", f"{len(channels)} of 16 kernels are dead (decayed)"
        return Finding("dead_channels", "warning", "conv", channels, evidence, cause, "Use AdamW.", "", 9, 10, title)

    (problem,) = find_problems([found((12,), 8), found((2, 6), 3)], lambda window: f"window {window}")
    assert problem.title == "conv: 3 of 16 kernels are dead (decayed)"
    assert problem.cause == "decayed: gone at 3"
    assert problem.story == (
        f"{problem.title}: first in conv (2 kernels): gone at 3. The first since window 3, the last since window 8. "
        "Use AdamW."
    )


def test_what_is_true_of_one_finding_alone_is_not_told_of_all() -> None:
    def found(layer: str, cause: str, moved_by: str = "") -> Finding:
        evidence = {"of": 16, "since_window": 3, **({"moved_by": moved_by} if moved_by else {})}
        title = "1 of 16 kernels is dead (decayed)"
        return Finding("dead_channels", "warning", layer, (1,), evidence, cause, "Use AdamW.", "", 9, 10, title)

    def story(*findings: Finding) -> str:
        (problem,) = find_problems(findings, lambda window: f"window {window}")
        return problem.story.removeprefix(f"{problem.title}: ")

    one, other = found("a", "decayed: gone at 3", "nothing"), found("b", "decayed: gone at 5")
    assert story(one, other) == "in a (1 kernel): gone at 3. Since window 3. Use AdamW."
    same = found("b", "decayed: gone at 3", "nothing")
    assert story(one, same).startswith("gone at 3. Since window 3. Nothing moves their weights any more")
