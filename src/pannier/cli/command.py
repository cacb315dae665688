"""The form that all commands have: options for output, help with an example, errors in one place."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from pannier.cli import output
from pannier.cli.session import current
from pannier.contract.views import ErrorView
from pannier.core.errors import InvalidInput, PannierError

INTERRUPTED = 130
PIPE_CLOSED = 141
# A group without arguments shows its help; older versions of click exit for it.
_HelpShown: Any = getattr(click.exceptions, "NoArgsIsHelpError", click.exceptions.Exit)
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for example in self.examples:
                # Not wrapped: people copy it.
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class CommandGroup(click.Group):
    """A group of commands."""

    command_class = Command


class Lazy(click.Command):
    """A command that is imported when it is used: help needs no more than its one line.

    Args:
        name: the command's, and what ``module`` calls it.
        help: its one line.
        in_reference: whether the reference pages describe it.
    """

    def __init__(self, name: str, *, module: str, help: str, in_reference: bool = True) -> None:
        super().__init__(name, help=help, add_help_option=False)
        self.in_reference = in_reference
        self._module = module

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The real command's context: click goes on with the command that it names."""
        return self.load().make_context(info_name, args, parent, **extra)

    def load(self) -> click.Command:
        """The real command.

        Raises:
            PannierError: its module cannot be imported.
        """
        try:
            command: click.Command = getattr(import_module(self._module), self.name or "")
        except Exception as error:
            # An error in that module must not break the other commands.
            raise PannierError(
                f"'pannier {self.name}' cannot be loaded: {type(error).__name__}: {error}",
                remedy="install the package again, with all its parts",
            ) from error
        return command


class Root(CommandGroup):
    """The outermost group: it turns every error into a sentence and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure ends here."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.exceptions.Exit, click.Abort, _HelpShown):
            raise
        except BrokenPipeError:
            _forget_stdout()
            ctx.exit(PIPE_CLOSED)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except Exception as error:
            ctx.exit(report(error, json=current(ctx).json))
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program; see click."""
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                # A terminal that cannot show an arrow shows a question mark, not a traceback.
                reconfigure(errors="replace")
        try:
            status = super().main(args, prog_name, complete_var, False, **extra)
        except click.Abort:
            status = INTERRUPTED
        except _HelpShown as error:
            error.show()
            status = error.exit_code
        except click.ClickException as error:
            status = report(error, json=False)
        if standalone_mode:
            sys.exit(status if isinstance(status, int) else 0)
        return status


def report(error: Exception, *, json: bool) -> int:
    """Print ``error`` and return the exit status."""
    if os.environ.get("PANNIER_DEBUG") == "1":
        traceback.print_exception(error)
    match error:
        case PannierError():
            view = ErrorView(code=error.code, message=error.message, remedy=error.remedy)
            status = error.exit_status
        case click.ClickException():
            view, status = _usage(error), InvalidInput.exit_status
        case _:
            view = ErrorView(
                code=PannierError.code,
                message=f"this should not happen: {type(error).__name__}: {error}",
                remedy="please report it, with what the same command shows with PANNIER_DEBUG=1",
            )
            status = PannierError.exit_status
    output.print_error(view, json=json)
    return status


def _usage(error: click.ClickException) -> ErrorView:
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "pannier"
    return ErrorView(
        code=InvalidInput.code,
        message=message[:1].lower() + message[1:].rstrip("."),
        remedy=f"see '{path} --help'",
    )


def _forget_stdout() -> None:
    """Point stdout at /dev/null: its reader is gone, and Python still flushes it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _choose(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        current(context).format = value


def output_options(*names: str) -> Callable[[Decorated], Decorated]:
    """The option that chooses the output's form: ``--format`` and, if free, ``-o``."""
    return click.option(
        "--format",
        *(names or ("-o",)),
        type=click.Choice(["table", "json"]),
        callback=_choose,
        expose_value=False,
        is_eager=True,
        help="Form of the output; table if not given.",
    )
