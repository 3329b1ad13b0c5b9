"""Faults of a command as one clear line, and with their traceback where `--debug` asks for it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from types import TracebackType

from weightspace.components import plugins

OPTION = "--debug"
HELP = f"{OPTION} (on every command) shows the traceback of an error, such as one in a package of your own."


def take_option(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, and whether it was there."""
    return [argument for argument in argv if argument != OPTION], OPTION in argv


def line_of(error: Exception, debug: bool) -> str:
    """The line that says what is wrong; with `debug` the traceback goes to stderr before it.

    ValueError and OSError say it in the user's words. Other errors are faults of code: one in an enabled package is
    said with its place, and any other is raised again, for it is for us to mend.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, ValueError | OSError):
        return str(error)
    place = _place_in_plugin(error.__traceback__)
    if place is None and not debug:
        raise error
    where = "" if place is None else f" in {place}"
    hint = "" if debug else f" `{OPTION}` shows the traceback."
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}.{hint}"


def _place_in_plugin(trace: TracebackType | None) -> str | None:
    """File and line of the innermost frame in an enabled package, None if there is none."""
    place = None
    while trace is not None:
        if plugins.covers(str(trace.tb_frame.f_globals.get("__name__", ""))):
            place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
