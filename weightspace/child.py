"""Child processes of Python, which import from where their parent does and from nowhere else."""

from __future__ import annotations

import os
import sys

# The working folder, which `-m` would put first, may hold anybody's torch.py or random.py.
START = (
    "import sys; sys.path[:] = {path}; import runpy; runpy.run_module({module!a}, run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` would, but with the import path of this process."""
    return [sys.executable, "-P", "-c", START.format(path=ascii(import_path()), module=module), *arguments]


def import_path() -> list[str]:
    """Where this process imports from, as absolute paths.

    An interactive session looks into its working folder, too. That comes last here: the session may have gone there
    after it had imported what a file in the folder has the name of.
    """
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str) and entry]
    return [*path, os.getcwd()] if "" in sys.path else path


def imports_from_here() -> bool:
    """Whether this process imports from its working folder."""
    return os.getcwd() in import_path()
