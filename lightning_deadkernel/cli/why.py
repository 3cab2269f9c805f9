"""`lightning-deadkernel why`: which change to a run would have spared its kernels, by training it again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_deadkernel.analysis.trial.conduct import TrialError, conduct
from lightning_deadkernel.analysis.trial.describe import describe_trial
from lightning_deadkernel.analysis.trial.records import Arm, Job, Run, Untried
from lightning_deadkernel.analysis.trial.suspects import Suspicion, arms_of
from lightning_deadkernel.analysis.trial.target import Target
from lightning_deadkernel.cli.progress import Progress
from lightning_deadkernel.cli.reports import load_report, report_file
from lightning_deadkernel.cli.status import EXIT_INTERRUPTED, CommandError, failed
from lightning_deadkernel.cli.trainings import Trainings
from lightning_deadkernel.report.console import print_document

FOLDER = "trials"


def run_why(arguments: argparse.Namespace) -> int:
    """A trial of the run that a command trains; gives the exit status."""
    words = _command(arguments)
    own = [Arm(name, "change", tuple(changes)) for name, *changes in arguments.arm]
    if len({arm.name for arm in own}) < len(own):
        raise CommandError(f"--arm: expected a different name for each, but got {', '.join(arm.name for arm in own)}")
    folder = Path(arguments.folder or Path(FOLDER, _name(words)))
    reported = None
    if arguments.report:
        reported = Run(Job(Arm("as reported", "control"), 0), load_report(report_file(arguments.report)))

    def changes(control: Run, target: Target) -> tuple[list[Arm], list[Untried]]:
        suspected, untried = arms_of(Suspicion(control.settings, (reported or control).report, target))
        # one's own stands for a suspect that changes the same, or is called so
        given = {arm.changes for arm in own} | {arm.name for arm in own}
        return [*own, *(arm for arm in suspected if not {arm.changes, arm.name} & given)], untried

    def combined(arms: Sequence[Arm]) -> tuple[str, ...]:
        return tuple(change for arm in arms for change in arm.changes)

    with Progress() as progress:
        trainings = Trainings(words, folder, arguments.jobs, arguments.max_minutes, progress)
        try:
            trial = conduct(
                trainings.perform,
                changes,
                arguments.seeds,
                reported,
                arguments.finding,
                arguments.layer,
                combined,
                notes=trainings.notes,
            )
        except TrialError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            return failed("interrupted before anything was known", EXIT_INTERRUPTED)
    trial.save(folder)
    if arguments.format == "json":
        print(trial.to_json(), end="")
    elif arguments.format == "markdown":
        print(trial.to_markdown(), end="")
    else:
        print_document(describe_trial(trial))
        print(f"\nThe whole trial: {folder}")
    return EXIT_INTERRUPTED if trial.stopped == "interrupted" else 0


def _command(arguments: argparse.Namespace) -> list[str]:
    """What trains the run."""
    if arguments.command_given:
        if arguments.config or arguments.options:
            raise CommandError("expected either a command after -- or --config, but got both")
        words = list(arguments.command_given)
    elif arguments.config:
        configs = [f"--config={config}" for config in arguments.config]
        words = [sys.executable, "-m", "lightning_deadkernel", "fit", *configs, *arguments.options]
    else:
        raise CommandError("expected --config, or after -- the command that trains: ... why -- python main.py fit ...")
    return [*words, f"--ckpt_path={arguments.ckpt}"] if arguments.ckpt else words


def _name(words: Sequence[str]) -> str:
    """Of the trial's folder: that of the last config, or of the script."""
    files = [Path(part) for word in words for part in (word, word.partition("=")[2]) if part.endswith((".yaml", ".py"))]
    return files[-1].stem if files else "run"
