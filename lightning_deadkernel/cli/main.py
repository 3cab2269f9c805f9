"""The `lightning-deadkernel` command: train with the monitor in place, audit weights, show and compare reports."""

from __future__ import annotations

import argparse
import math
import os
import pydoc
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_deadkernel import DeadKernelMonitor, Report, __version__
from lightning_deadkernel.analysis.audit import AuditError, audit
from lightning_deadkernel.analysis.compare import compare
from lightning_deadkernel.demo import DatasetNotFoundError
from lightning_deadkernel.diagnosis.rules import RULES
from lightning_deadkernel.errors import DeadKernelError
from lightning_deadkernel.report.codec import to_json
from lightning_deadkernel.report.console import print_document
from lightning_deadkernel.report.describe import describe, describe_briefly
from lightning_deadkernel.report.records import TOLD_BY_WEIGHTS

if TYPE_CHECKING:
    from jsonargparse import Namespace

PROGRAM = "lightning-deadkernel"
MONITOR = "lightning_deadkernel.DeadKernelMonitor"

TRAINER_COMMANDS = {
    "fit": "train any LightningModule on any LightningDataModule, with the monitor in place",
    "validate": "run one validation epoch",
    "test": "run one test epoch",
}

EXIT_FOUND, EXIT_ERROR = 1, 2
"""1: something was found that the user had asked to fail on; 2: it could not be done."""


