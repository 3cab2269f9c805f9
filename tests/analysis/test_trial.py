"""What a trial concludes from runs that were made by hand, each with an answer that follows from its making."""

from __future__ import annotations

import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from helpers.reports import finding
from helpers.trial_runs import dead_report, trial_of
from lightning_deadkernel.analysis.trial.conduct import Stopped, TrialError, conduct
from lightning_deadkernel.analysis.trial.records import Arm, Job, Run
from lightning_deadkernel.analysis.trial.statistics import fisher, holm, overlap
from lightning_deadkernel.analysis.trial.target import TargetError, choose_target
from lightning_deadkernel.analysis.trial.trial import SCHEMA, Trial

DEAD = {"conv1": [2, 5, 7, 11, 13], "conv2": [0, 1, 2, 3]}
OTHERS = {"conv1": [1, 2, 4, 9], "conv2": [3, 8, 9, 12, 14]}


def only(role: str, dead: dict[str, list[int]], otherwise: dict[str, list[int]]) -> Any:
    return lambda job: dead if job.arm.role == role else otherwise


def verdicts(trial: Trial) -> dict[str, str]:
    return {arm.name: arm.verdict for arm in trial.arms if arm.role in ("change", "together")}


# -- exact counts -----------------------------------------------------------------------------------------------------


def test_fishers_test_is_scipys_on_random_tables() -> None:
    draw = random.Random(0)
    for _ in range(300):
        of_few, of_many = draw.randint(1, 60), draw.randint(1, 60)
        few, many = draw.randint(0, of_few), draw.randint(0, of_many)
        table = [[few, of_few - few], [many, of_many - many]]
        assert fisher(few, of_few, many, of_many) == pytest.approx(stats.fisher_exact(table, alternative="less").pvalue)


def test_more_marked_than_there_are_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        fisher(5, 4, 0, 4)


def test_holms_adjustment_of_known_p_values() -> None:
    # by hand: .01 x 4, .02 x 3 = .06, .03 x 2 = .06, .5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []


def test_the_overlap_of_one_draw_is_hypergeometric_and_of_two_what_all_pairs_of_subsets_give() -> None:
    mean, p_value = overlap([(20, 6, 5)], 3)
    assert mean == pytest.approx(1.5)
    assert p_value == pytest.approx(stats.hypergeom(20, 6, 5).sf(2))
    first = {0, 1}
    subsets = [set(some) for some in itertools.combinations(range(5), 2)]
    pairs = [len(first & a) + len(first & b) for a in subsets for b in subsets]
    mean, p_value = overlap([(5, 2, 2), (5, 2, 2)], 2)
    assert mean == pytest.approx(sum(pairs) / len(pairs))
    assert p_value == pytest.approx(sum(shared >= 2 for shared in pairs) / len(pairs))
    assert overlap([], 0) == (0, 1)


# -- what is asked about ----------------------------------------------------------------------------------------------


def test_the_first_problems_kernels_are_asked_about_or_those_of_a_finding_or_a_layer() -> None:
    report = dead_report(DEAD)
    both = choose_target(report)
    assert both.named == {(layer, channel) for layer, where in DEAD.items() for channel in where}
    assert (both.kernels, both.whole, both.causes) == (32, False, ("shift driven negative",))
    second = choose_target(report, finding=2)
    assert (
        second.named == {("conv2", channel) for channel in DEAD["conv2"]} == choose_target(report, layer="conv2").named
    )
    assert second.kernels == 16


