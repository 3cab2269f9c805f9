"""Each question's config shows its sickness, and its cured twin does not: short runs of the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_deadkernel import Finding, Report
from lightning_deadkernel.cli.main import main
from lightning_deadkernel.demo.datamodules import DEBIAN_FASHION_MNIST

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "monitor")
QUESTIONS = ("frozen_weights", "silent_maps", "sparse_weights", "vanishing_sigmoid", "zero_kernels")

needs_fashion_mnist = pytest.mark.skipif(
    not Path(DEBIAN_FASHION_MNIST).is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def run(name: str, tmp_path: Path, *options: str) -> Report:
    """Train as the config says, in as little time as will do, and read the report that is saved."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    plain = ["--trainer.callbacks.log_figures=false", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *quiet, *plain, *options]) == 0
    return Report.load(tmp_path / name / "version_0" / "deadkernel" / "report.json")


def of_kind(report: Report, kind: str, layer: str | None = None) -> list[Finding]:
    return [f for f in report.findings if f.kind == kind and layer in (None, f.layer)]


def worth_acting_on(report: Report) -> list[str]:
    return [f"{f.severity} {f.kind} {f.layer}" for f in report.findings if f.severity != "info"]


def test_every_question_has_a_config_and_a_cured_twin_that_differs_in_little() -> None:
    assert {*QUESTIONS, *(f"{name}_cured" for name in QUESTIONS)} | {"digits", "fashion_mnist"} == set(RUNS)
    for name in QUESTIONS:
        sick, cured = (yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text()) for stem in (name, f"{name}_cured"))
        assert sick["data"] == cured["data"]
        arguments = [config["model"]["init_args"] for config in (sick, cured)]
        changed = {key for key in arguments[0] | arguments[1] if arguments[0].get(key) != arguments[1].get(key)}
        changed.discard("init_scale")  # a number that one kind of initialisation has
        assert 1 <= len(changed) <= 3


@pytest.mark.parametrize("name", RUNS)
def test_every_config_is_read_by_a_plain_lightning_cli(name: str) -> None:
    args = ["--config", str(CONFIGS / f"{name}.yaml")]
    cli = LightningCLI(run=False, args=args, save_config_callback=None, seed_everything_default=0)
    assert sum(type(callback).__name__ == "DeadKernelMonitor" for callback in cli.trainer.callbacks) == 1


@pytest.mark.parametrize("name", RUNS)
def test_every_config_opens_with_a_comment_that_names_its_command(name: str) -> None:
    header = (CONFIGS / f"{name}.yaml").read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"lightning-deadkernel fit --config configs/{name}.yaml" in header
    assert "What to see:" in header


def test_the_digits_config_ends_healthy(tmp_path: Path) -> None:
    report = run("digits", tmp_path, "--trainer.max_epochs=3")
    assert (report.window, report.samples) == (3, 1256)
    assert report.dead_fraction == 0
    assert worth_acting_on(report) == []


@needs_fashion_mnist
def test_the_fashion_mnist_config_ends_healthy(tmp_path: Path) -> None:
    report = run("fashion_mnist", tmp_path, "--trainer.max_epochs=1", "--data.subset=5000", "--data.val_size=500")
    assert report.samples == 5000
    assert worth_acting_on(report) == []


ZERO = ["--trainer.max_epochs=16"]


def test_zero_kernels_of_the_first_layer_have_decayed_and_were_not_zero_at_the_start(tmp_path: Path) -> None:
    report = run("zero_kernels", tmp_path, *ZERO)
    findings = of_kind(report, "zero_kernels", "conv1")
    assert [f.cause_word for f in findings] == ["decayed"]
    assert sorted(findings[0].channels) == report["conv1"].zero_kernels
    assert 1 <= len(findings[0].channels) < 16
    assert "weight decay 0.02" in findings[0].cause
    assert "AdamW" in findings[0].advice
    assert set(findings[0].channels) & set(report["conv1"].dead)


def test_zero_kernels_are_gone_under_adamw(tmp_path: Path) -> None:
    report = run("zero_kernels_cured", tmp_path, *ZERO)
    assert of_kind(report, "zero_kernels") == of_kind(report, "dead_channels") == []
    assert worth_acting_on(report) == []


