"""The `dorakit` command: its sub-commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from dorakit import failpoints
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
    methods,
    plan,
    recipe,
    report,
    runs,
    train,
)
from dorakit.cli.failures import failure, other_failure
from dorakit.errors import (
    EXIT_CODES,
    DorakitError,
    MachineError,
    ResourceError,
    ToldByAnother,
    is_out_of_memory,
    shown,
)
from dorakit.interruptions import StoppedAtOnce
from dorakit.parallel.voice import one_voice
from dorakit.terminal import json_line, lasting

_MORE_MEMORY = (
    "close other programs, or raise the limit (`ulimit -v` shows it); `dorakit plan RECIPE` says what a training takes"
)

app = typer.Typer(
    name="dorakit",
    help="Fine-tune language models from YAML recipes: LoRA, DoRA, QLoRA, QDoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="\n\n".join(["Exit codes:", *(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())]),
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init.init,
    "train": train.train,
    "eval": evaluate.evaluate,
    "generate": evaluate.generate,
    "chat": chat.chat,
    "compare": compare.compare,
    "merge": export.merge,
    "quantize": export.quantize,
    "export": export_to.export,
    "analyze": analyze.analyze,
    "report": report.report,
    "runs": runs.runs,
    "validate": recipe.validate,
    "data": data.data,
    "import": recipe.import_,
    "schema": recipe.schema,
    "plan": plan.plan,
    "methods": methods.methods,
    "doctor": doctor.doctor,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, epilog="`dorakit --help` lists the exit codes.")(_function)


def _print_version(wanted: bool) -> None:
    if wanted:
        from dorakit.versions import own_version

        typer.echo(f"dorakit {own_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version, of a checkout with its commit.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Never use the network: models and data sets of the hub come from its cache."),
    ] = False,
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
        _end(other_failure("usage", error.format_message(), error.exit_code), error.exit_code)
    except ToldByAnother as error:
        _print_trace()
        sys.exit(error.exit_code)
    except DorakitError as error:
        _print_trace()
        print(_headline(error), file=sys.stderr)
        _end(failure(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except StoppedAtOnce as stop:  # the command said what it leaves
        _end(other_failure("interrupted", "stopped at once", stop.exit_code), stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # Ctrl-C; in answer to a question, or Ctrl-D there
        print("stopped", file=sys.stderr)
        _end(other_failure("interrupted", "stopped", 130), 130)
    except Exception as error:
        text = f"{type(error).__name__}: {shown(str(error))}"
        if not _print_trace():
            print(
                f"error: {text}\n  this is a bug in dorakit; `dorakit --debug ...` shows where it happened",
                file=sys.stderr,
            )
        _end(other_failure("bug", text, 1), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(content: dict[str, Any], exit_code: int) -> NoReturn:
    """Exit; with `--json` on the command line, a program reads stdout, and finds there why."""
    arguments = sys.argv[1:]
    if "--json" in arguments[: arguments.index("--") if "--" in arguments else None]:
        with contextlib.suppress(OSError):  # nobody reads
            print(json_line(content), flush=True)
    sys.exit(exit_code)


def _carry_out() -> Any:
    """The command. Ctrl-C, and as an error of ours what the system refuses, leave it as what a group tells once."""
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        raise
    except DorakitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            reason = (str(error).strip() or "no more is there").splitlines()[0]
            raise ResourceError(f"out of memory: {reason}\n  {_MORE_MEMORY}") from error
        if isinstance(error, OSError):
            raise _about_files(error) from error
        raise
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
