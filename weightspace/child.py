"""Commands of child Python processes that have the import path of their parent and no other."""

from __future__ import annotations

import os
import sys

# `python -m` would search the working folder first, which may contain a file called torch.py or random.py.
START = (
    "import sys; sys.path[:] = {path}; import runpy; runpy.run_module({module!a}, run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` would, but with the import path of this process."""
    return [sys.executable, "-P", "-c", START.format(path=ascii(import_path()), module=module), *arguments]


def import_path() -> list[str]:
    """The import path of this process, as absolute paths.

    The working folder of an interactive session comes last: a file there may have the name of a module that the
    session imported before it changed into the folder.
    """
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str) and entry]
    return [*path, os.getcwd()] if "" in sys.path else path


def imports_from_here() -> bool:
    """Whether this process imports from its working folder."""
    return os.getcwd() in import_path()