def test_frozen_weights_belong_to_units_knocked_out_by_a_reckless_step(tmp_path: Path) -> None:
    report = run("frozen_weights", tmp_path)
    (finding,) = [f for f in of_kind(report, "dead_channels", "net.linear1") if f.severity != "info"]
    assert finding.cause_word == "knocked out"
    assert 8 <= len(finding.channels) < 64
    assert set(finding.channels) <= set(report["net.linear1"].dead)
    assert "learning rate" in finding.advice
    assert report.savings is not None
    # A unit that goes takes its 64 weights and bias along, and the 10 weights of the head that read it.
    assert report.savings.parameters == 75 * report.savings.channels
    assert report.savings.channels == len(report["net.linear1"].dead)


def test_frozen_weights_are_gone_at_a_tenth_of_the_learning_rate(tmp_path: Path) -> None:
    report = run("frozen_weights_cured", tmp_path)
    assert of_kind(report, "dead_channels") == of_kind(report, "frozen_weights") == []
    assert worth_acting_on(report) == []


MAPS = ["--trainer.max_epochs=2", "--data.subset=4000", "--data.val_size=500"]


@needs_fashion_mnist
def test_maps_silent_on_all_images_are_told_apart_from_maps_silent_on_most(tmp_path: Path) -> None:
    report = run("silent_maps", tmp_path, *MAPS)
    assert report.samples == 4000
    findings = [f for f in of_kind(report, "dead_channels") if f.severity != "info"]
    assert findings
    assert {f.cause_word for f in findings} == {"knocked out"}
    assert {f.evidence["highest_possible_firing_rate"] for f in findings} == {3 / 4000}
    seldom = {(layer.name, c) for layer in report.watched for c in (*layer.rare, *layer.dormant) if c not in layer.dead}
    assert seldom
    # Zero on most images and positions, as in any ReLU network; that alone is no finding to act on.
    assert report["conv3"].activation_sparsity is not None
    assert report["conv3"].activation_sparsity > 0.5
    assert all(f.severity == "info" for f in of_kind(report, "dormant_channels"))


@needs_fashion_mnist
def test_no_map_is_silent_on_all_images_at_a_tenth_of_the_learning_rate(tmp_path: Path) -> None:
    report = run("silent_maps_cured", tmp_path, *MAPS)
    assert [layer.name for layer in report.watched if layer.dead] == []
    assert worth_acting_on(report) == []


def test_a_deep_sigmoid_network_with_constant_weights_vanishes_towards_its_input(tmp_path: Path) -> None:
    report = run("vanishing_sigmoid", tmp_path, "--trainer.max_epochs=3")
    vanishing = of_kind(report, "vanishing_gradient")
    assert {"net.linear1", "net.linear2", "net.linear3"} <= {f.layer for f in vanishing}
    assert {f.severity for f in vanishing} == {"error"}
    assert {f.cause_word for f in vanishing} == {"depth"}
    ratios = [report[f"net.linear{i}"].gradient_ratio for i in range(1, 9)]
    assert None not in ratios
    assert ratios == sorted(ratios)  # type: ignore[type-var]
    identical = of_kind(report, "identical_kernels")
    assert {f.layer for f in identical} >= {f"net.linear{i}" for i in range(1, 8)}
    assert {f.cause_word for f in identical} == {"constant initialisation"}
    update = report["net.linear1"].update_ratio
    assert update is not None
    assert update < 1e-6


def test_relu_with_he_initialisation_does_not_vanish(tmp_path: Path) -> None:
    report = run("vanishing_sigmoid_cured", tmp_path, "--trainer.max_epochs=3")
    for kind in ("vanishing_gradient", "weak_gradient", "identical_kernels", "update_too_small"):
        assert of_kind(report, kind) == []
    assert report.findings == ()
    update = report["net.linear1"].update_ratio
    assert update is not None
    assert update > 1e-4


def test_most_weights_are_small_and_a_few_are_large_and_that_is_called_normal(tmp_path: Path) -> None:
    report = run("sparse_weights", tmp_path)
    found = of_kind(report, "sparse_weights")
    assert {finding.layer for finding in found} == {"net.linear1", "net.linear2", "net.head"}
    assert {(finding.severity, finding.cause_word) for finding in found} == {("info", "heavy tails")}
    for layer in report.watched:
        assert layer.weight_near_zeros is not None
        assert layer.weight_near_zeros > 0.15
        assert not layer.zero_kernels
    assert worth_acting_on(report) == []


def test_weights_keep_their_shape_without_the_term_that_pulls_them_to_zero(tmp_path: Path) -> None:
    report = run("sparse_weights_cured", tmp_path, "--trainer.max_epochs=6")
    assert of_kind(report, "sparse_weights") == []
    for layer in report.watched:
        assert layer.weight_near_zeros is not None
        assert layer.weight_near_zeros < 0.02
    assert worth_acting_on(report) == []
