"""The commands of dorakit in a text that it prints or writes."""

import re
import shlex

import typer

from dorakit.cli.app import app


def commands_in(text):
    """Commands between backquotes, and on indented lines of their own."""
    return [*re.findall(r"`(dorakit [^`]+)`", text), *re.findall(r"^ +(dorakit .+)$", text, re.MULTILINE)]


def parse(command):
    """Read a command as the shell and the command line would; what is wrong with it is raised."""
    program, name, *arguments = shlex.split(command)
    assert program == "dorakit"
    group = typer.main.get_command(app)
    assert name in group.commands, command
    group.commands[name].make_context(name, arguments)
