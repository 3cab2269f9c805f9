"""Commands that train: LightningCLI for any model and data, with the monitor in place."""

from __future__ import annotations

import pydoc
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_deadkernel.cli.status import EXIT_FOUND, PROGRAM, TRAINER_COMMANDS, failed
from lightning_deadkernel.demo import DatasetNotFoundError
from lightning_deadkernel.errors import DeadKernelError, OptionError
from lightning_deadkernel.monitor import DeadKernelMonitor
from lightning_deadkernel.training.options import thresholds_of

if TYPE_CHECKING:
    from jsonargparse import Namespace

MONITOR = "lightning_deadkernel.DeadKernelMonitor"


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

        kind = type(monitor)
        init_args = monitor.get("init_args", kind())
        thresholds = init_args.get("thresholds", kind())
        trial = ArgumentParser(exit_on_error=False)
        trial.add_class_arguments(pydoc.locate(monitor.class_path), "monitor", fail_untyped=False)
        # Renamed in jsonargparse 4.49, which warns of the old name.
        instantiate = getattr(trial, "instantiate", None) or trial.instantiate_classes
        try:
            if not isinstance(thresholds, kind):  # jsonargparse would unpack it, whatever it is
                thresholds_of(thresholds)
            instantiate(kind(monitor=init_args))
        except (TypeError, ValueError) as error:
            self._parser(self.subcommand).error(f"{MONITOR}: {error}")


def _is_monitor(callback: Namespace) -> bool:
    kind = pydoc.locate(callback.class_path)
    return isinstance(kind, type) and issubclass(kind, DeadKernelMonitor)


def train(args: Sequence[str] | None) -> int:
    """Run one of `TRAINER_COMMANDS`, from these arguments or, with None, from `sys.argv`; gives the exit status."""
    if find_spec("jsonargparse") is None:
        return failed(f"this command needs jsonargparse: pip install '{PROGRAM}[cli]'")
    try:
        DeadKernelCLI(
            args=None if args is None else list(args),
            seed_everything_default=0,
            parser_kwargs={
                name: {"prog": f"{PROGRAM} {name}", "usage": f"{PROGRAM} {name} [--config FILE] [options]"}
                for name in TRAINER_COMMANDS
            },
        )
    except (DatasetNotFoundError, OptionError) as error:
        return failed(str(error))
    except DeadKernelError as error:
        return failed(str(error), EXIT_FOUND)
    return 0