def test_a_finding_about_whole_layers_names_layers() -> None:
    report = replace(dead_report({}), findings=(finding("vanishing_gradient", "conv1"),))
    target = choose_target(report)
    assert (target.named, target.kernels, target.whole) == ({("conv1", None)}, 1, True)
    assert target.found(report) == target.named
    assert target.found(dead_report(DEAD)) == frozenset()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"finding": 3}, "from 1 to 2, but got 3. They are 1: conv1"),
        ({"layer": "head"}, "'head'; something was in conv1"),
    ],
)
def test_what_is_not_there_is_refused_and_what_is_there_is_named(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        choose_target(dead_report(DEAD), **asked)


def test_of_a_healthy_run_there_is_nothing_to_explain() -> None:
    with pytest.raises(TargetError, match="nothing was found"):
        trial_of(lambda job: {})


def test_kernels_of_another_width_are_not_matched() -> None:
    with pytest.raises(TargetError, match="conv1 has 16, and here are 8 kernels"):
        choose_target(dead_report(DEAD)).found(dead_report({}, channels=8))


# -- conclusions ------------------------------------------------------------------------------------------------------


def test_the_one_change_that_frees_all_against_chance_that_frees_none_is_sufficient() -> None:
    trial = trial_of(lambda job: {} if job.arm.name == "cure" else DEAD, ("cure", "nothing"))
    assert verdicts(trial) == {"cure": "sufficient", "nothing": "no difference from chance"}
    assert trial.verdict.startswith("Cure suffices (--cure): with that alone changed none of 9 named kernels is dead")
    assert "was necessary" in trial.verdict
    assert (trial.reproduced, trial.bit_for_bit) == (9, True)
    (cure,) = (arm for arm in trial.arms if arm.name == "cure")
    # 0 of 2 x 32 against 9 of 32 by chance, the smaller of two: twice C(64, 9) / C(96, 9)
    assert cure.p_value == pytest.approx(2 * stats.hypergeom(96, 9, 64).pmf(0))


def test_of_several_sufficient_changes_none_is_named_as_the_cause_and_the_smallest_comes_first() -> None:
    trial = trial_of(lambda job: {} if job.arm.role == "change" else DEAD, ("small", "large"))
    assert set(verdicts(trial).values()) == {"sufficient"}
    assert trial.verdict.startswith("Each of 2 changes suffices by itself: small, large.")
    assert "none of them alone is the cause" in trial.verdict
    assert "The smallest change is small" in trial.verdict


def test_two_causes_each_of_which_is_enough_are_not_named_alone_but_found_together() -> None:
    """Each alone kills the same kernels: only where both are gone do they live."""
    trial = trial_of(lambda job: {} if len(job.arm.changes) == 2 else DEAD, ("no decay", "no L1"))
    assert verdicts(trial) == {
        "no decay": "no difference from chance",
        "no L1": "no difference from chance",
        "all together": "sufficient",
    }
    assert trial.verdict.startswith("No change suffices alone, but together they do (no decay, no L1)")
    assert "none is named alone" in trial.verdict
    assert "No decay and no L1 are needed among them." in trial.verdict


def test_of_three_together_those_that_are_not_needed_are_told_apart() -> None:
    needed = {"--a", "--b"}
    trial = trial_of(lambda job: {} if needed <= set(job.arm.changes) else DEAD, ("a", "b", "c"))
    assert "A and b are needed among them. Without c the others still suffice." in trial.verdict
    assert [arm.name for arm in trial.arms if arm.role == "together"] == [
        "all together", "all but a", "all but b", "all but c"
    ]  # fmt: skip


def test_where_nothing_helps_that_is_said_of_all_together_too() -> None:
    trial = trial_of(lambda job: DEAD, ("a", "b"))
    assert set(verdicts(trial).values()) == {"no difference from chance"}
    assert trial.verdict == (
        "Nothing that was tried helps: 2 changes, of which none does more than chance, nor do all of them together."
    )
    alone = trial_of(lambda job: DEAD, ("a", "b"), combine=False)
    assert "together" not in alone.verdict


def test_a_change_that_only_makes_others_die_is_no_different_from_chance() -> None:
    """Any change of the course of training does that: so does another order of the data."""
    trial = trial_of(lambda job: DEAD if job.arm.role == "control" else OTHERS, ("shuffled",))
    (arm,) = (arm for arm in trial.arms if arm.name == "shuffled")
    assert [run.free for run in arm.runs] == [7, 7]
    assert arm.verdict == "no difference from chance"
    assert "2 of 9 named kernels are dead, and 9 of 32 kernels in all" in " ".join(trial.conclusion)


def test_deaths_that_another_order_of_the_data_undoes_are_called_chance() -> None:
    trial = trial_of(only("control", DEAD, {}), ("a",))
    assert trial.verdict.startswith(
        "Chance alone does it: with nothing but other random numbers none of 9 named kernels"
    )
    assert verdicts(trial) == {"a": "no difference from chance"}


def test_a_change_that_spares_more_kernels_is_not_said_to_spare_those_that_chance_spares_too() -> None:
    dead = {"control": DEAD, "control, again": DEAD, "a change": {}}
    trial = trial_of(lambda job: dead.get(job.arm.name, {"conv1": [0, 1, 3, 4, 6, 8, 9], "conv2": [9, 10]}))
    assert verdicts(trial) == {"a change": "helps"}
    assert trial.verdict.startswith("Chance alone does it")


def test_a_change_that_frees_some_helps_and_is_not_called_sufficient() -> None:
    trial = trial_of(lambda job: {"conv1": [2]} if job.arm.role == "change" else DEAD)
    assert verdicts(trial) == {"a change": "helps"}
    assert trial.conclusion[0] == "No change was shown to suffice."
    assert trial.conclusion[1].startswith("More than chance, but not shown to be enough: a change (16 of 18 free of it")


def test_of_one_kernel_too_few_runs_say_so_and_how_many_would_do() -> None:
    one = {"conv1": [3]}
    trial = trial_of(lambda job: {} if job.arm.role == "change" else one, seeds=1)
    assert verdicts(trial) == {"a change": "too few to tell"}
    text = " ".join(trial.conclusion)
    seeds = int(text.partition("--seeds ")[2].split(" ")[0])

    def best(seeds: int) -> float:
        return float(stats.hypergeom(16 * (2 * seeds - 1), seeds - 1, 16 * seeds).pmf(0))

    assert best(seeds) < 0.05 <= best(seeds - 1)
    enough = trial_of(lambda job: {} if job.arm.role == "change" else one, seeds=seeds)
    assert verdicts(enough) == {"a change": "sufficient"}


@pytest.mark.parametrize("again", [DEAD, OTHERS])
def test_a_run_that_does_not_repeat_claims_less(again: dict[str, list[int]]) -> None:
    trial = trial_of(
        lambda job: {} if job.arm.role == "change" else again if job.arm.name == "control, again" else DEAD,
        repeats=False,
    )
    assert not trial.bit_for_bit
    assert trial.reproduced == (9 if again is DEAD else 2)
    same = again is DEAD
    assert verdicts(trial) == {"a change": "sufficient" if same else "helps"}
    text = " ".join(trial.conclusion)
    assert ("but not to the last bit" in text) == same
    assert ("The run does not repeat: unchanged, 2 of 9 named kernels are dead again" in text) == (not same)


@pytest.mark.parametrize("same", [True, False])
def test_a_reported_run_is_held_against_two_controls_unless_the_first_is_its_equal(same: bool) -> None:
    reported = Run(Job(Arm("as reported", "control"), 0), dead_report(DEAD, 0.0 if same else 7.0))
    trial = trial_of(lambda job: {} if job.arm.role == "change" else DEAD, reported=reported)
    assert [arm.name for arm in trial.arms if arm.role == "control"] == ["control", "control, again"][
        : 1 if same else 2
    ]
    assert (trial.reproduced, trial.bit_for_bit) == (9, True)
    assert ("though not to that of the report" in " ".join(trial.conclusion)) == (not same)
    assert verdicts(trial) == {"a change": "sufficient"}


def test_a_change_that_arrives_nowhere_is_told_by_the_last_bit() -> None:
    same = dead_report(DEAD)

    def perform(jobs: Any) -> Any:
        return (Run(job, same if job.arm.role != "placebo" else dead_report(OTHERS, 1.0)) for job in jobs)

    trial = conduct(perform, lambda run, target: ([Arm("typo", "change", ("--typo",))], []), seeds=1, other_seeds=False)
    assert verdicts(trial) == {"typo": "changed nothing"}
    assert "Typo changed nothing: training ended as it did before, to the last bit." in " ".join(trial.conclusion)


def test_where_the_order_of_the_data_is_fixed_that_is_said_and_counted_once() -> None:
    def perform(jobs: Any) -> Any:
        return (Run(job, dead_report({} if job.arm.role == "change" else DEAD)) for job in jobs)

    trial = conduct(perform, lambda run, target: ([Arm("cure", "change")], []), seeds=3, other_seeds=False)
    assert "What chance does was not measured." in " ".join(trial.conclusion)
    (cure,) = (arm for arm in trial.arms if arm.name == "cure")
    assert cure.p_value == pytest.approx(stats.hypergeom(64, 9, 32).pmf(0))  # one run against one


def test_one_arms_error_is_a_line_and_the_others_are_judged() -> None:
    trial = trial_of(
        lambda job: "KeyError: 'wd'" if job.arm.name == "broken" else {} if job.arm.name == "cure" else DEAD,
        ("broken", "cure"),
    )
    assert verdicts(trial) == {"broken": "failed", "cure": "sufficient"}
    assert "`broken`: KeyError: 'wd'" in str(trial.to_markdown())
    assert trial.verdict.startswith("Cure suffices")


@pytest.mark.parametrize("names", [("control",), ("all together",), ("a", "a")])
def test_a_name_that_is_taken_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"a name of its own, but got '{names[0]}'"):
        trial_of(lambda job: DEAD, names)


