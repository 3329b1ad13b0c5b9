"""The bar that follows work on shards: it begins with the first message of a worker and ends full."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weightspace.terminal import shows_bars

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def following(
    amounts: Mapping[int, int], unit: str, title: str, said: Callable[[int], str]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function for the messages of workers on shards, each with its amount of work in `unit`.

    A message names its `shard` and the `progress` made there, or the shard that is `done`, whose work is then all
    counted: some learners report none. Where stderr is no terminal, `said` makes the log line of a finished shard.
    """
    from tqdm import tqdm

    seen, done = dict.fromkeys(amounts, 0), list[int]()
    total = sum(amounts.values())
    with tqdm(total=total, unit=unit, unit_scale=True, disable=not shows_bars(), desc=title) as bar:

        def report(message: Mapping[str, Any]) -> None:
            shard = message.get("shard", message.get("done"))
            if not any(seen.values()):
                # The start of workers is no work: without this it would make the first estimates far too long.
                bar.unpause()
            left = amounts[shard] - seen[shard]
            step = left if "done" in message else min(message.get("progress", 0), left)
            seen[shard] += step
            bar.update(step)
            if "done" in message:
                done.append(shard)
                bar.set_postfix_str(f"{len(done)}/{len(amounts)} shards")
                if bar.disable:
                    logger.info("%s, %d of %d.", said(shard), len(done), len(amounts))

        yield report