class DeadKernelCLI(LightningCLI):
    """LightningCLI for any model and data, with a `DeadKernelMonitor` among the callbacks.

    The monitor is the default value of `trainer.callbacks`, so `--print_config` shows it and the run's saved config has
    it. A config with callbacks of its own replaces that default: then the monitor is added, unless one is named there.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning's subcommands that are offered, and the arguments to skip in each."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in TRAINER_COMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Makes the monitor the default of `trainer.callbacks`."""
        parser.set_defaults({"trainer.callbacks": [{"class_path": MONITOR}]})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As LightningCLI does, but `--print_config` comes with every option's help text as a comment.

        LightningCLI would also warn of arguments that come from a function call while `sys.argv` has some.
        """
        given = sys.argv[1:] if args is None else args
        if not isinstance(given, list):
            super().parse_arguments(parser, given)
            return
        if find_spec("ruamel") is not None and find_spec("ruamel.yaml") is not None:
            given = ["--print_config=comments" if argument == "--print_config" else argument for argument in given]
        self.config = parser.parse_args(given)

    def before_instantiate_classes(self) -> None:
        """Adds the monitor where a config's callbacks have none; of several only the last stays.

        A fragment that appends a monitor appends it to the default, which is one itself.
        """
        trainer = self._get(self.config, "trainer")
        callbacks = trainer.callbacks or []
        if not isinstance(callbacks, list):
            callbacks = [callbacks]
        monitors = [callback for callback in callbacks if _is_monitor(callback)]
        if not monitors:
            monitors = self._parser(self.subcommand).get_defaults().trainer.callbacks
            callbacks = [*callbacks, *monitors]
        last = monitors[-1]
        trainer.callbacks = [callback for callback in callbacks if callback is last or not _is_monitor(callback)]
        self._check_monitor(last)

    def _check_monitor(self, monitor: Namespace) -> None:
        """Ends with a one-line error if the monitor refuses its options.

        Instantiated among the Trainer's arguments, the refusal would be buried in what jsonargparse says of all types
        that `callbacks` might have had.
        """
        from jsonargparse import ArgumentParser

        trial = ArgumentParser(exit_on_error=False)
        trial.add_class_arguments(pydoc.locate(monitor.class_path), "monitor", fail_untyped=False)
        # Renamed in jsonargparse 4.49, which warns of the old name.
        instantiate = getattr(trial, "instantiate", None) or trial.instantiate_classes
        try:
            instantiate(type(monitor)(monitor=monitor.get("init_args", type(monitor)())))
        except (TypeError, ValueError) as error:
            self._parser(self.subcommand).error(f"{MONITOR}: {error}")


def _is_monitor(callback: Namespace) -> bool:
    kind = pydoc.locate(callback.class_path)
    return isinstance(kind, type) and issubclass(kind, DeadKernelMonitor)


# -- commands that train nothing ---------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of the commands that train nothing; it also lists those that do, for `--help` and for typos."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Which kernels of a network are dead, why, and what to do about it.",
        epilog=f"`{PROGRAM} COMMAND --help` says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, text in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)

    one = commands.add_parser(
        "audit",
        help="what the weights in a file tell: zero kernels, collapsed norm scales, sparsity, identical kernels",
        description="What the weights in a file tell of a network, without its code and without data: zero kernels, "
        "batch norm scales that have collapsed, sparsity, identical kernels. Code in the file is never run.",
        epilog=_EXIT_STATUS,
    )
    one.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a Lightning checkpoint (.ckpt), a saved state_dict (.pt, .pth, .bin) or a .safetensors file",
    )
    _add_format(one, ("table", "json", "markdown"))
    one.add_argument("--key", help="where in a checkpoint the state dict is, such as ema.model; names part by dots")
    _add_fail_on(one, "zero_kernel_fraction=0.1")
    one.set_defaults(run=_audit)

    several = commands.add_parser(
        "compare",
        help="several runs: do the same kernels die, and which findings came and went",
        description="Several runs (seeds, settings, epochs) side by side, in the order given: whether the same kernels "
        "die, more than chance would have it, and which findings came and went.",
        epilog="Exit status: 0; 2 if it could not be done.",
    )
    several.add_argument("reports", metavar="REPORT", nargs="+", help=f"{_REPORT}; at least two")
    _add_format(several, ("table", "markdown"))
    several.set_defaults(run=_compare)

    show = commands.add_parser(
        "show",
        help="the table of a saved report",
        description="The table of a saved report, with every layer and finding if asked for.",
        epilog=_EXIT_STATUS,
    )
    show.add_argument("report", metavar="REPORT", help=_REPORT)
    show.add_argument("--full", action="store_true", help="every layer and every finding, not only the worst")
    _add_format(show, ("table", "json", "markdown"))
    _add_fail_on(show, "vanishing_layers=0")
    show.set_defaults(run=_show)
    return parser


_REPORT = "a report.json, or the folder of the run that has it"
_EXIT_STATUS = "Exit status: 0; 1 if a --fail-on limit is passed; 2 if it could not be done."


def _add_format(parser: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    parser.add_argument("--format", choices=formats, default=formats[0], help="what to print; default: %(default)s")


def _add_fail_on(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument(
        "--fail-on",
        type=_limit,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="end with exit status 1 if this number of the summary, or the number of findings of this kind, is above "
        f"VALUE, e.g. {example}; may be repeated",
    )


def _limit(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not equals or math.isnan(limit):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with a number for VALUE, but got {text!r}")
    return name, limit


def _passed(report: Report, limits: Sequence[tuple[str, float]]) -> bool:
    """Whether a limit is passed; each is named on standard error. A number that was not observed passes none."""
    numbers = _numbers(report)
    unknown = [name for name, _ in limits if name not in numbers]
    if unknown:
        where = "an audit, which sees weights alone," if report.audited is not None else "--fail-on"
        raise CommandError(f"{where} knows no {unknown[0]!r}, but: {', '.join(numbers)}")
    passed = [(name, limit) for name, limit in limits if numbers[name] > limit]
    for name, limit in passed:
        print(f"{PROGRAM}: {name} is {numbers[name]:g}, above {limit:g}", file=sys.stderr)
    return bool(passed)


def _numbers(report: Report) -> dict[str, float]:
    """What a limit can be set on: the summary, and of each kind of finding how many there are."""
    audited = report.audited is not None
    kinds = [rule.kind for rule in RULES if rule.in_files or not audited]
    found = {kind: float(sum(finding.kind == kind for finding in report.findings)) for kind in kinds}
    told = {name: value for name, value in report.summary().items() if name in TOLD_BY_WEIGHTS or not audited}
    return {**found, **told}


class CommandError(Exception):
    """What the user asked for cannot be done; the message says why."""


def _audit(arguments: argparse.Namespace) -> int:
    report = audit(arguments.checkpoint, key=arguments.key)
    passed = _passed(report, arguments.fail_on)
    _print(report, arguments.format, full=True)
    return EXIT_FOUND if passed else 0


def _show(arguments: argparse.Namespace) -> int:
    report = _load_report(arguments.report)
    passed = _passed(report, arguments.fail_on)
    _print(report, arguments.format, arguments.full)
    return EXIT_FOUND if passed else 0


def _print(report: Report, form: str, full: bool) -> None:
    if form == "json":
        print(to_json(report), end="")
    elif form == "markdown":
        print(report.to_markdown(), end="")
    else:
        print_document(describe(report) if full else describe_briefly(report))


def _compare(arguments: argparse.Namespace) -> int:
    comparison = compare([_load_report(place) for place in arguments.reports], _run_names(arguments.reports))
    if arguments.format == "markdown":
        print(comparison.to_markdown(), end="")
    else:
        print_document(comparison.document())
    return 0


def _run_names(places: Sequence[str]) -> list[str] | None:
    """What tells the paths apart, e.g. seed0 and seed1 of runs/seed0/version_0 and runs/seed1/version_0.

    None, for plain numbers, where nothing does.
    """
    parts = [list(Path(place).resolve().parts) for place in places]
    for end in (0, -1):
        while all(len(own) > 1 for own in parts) and len({own[end] for own in parts}) == 1:
            for own in parts:
                del own[end]
    names = ["/".join(own) for own in parts]
    return names if len(set(names)) == len(names) else None


def _load_report(place: str) -> Report:
    """The report of a file, or of the run in a folder."""
    path = Path(place)
    if path.is_dir():
        inside = [path / "report.json", path / "deadkernel" / "report.json"]
        found = [candidate for candidate in inside if candidate.is_file()]
        if not found:
            raise CommandError(f"{place}: the folder has no report.json, nor has its deadkernel/")
        path = found[0]
    try:
        return Report.load(path)
    except FileNotFoundError as error:
        raise CommandError(f"{place}: no such file or folder") from error


# -- commands that train -----------------------------------------------------------------------------------------------


def _train(args: Sequence[str] | None) -> int:
    if find_spec("jsonargparse") is None:
        return _fail(f"this command needs jsonargparse: pip install '{PROGRAM}[cli]'")
    try:
        DeadKernelCLI(
            args=None if args is None else list(args),
            seed_everything_default=0,
            parser_kwargs={
                name: {"prog": f"{PROGRAM} {name}", "usage": f"{PROGRAM} {name} [--config FILE] [options]"}
                for name in TRAINER_COMMANDS
            },
        )
    except DatasetNotFoundError as error:
        return _fail(str(error))
    except DeadKernelError as error:
        return _fail(str(error), EXIT_FOUND)
    return 0


def _fail(message: str, status: int = EXIT_ERROR) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return status


def main(args: list[str] | None = None) -> int:
    """Run the command.

    Args:
        args: The arguments after the program's name; None: those of `sys.argv`.

    Returns:
        The exit status: 0; 1 if something was found on which the user had asked to fail; 2 if it could not be done.

    Raises:
        SystemExit: After `--help`, `--version` and `--print_config` (0), and for arguments that make no sense (2).
    """
    given = sys.argv[1:] if args is None else args
    if given and (given[0] in TRAINER_COMMANDS or given[0] in ("--config", "-c") or given[0].startswith("--config=")):
        # LightningCLI is to read sys.argv itself: it warns if both are given, and launchers start it again from there.
        return _train(args)
    arguments = build_parser().parse_args(given)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandError, AuditError, ValueError, OSError) as error:
        return _fail(str(error))
    return status
