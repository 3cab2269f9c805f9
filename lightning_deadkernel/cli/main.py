"""The `lightning-deadkernel` command: train with the monitor, ask why, audit weights, show and compare reports.

What a command needs is imported once it is known which it is: Lightning takes seconds to import, help should not.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning_deadkernel import __version__
from lightning_deadkernel.cli.status import EXIT_ERROR, PROGRAM, TRAINER_COMMANDS, CommandError, failed

try:
    import shtab
except ImportError:  # an extra
    shtab = None  # type: ignore[assignment]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the commands that train nothing; it also lists those that do, for `--help` and for typos."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Which kernels of a network are dead, why, and what to do about it.",
        epilog=f"`{PROGRAM} COMMAND --help` says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.set_defaults(home="reports")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, text in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)

    one = commands.add_parser(
        "audit",
        help="what the weights in a file tell: zero kernels, collapsed norm scales, sparsity, identical kernels",
        description="What the weights in a file tell of a network, without its code and without data: zero kernels, "
        "batch norm scales that have collapsed, sparsity, identical kernels. Code in the file is never run. "
        "With --model, dead kernels too: those that no input at all can make fire.",
        epilog=_EXIT_STATUS,
    )
    one.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a Lightning checkpoint (.ckpt), a saved state_dict (.pt, .pth, .bin), a .safetensors or an .onnx file",
    )
    _add_format(one, _FORMATS)
    one.add_argument(
        "--model",
        metavar="MODEL",
        help="package.module:factory, which gives a module (with an example_input_array) or a module and a batch, or "
        "the config of a LightningCLI; runs it once, and tells which kernels no input at all can make fire",
    )
    one.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="an earlier file of the same network: which kernels have not changed in a bit since, faded, or come back",
    )
    one.add_argument("--key", help="where in a checkpoint the state dict is, such as ema.model; names part by dots")
    _add_html(one)
    _add_fail_on(one, "zero_kernel_fraction=0.1")
    one.set_defaults(run="run_audit")

    several = commands.add_parser(
        "compare",
        help="several runs: do the same kernels die, and which findings came and went",
        description="Several runs (seeds, settings, epochs) side by side, in the order given: whether the same kernels "
        "die, more than chance would have it, and which findings came and went.",
        epilog="Exit status: 0; 2 if it could not be done.",
    )
    several.add_argument("reports", metavar="REPORT", nargs="+", help=f"{_REPORT}; at least two")
    _add_format(several, ("table", "markdown"))
    several.set_defaults(run="run_compare")

    why = _add_why(commands)

    show = commands.add_parser(
        "show",
        help="the table of a saved report",
        description="The table of a saved report, with every layer and finding if asked for.",
        epilog=_EXIT_STATUS,
    )
    show.add_argument("report", metavar="REPORT", help=_REPORT)
    show.add_argument("--full", action="store_true", help="every layer and every finding, not only the worst")
    _add_format(show, _FORMATS)
    _add_html(show)
    _add_fail_on(show, "vanishing_layers=0")
    show.set_defaults(run="run_show")
    if shtab is not None:
        shtab.add_argument_to(parser, ["--print-completion"], help="print what makes a shell complete this command")
        for files in (action for command in (one, several, show, why) for action in command._actions):
            if files.dest in _FILES:
                files.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _add_why(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    why = commands.add_parser(
        "why",
        allow_abbrev=False,
        usage=f"{PROGRAM} why --config FILE [options of why and of fit]\n"
        f"       {PROGRAM} why [options of why] -- python main.py fit --config FILE",
        help="train a run again with one thing changed, and see which change spares its kernels",
        description="Trains a run again: unchanged, from the same weights with other random numbers, with other seeds, "
        "and once for each change that may have spared the kernels that were found, each in a process of its own. It "
        "says which changes suffice, and no more than that shows. What has ended is kept: the same command goes on "
        "where it was stopped.",
        epilog="Exit status: 0; 2 if it could not be done; 130 if it was interrupted, with what there was by then.",
    )
    why.add_argument("--config", "-c", action="append", default=[], metavar="FILE", help="of the run, as for fit")
    why.add_argument("--ckpt", metavar="FILE", help="the checkpoint from which each training goes on")
    why.add_argument("--report", metavar="REPORT", help=f"of the run that is asked about: {_REPORT}; saves a training")
    asked = why.add_mutually_exclusive_group()
    asked.add_argument(
        "--finding", type=_positive(int), metavar="N", help="which problem of the report, from 1, or remark after them"
    )
    asked.add_argument("--layer", help="whose findings; default of both: those of the first problem")
    why.add_argument(
        "--arm",
        type=_arm,
        action="append",
        default=[],
        metavar="NAME: OPTIONS",
        help='a change of your own: --arm "no decay: --model.weight_decay=0"; may be repeated',
    )
    why.add_argument(
        "--seeds", type=_positive(int), default=3, metavar="N", help="runs of each arm; default: %(default)s"
    )
    why.add_argument("--max_minutes", type=_positive(float), metavar="M", help="stop then, and say what was not run")
    why.add_argument(
        "--jobs", type=_positive(int), metavar="N", help="trainings at a time; default: one a core, 4 at most"
    )
    why.add_argument("--folder", help="where all of it is kept; default: trials/<name of the config>")
    _add_format(why, ("table", "json", "markdown"))
    why.set_defaults(run="run_why", home="why")
    return why


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a positive {kind.__name__}, but got {text!r}")
        return value

    return read


def _arm(text: str) -> tuple[str, ...]:
    name, colon, options = text.partition(": ")
    try:
        changes = shlex.split(options)
    except ValueError:
        changes = []
    if not colon or not name.strip() or not changes or not changes[0].startswith("--"):
        raise argparse.ArgumentTypeError(f"expected NAME: --option=value ..., but got {text!r}")
    return name.strip(), *changes


_FORMATS = ("table", "json", "markdown", "junit", "sarif")
_FILES = ("checkpoint", "against", "html", "reports", "report", "config", "ckpt", "folder")
_REPORT = "a report.json, or the folder of the run that has it"
_EXIT_STATUS = "Exit status: 0; 1 if a --fail-on limit is passed; 2 if it could not be done."


def _add_format(parser: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    parser.add_argument("--format", choices=formats, default=formats[0], help="what to print; default: %(default)s")


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", help="write it as one HTML page, too")


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


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """Options of `fit` are taken by `why` too, and so is a whole command after `--`."""
    parser = build_parser()
    if list(given[:1]) != ["why"]:
        return parser.parse_args(given)
    end = list(given).index("--") if "--" in given else len(given)
    arguments, options = parser.parse_known_args(given[:end])
    arguments.options, arguments.command_given = options, list(given[end + 1 :])
    return arguments


def main(args: list[str] | None = None) -> int:
    """Run the command.

    Args:
        args: The arguments after the program's name; None: those of `sys.argv`.

    Returns:
        The exit status: 0; 1 if something was found on which the user had asked to fail; 2 if it could not be done.

    Raises:
        SystemExit: After `--help`, `--version` and `--print_config` (0), and for arguments that make no sense (2).
    """
    try:
        return _run(args, sys.argv[1:] if args is None else args)
    except Exception:  # in the user's code, or in ours; Python's own 1 would say that something was found
        sys.excepthook(*sys.exc_info())
        return EXIT_ERROR


def _run(args: list[str] | None, given: Sequence[str]) -> int:
    if given and (given[0] in TRAINER_COMMANDS or given[0] in ("--config", "-c") or given[0].startswith("--config=")):
        # LightningCLI is to read sys.argv itself: it warns if both are given, and launchers start it again from there.
        return int(import_module("lightning_deadkernel.cli.train").train(args))
    arguments = _parsed(given)
    try:
        status: int = getattr(import_module(f"lightning_deadkernel.cli.{arguments.home}"), arguments.run)(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandError, ValueError, OSError) as error:
        return failed(str(error))
    return status
