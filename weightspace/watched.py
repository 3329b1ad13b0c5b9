"""`weightspace fit` in a child process that ends when its parent does."""

from __future__ import annotations

import os
import sys
import threading

from weightspace.cli import main


def fit_while_watched(argv: list[str]) -> int:
    """Run `weightspace fit`, but exit as soon as stdin closes: no training outlives the process that started it."""

    def watch() -> None:
        # `sys.stdin` would be locked by this thread while Python shuts down; the file descriptor has no lock.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return main(["fit", *argv])


if __name__ == "__main__":
    sys.exit(fit_while_watched(sys.argv[1:]))
