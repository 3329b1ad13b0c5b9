"""`weightspace fit` as the child of a process with which it ends."""

from __future__ import annotations

import os
import sys
import threading

from weightspace.cli import main


def fit_while_watched(argv: list[str]) -> int:
    """`weightspace fit`, ended when stdin closes, so that no training outlives its quickstart, however that ends."""
    def watch() -> None:
        # Not by `sys.stdin`, whose lock a thread that waits in it would still hold when Python ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return main(["fit", *argv])


if __name__ == "__main__":
    sys.exit(fit_while_watched(sys.argv[1:]))
