"""How the command line explains itself: an example first, then options in groups, on one screen."""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

MAX_WIDTH = 100
USAGE_ERROR = 2

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
"""What subcommands are added to."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose help begins with what it is for and an example, and whose errors are short."""

    def __init__(
        self,
        *,
        about: str = "",
        example: str = "",
        fill: "Callable[[CommandParser], None] | None" = None,
        **options: Any,
    ) -> None:
        """`about` is one sentence; `example` has one command line or more, one on each line.

        `fill` adds the arguments when they are first asked for: those of `serve` take the import of
        all settings, which the help of the others need not wait for.
        """
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(add_help=False, **options)
        # Who reads this knows it already.
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.about = about
        self.example = example
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, once the arguments are there."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """What it is for, an example, the usage, and the options."""
        formatter = self._get_formatter()
        formatter.add_text(self.about)
        example = "".join(f"  {line}\n" for line in self.example.splitlines())
        parts = [formatter.format_help(), example, super().format_help()]
        return "\n".join(filter(None, parts))

    def error(self, message: str) -> NoReturn:
        """What is wrong, the usage, and where to read on; not the whole help."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(f"{self.format_usage().strip()}\nTry `{self.prog} --help`.", file=sys.stderr)
        sys.exit(USAGE_ERROR)


class HelpFormatter(argparse.HelpFormatter):
    """As wide as the terminal, and never wider than what is read with ease."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
        super().__init__(prog, **{"max_help_position": 26, "width": width, **options})


class HelpAll(argparse.Action):
    """`--help-all`: the help with the options that `--help` leaves out."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        hidden: Sequence[tuple[argparse.Action, str]],
    ) -> None:
        """`hidden` are options and the text of each."""
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=argparse.SUPPRESS)
        self._hidden = hidden

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        """Print it."""
        for action, text in self._hidden:
            action.help = text
        parser.print_help()
        sys.exit(0)
