"""The `dorakit` command: its sub-commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import typer

from dorakit import __version__
from dorakit.cli import data, evaluate, export, recipe, train
from dorakit.errors import DorakitError, MachineError, ResourceError
from dorakit.terminal import printable

app = typer.Typer(
    name="dorakit",
    help="Fine-tune language models from YAML recipes: LoRA, DoRA, QLoRA, QDoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(evaluate.generate)
app.command("merge")(export.merge)
app.command("quantize")(export.quantize)
app.command("validate")(recipe.validate)
app.command("data")(data.data)
app.command("schema")(recipe.schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dorakit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
) -> None:
    if debug:
        os.environ["DORAKIT_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except DorakitError as error:
        if os.environ.get("DORAKIT_DEBUG"):
            traceback.print_exc()
        print(_headline(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if os.environ.get("DORAKIT_DEBUG"):
            traceback.print_exc()
        told = _about_files(error)
        print(_headline(told), file=sys.stderr)
        sys.exit(told.exit_code)
    except Exception as error:
        if os.environ.get("DORAKIT_DEBUG"):
            traceback.print_exc()
        else:
            print(
                printable(f"error: {type(error).__name__}: {error}\n")
                + "  this is a bug in dorakit; `dorakit --debug ...` shows where it happened",
                file=sys.stderr,
            )
        sys.exit(1)


def _about_files(error: OSError) -> DorakitError:
    """What the system refused, and at which path; never a bug of dorakit."""
    reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[0]
    place = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{place}{reason}\n  free some space, or write to another disk")
    return MachineError(f"{place}{reason}")


def _headline(error: DorakitError) -> str:
    text = printable(str(error))  # it may quote a file, or name a tensor of one
    return text if text.startswith("error") or ": error: " in text.split("\n", 1)[0] else f"error: {text}"
