"""Which settings of a command a suspect changes, in the forms in which configs are written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.trial_runs import dead_report
from lightning_deadkernel.analysis.trial.suspects import SUSPECTS, TREATMENTS, Suspicion, arms_of
from lightning_deadkernel.analysis.trial.target import choose_target
from lightning_deadkernel.diagnosis.rules import CAUSES
from lightning_deadkernel.report.records import OptimizerDescription, RunDescription

TRAINER = {"trainer.gradient_clip_val": None, "trainer.callbacks": None, "trainer.precision": "bf16-mixed"}
DECOUPLED, PLAIN, TENTH = "AdamW in place of Adam", "no weight decay", "a tenth of the learning rate"


def tried(cause: str, settings: dict[str, Any], optimizer: str = "Adam", **of_optimizer: float) -> dict[str, list[str]]:
    """Name of a suspect -> what it changes, or why it cannot."""
    report = dead_report({"conv1": [1, 2]})
    own = {"lr": 0.02, "weight_decay": 0.01, **of_optimizer}
    run = RunDescription("Net", (OptimizerDescription(optimizer, own),), precision="bf16-mixed")
    found = tuple(replace(one, cause=f"{cause}: so it is") for one in report.findings)
    report = replace(report, findings=found, run=run, global_step=1000)
    arms, untried = arms_of(Suspicion({**TRAINER, **settings}, report, choose_target(report)))
    return {arm.name: list(arm.changes) for arm in arms} | {one.name: [one.why] for one in untried}


@pytest.mark.parametrize(
    ("settings", "decoupled", "no_decay", "rate"),
    [
        (  # hyperparameters of a model
            {"model.init_args.optimizer": "adam", "model.init_args.weight_decay": 0.01, "model.init_args.lr": 0.02},
            ["--model.init_args.optimizer=adamw"],
            ["--model.init_args.weight_decay=0"],
            ["--model.init_args.lr=0.002"],
        ),
        (  # LightningCLI's own optimizer
            {
                "optimizer.class_path": "torch.optim.Adam",
                "optimizer.init_args.weight_decay": 0.01,
                "optimizer.init_args.lr": 0.02,
            },
            ["--optimizer=torch.optim.AdamW"],
            ["--optimizer.init_args.weight_decay=0"],
            ["--optimizer.init_args.lr=0.002"],
        ),
        (  # a callable of the model's, under names of one's own
            {
                "model.optimizer.class_path": "torch.optim.Adam",
                "model.optimizer.init_args.weight_decay": 0.01,
                "model.learning_rate": 0.02,
            },
            ["--model.optimizer=torch.optim.AdamW"],
            ["--model.optimizer.init_args.weight_decay=0"],
            ["--model.learning_rate=0.002"],
        ),
        (  # two, of which the optimizer has one
            {"model.optim": "Adam", "model.wd": 0.01, "teacher.wd": 0.5, "model.lr": 0.02, "model.head.lr": 0.2},
            ["--model.optim=AdamW"],
            ["--model.wd=0"],
            ["--model.lr=0.002"],
        ),
        (  # two, of which it has neither: a scaled rate
            {"model.optim": "Adam", "a.wd": 0.3, "b.wd": 0.5, "c.lr": 0.1},
            ["--model.optim=AdamW"],
            ["--a.wd=0", "--b.wd=0"],
            ["--c.lr=0.01"],
        ),
    ],
)
def test_of_decay_the_settings_are_found_in_every_form(
    settings: dict[str, Any], decoupled: list[str], no_decay: list[str], rate: list[str]
) -> None:
    assert tried("decayed", settings) == {DECOUPLED: decoupled, PLAIN: no_decay, TENTH: rate}


def test_what_has_no_setting_is_told_with_what_was_looked_for() -> None:
    found = tried("decayed", {"model.width": 16, "model.weight_decay": 0.0, "model.lr": True})
    assert found == {
        DECOUPLED: ["the command has no setting that names Adam: give it as --arm"],
        PLAIN: ["the command has no setting called weight_decay or wd above 0: give it as --arm"],
        TENTH: ["the command has no setting called lr or learning_rate above 0: give it as --arm"],
    }


def test_what_cannot_be_to_blame_is_no_suspect() -> None:
    assert DECOUPLED not in tried("decayed", {"model.weight_decay": 0.01}, "SGD")
    assert PLAIN not in tried("unknown", {"model.weight_decay": 0.01}, weight_decay=0.0)


def test_steps_that_were_too_large_are_clipped_warmed_up_and_made_smaller_the_smallest_change_first() -> None:
    found = tried("knocked out", {"model.lr": 0.02})
    assert list(found) == ["gradients clipped at 1", "warm-up over 100 steps", TENTH]
    assert found["gradients clipped at 1"] == ["--trainer.gradient_clip_val=1"]
    assert found["warm-up over 100 steps"][0].startswith("--trainer.callbacks+=lightning_deadkernel.")
    assert found["warm-up over 100 steps"][1] == "--trainer.callbacks.steps=100"
    clipped = tried("knocked out", {"model.lr": 0.02, "trainer.gradient_clip_val": 5.0})
    assert clipped["gradients clipped at 0.5"] == ["--trainer.gradient_clip_val=0.5"]


def test_of_the_initialisation_weights_are_drawn_anew_but_not_those_of_a_checkpoint() -> None:
    found = tried("born dead", {"model.norm": False, "model.use_bn": True})
    assert found["He initialisation"][1] == "--trainer.callbacks.layers=[conv1]"
    assert found["with norms"] == ["--model.norm=true"]
    resumed = tried("born dead", {"ckpt_path": "last.ckpt"})
    assert "begins from a checkpoint" in resumed["He initialisation"][0]


def test_of_depth_all_layers_are_drawn_anew_and_sigmoids_become_rectifiers() -> None:
    found = tried(
        "depth", {"model.activation": "sigmoid", "model.out.class_path": "torch.nn.Tanh", "model.norm": False}
    )
    assert found["He initialisation"][1] == "--trainer.callbacks.layers=[conv1,conv2]"
    assert found["ReLU in place of sigmoid or tanh"] == ["--model.activation=relu", "--model.out=torch.nn.ReLU"]


def test_a_narrow_type_an_l1_term_and_a_rate_that_is_too_small_have_their_changes() -> None:
    assert tried("underflow", {})["float32"] == ["--trainer.precision=32-true"]
    assert tried("heavy tails", {"model.l1": 0.008})["no L1 term"] == ["--model.l1=0"]
    assert tried("slow updates", {"model.lr": 0.02}) == {"ten times the learning rate": ["--model.lr=0.2"]}


def test_adams_memory_is_shortened_and_its_epsilon_made_small() -> None:
    settings = {"model.optimizer.init_args.betas": [0.9, 0.999], "optimizer.init_args.eps": 1e-8, "model.lr": 0.02}
    found = tried("slingshot", settings)
    assert found["Adam's beta2 0.95"] == ["--model.optimizer.init_args.betas=[0.9,0.95]"]
    assert list(found) == ["gradients clipped at 1", "Adam's beta2 0.95", TENTH]
    assert tried("slingshot", {"model.beta2": 0.99})["Adam's beta2 0.95"] == ["--model.beta2=0.95"]
    assert "no setting called betas" in tried("slingshot", {"model.betas": [0.9, 0.95]})["Adam's beta2 0.95"][0]
    assert tried("epsilon dominates", settings) == {"a millionth of Adam's eps": ["--optimizer.init_args.eps=1e-14"]}


def test_where_no_change_is_known_that_is_said() -> None:
    assert tried("pruned", {}) == {"pruned": ["no change is known to try against it: give one as --arm"]}


def test_every_suspect_answers_causes_that_rules_name() -> None:
    words = {cause.word for suspect in SUSPECTS for cause in suspect.causes}
    assert words <= set(CAUSES)


def test_the_page_of_trials_lists_every_suspect_with_its_causes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "trials.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.partition("| change | against |")[2], re.MULTILINE)[1:]
    assert [sorted(against.split(", ")) for _, against in rows] == [
        sorted(cause.word for cause in suspect.causes) for suspect in SUSPECTS
    ]
    assert all(
        name == suspect.name for (name, _), suspect in zip(rows, SUSPECTS, strict=True) if isinstance(suspect.name, str)
    )


def test_data_is_standardised_where_it_was_measured() -> None:
    report = dead_report({"conv1": [1, 2]})
    shut = {"cause": "off-scale inputs: so it is", "evidence": {"measured_at": "conv1", "input_rms": 80.0}}
    report = replace(report, findings=tuple(replace(one, **shut) for one in report.findings))
    arms, _ = arms_of(Suspicion(TRAINER, report, choose_target(report)))
    added = [f"--trainer.callbacks+={TREATMENTS}.Standardised", "--trainer.callbacks.layers=[conv1]"]
    assert {arm.name: list(arm.changes) for arm in arms} == {"standardised data": added}
