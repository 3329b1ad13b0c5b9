"""Errors in the use of a command in the words of its command line: the parser names keys of its own."""

from __future__ import annotations

import re

MISSING = re.compile(r"the following arguments are required: (.*)")
NO_COMMAND = re.compile(r'expected "(?:(?P<before>.+)\.)?(?:sub)?command" to be one of \{(?P<names>.*)\}, .*')
MISFIT = re.compile(r'Parser key "(?P<key>[\w.]+)".*:\s+Expected an? (?P<kind>.*)\. Got value: (?P<value>.*)', re.S)
KINDS = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}
CHOICES = re.compile(r"typing\.Literal\[(.*)\]")


def in_words(message: str, program: str) -> str:
    """A parser's message about arguments that are missing or misfit, said plainly; any other as it is."""
    for pattern, said in ((MISSING, _missing), (NO_COMMAND, _no_command), (MISFIT, _misfit)):
        match = pattern.fullmatch(message)
        if match:
            return said(match, program.split()[0])
    return message


def _missing(match: re.Match[str], program: str) -> str:
    """Keys are COMMAND.OPTION, or COMMAND.COMMAND.OPTION."""
    keys = [key.split(".") for key in match[1].split(", ")]
    command, names = " ".join([program, *keys[0][:-1]]), [key[-1] for key in keys]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"`{command}` needs {listed}; `{command} --help` has an example."


def _no_command(match: re.Match[str], program: str) -> str:
    names = ", ".join(name.strip() for name in match["names"].split(","))
    command = " ".join([program, *(match["before"] or "").split(".")]).strip()
    return f"`{command}` needs a command, one of {names}; `{command} --help` explains them."


def _misfit(match: re.Match[str], program: str) -> str:
    choices = CHOICES.fullmatch(match["kind"])
    wanted = f"one of {choices[1]}" if choices else KINDS.get(match["kind"], match["kind"])
    return f"`{match['key']}` (={match['value'].strip()}) must be {wanted}."
