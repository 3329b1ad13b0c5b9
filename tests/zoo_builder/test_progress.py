"""The bar of a build: it begins with the first message and ends full, whatever learners report."""

import io
import logging
import sys

import tqdm

from zoo_builder.progress import following


class Terminal(io.StringIO):
    def isatty(self):
        return True


def followed(messages, monkeypatch, amounts):
    """The bar after these messages, and what it showed."""
    bars = []

    class Kept(tqdm.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, file=sys.stderr, mininterval=0)
            bars.append(self)

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm, "tqdm", Kept)
    with following(amounts, " models", "labels", "Shard {:05d} is labelled".format) as report:
        for message in messages:
            report(message)
    return bars[0], sys.stderr.getvalue()


def test_a_bar_ends_full_although_learners_report_less_or_more(monkeypatch):
    messages = [{"progress": 3, "shard": 0}, {"done": 1}, {"progress": 99, "shard": 0}, {"done": 0}]
    bar, shown = followed(messages, monkeypatch, {0: 10, 1: 5})
    assert (bar.n, bar.total) == (15, 15)
    assert "100%" in shown
    assert "2/2 shards" in shown


def test_the_clock_begins_with_the_first_message(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tqdm.tqdm, "_time", staticmethod(lambda: clock[0]), raising=False)

    def messages():
        clock[0] = 100.0
        yield {"progress": 0, "shard": 0}
        clock[0] = 102.0
        yield {"progress": 4, "shard": 0}

    bar, _ = followed(messages(), monkeypatch, {0: 10})
    assert bar.format_dict["total"] == 10
    assert bar.last_print_t - bar.start_t < 3


def test_without_a_terminal_each_shard_is_a_line(caplog):
    with caplog.at_level(logging.INFO), following({4: 1, 7: 2}, "", "", "Shard {:05d} is there".format) as report:
        report({"done": 7})
        report({"done": 4})
    assert caplog.messages == ["Shard 00007 is there, 1 of 2.", "Shard 00004 is there, 2 of 2."]