def test_of_a_trial_that_was_stopped_nothing_more_is_planned() -> None:
    def outcome(job: Job) -> object:
        return KeyboardInterrupt() if job.arm.role == "seed" else DEAD

    trial = trial_of(outcome, ("a", "b"))
    assert not [arm for arm in trial.arms if arm.role == "together"]


def test_a_control_that_fails_ends_the_trial() -> None:
    with pytest.raises(TrialError, match="the control failed: no data"):
        trial_of(lambda job: "no data")


@pytest.mark.parametrize(
    ("end", "why"), [(Stopped("10 minutes were over"), "10 minutes were over"), (KeyboardInterrupt(), "interrupted")]
)
def test_what_was_not_run_is_named_and_nothing_is_claimed_of_it(end: BaseException, why: str) -> None:
    def outcome(job: Job) -> object:
        if job.arm.name == "second" or job.order > 1:
            return end
        return {} if job.arm.name == "first" else DEAD

    trial = trial_of(outcome, ("first", "second"), seeds=2)
    assert trial.stopped == why
    assert verdicts(trial)["second"] == "not run"
    assert trial.conclusion[-1] == "Not run: first (1 run), second (2 runs), another seed (1 run)."
    assert f"Stopped before its end: {why}." in trial.to_markdown()


def test_nothing_follows_without_a_placebo() -> None:
    def outcome(job: Job) -> object:
        return KeyboardInterrupt() if job.arm.role == "placebo" else {} if job.arm.role == "change" else DEAD

    trial = trial_of(outcome)
    assert trial.verdict == "No change was trained to its end, so nothing follows of what did it."
    assert "What chance alone does was not run" in " ".join(trial.conclusion)


