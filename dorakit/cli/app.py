"""The `dorakit` command: its sub-commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from typing import Any

import typer
from typer.exceptions import TyperException

from dorakit import __version__, failpoints
from dorakit.cli import (
    analyze,
    chat,
    compare,
    data,
    doctor,
    evaluate,
    export,
    export_to,
    init,
    plan,
    recipe,
    report,
    runs,
    train,
)
from dorakit.errors import DorakitError, MachineError, ResourceError, ToldByAnother, shown
from dorakit.parallel.voice import one_voice
from dorakit.terminal import lasting

app = typer.Typer(
    name="dorakit",
    help="Fine-tune language models from YAML recipes: LoRA, DoRA, QLoRA, QDoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(evaluate.generate)
app.command("chat")(chat.chat)
app.command("compare")(compare.compare)
app.command("merge")(export.merge)
app.command("quantize")(export.quantize)
app.command("export")(export_to.export)
app.command("analyze")(analyze.analyze)
app.command("report")(report.report)
app.command("runs")(runs.runs)
app.command("validate")(recipe.validate)
app.command("data")(data.data)
app.command("import")(recipe.import_)
app.command("schema")(recipe.schema)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dorakit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    offline: bool = typer.Option(
        False, "--offline", help="Never use the network: models and data sets of the hub come from its cache."
    ),
) -> None:
    if debug:
        os.environ["DORAKIT_DEBUG"] = "1"
    if offline:
        # The libraries read these when they are imported, and nothing has imported them yet.
        os.environ.update(dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1"))


def main() -> None:
    """Run the command line and exit with its code."""
    # transformers' advice and bars would interleave with ours; it reads these when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with contextlib.redirect_stderr(lasting(sys.stderr)):
        _main()


def _main() -> None:
    try:
        failpoints.check_variable()
        with one_voice():
            code = _carry_out()
    except TyperException as error:
        _say_usage(error)
        sys.exit(error.exit_code)
    except DorakitError as error:
        _print_trace()
        if not isinstance(error, ToldByAnother):
            print(_headline(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except (KeyboardInterrupt, typer.Abort):  # Ctrl-C; in answer to a question, or Ctrl-D there
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _print_trace():
            print(
                f"error: {type(error).__name__}: {shown(str(error))}\n"
                "  this is a bug in dorakit; `dorakit --debug ...` shows where it happened",
                file=sys.stderr,
            )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _carry_out() -> Any:
    """The command. Ctrl-C, and what the system refuses as an error of ours, leave it as what a group tells once."""
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _about_files(error) from error
    if code == 130:  # what Typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code


def _say_usage(error: TyperException) -> None:
    """Say what Typer does not understand, in our form: it quotes what was typed, which may hold a secret or controls."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed
        return
    print(f"error: {shown(error.format_message())}", file=sys.stderr)
    if context is not None:
        print(f"  {context.get_usage()}\n  {context.command_path} --help says more", file=sys.stderr)


def _print_trace() -> bool:
    """Print the traceback where `--debug` asks for it; whether it does."""
    if not os.environ.get("DORAKIT_DEBUG"):
        return False
    print(shown(traceback.format_exc()), file=sys.stderr)
    return True


def _about_files(error: OSError) -> DorakitError:
    """What the system refused, and at which path; never a bug of dorakit."""
    reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[0]
    place = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"{place}{reason}\n  free some space, or write to another disk")
    return MachineError(f"{place}{reason}")


def _headline(error: DorakitError) -> str:
    text = str(error)  # a DorakitError shows itself without secrets and control characters
    return text if text.startswith("error") or ": error: " in text.split("\n", 1)[0] else f"error: {text}"