def test_other_seeds_are_held_against_what_chance_shares() -> None:
    same = trial_of(lambda job: DEAD).seeds
    assert same is not None
    assert (same.runs, same.found, same.shared) == (1, [9], 9)
    assert same.expected == pytest.approx(5 * 5 / 16 + 4 * 4 / 16)
    assert same.p_value == pytest.approx(stats.hypergeom(16, 5, 5).pmf(5) * stats.hypergeom(16, 4, 4).pmf(4))
    trial = trial_of(lambda job: OTHERS if job.arm.role == "seed" else DEAD)
    assert trial.seeds is not None
    assert trial.seeds.shared == 2
    assert "no more of them the same ones than by chance: 2 where" in " ".join(trial.conclusion)


# -- its forms --------------------------------------------------------------------------------------------------------


def test_the_json_is_strict_and_has_every_arm_and_run() -> None:
    trial = trial_of(lambda job: {} if job.arm.role == "change" else DEAD)
    record = json.loads(trial.to_json(), parse_constant=lambda word: pytest.fail(word))
    assert record["schema"] == SCHEMA
    assert record["named"] == DEAD
    assert [(arm["name"], len(arm["runs"])) for arm in record["arms"]] == [
        ("control", 1), ("control, again", 1), ("placebo (other order)", 1), ("a change", 2), ("another seed", 1)
    ]  # fmt: skip
    assert record["arms"][0]["runs"][0]["found"] == DEAD
    assert record["conclusion"] == trial.conclusion


def test_it_shows_itself_as_text_and_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    trial = trial_of(lambda job: {} if job.arm.role == "change" else DEAD)
    assert str(trial).splitlines() == [trial.title, *trial.conclusion]
    assert "<table" in trial._repr_html_()
    Console(file=sys.stdout, width=100).print(trial)
    assert "A change suffices" in capsys.readouterr().out


def test_it_saves_what_it_says_and_its_picture(tmp_path: Path) -> None:
    trial_of(lambda job: {} if job.arm.role == "change" else DEAD).save(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["why.json", "why.md", "why.png"]
