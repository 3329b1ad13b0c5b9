"""Texts, windows, scores in bits, and n-gram baselines against dictionaries of counts."""

import hashlib
import lzma
import math
from collections import Counter

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder import tasks
from zoo_builder.tasks.char_language import CharLanguage, bits_per_character
from zoo_builder.tasks.ngrams import ngram_bits, unigram_bits
from zoo_builder.tasks.text import ALPHABET, TRAGEDIES, TRAGEDIES_SHA256, numbered

STREAMS = Streams(0, ["a", "b"], "train")
VERSE = "The quick brown fox jumps over the lazy dog.\nWho's there? Nay, answer me!\n" * 40


def written(tmp_path, text, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def as_text(numbers):
    return "".join(ALPHABET[number] for number in numbers.tolist())


def test_the_packaged_text_is_small_has_its_hash_and_is_split_into_nine_tenths_and_one():
    data = lzma.decompress(TRAGEDIES.read_bytes())
    assert TRAGEDIES.stat().st_size < 500_000
    assert hashlib.sha256(data).hexdigest() == TRAGEDIES_SHA256
    provenance = (TRAGEDIES.parent / "PROVENANCE.md").read_text()
    assert TRAGEDIES_SHA256 in provenance
    assert f"{len(data):,} characters" in provenance
    text = CharLanguage().text
    assert as_text(torch.cat(text)) == data.decode("ascii").lower()
    assert len(text.test) == round(0.1 * len(data))
    for title in ("romeo and juliet", "julius caesar", "hamlet, prince", "othello, the moor", "king lear", "macbeth"):
        assert title in as_text(text.train)


@pytest.mark.parametrize("split", ["train", "test"])
def test_windows_are_pieces_of_their_part_and_ask_for_the_next_character(split, tmp_path):
    task = CharLanguage(path=written(tmp_path, VERSE), num_steps=9)
    batch = task.sample({}, STREAMS, 50, split)
    part = as_text(getattr(task.text, split))
    begins = set()
    for model in range(2):
        for column in range(50):
            shown = as_text(batch.x[model, :, column].argmax(-1))
            window = shown + as_text(batch.target[model, -1:, column])
            assert window in part
            assert as_text(batch.target[model, :, column]) == window[1:]
            begins.add(window)
    assert len(begins) > 40


def test_all_windows_put_together_are_the_part(tmp_path):
    task = CharLanguage(path=written(tmp_path, VERSE), num_steps=9)
    part, batch = as_text(task.text.test), task.all_windows("test")
    shown, target = (as_text(numbers[0].T.flatten()) for numbers in (batch.x.argmax(-1), batch.target))
    assert len(shown) == len(target) > len(part) - 10
    assert part.startswith(shown)
    assert part[1:].startswith(target)


def test_the_last_window_of_a_part_can_be_drawn(tmp_path):
    text = "ab" * 45 + "cdefghij" + "xy"
    task = CharLanguage(path=written(tmp_path, text), num_steps=9)
    assert {as_text(row) for row in task.sample({}, STREAMS, 40, "test").target[0].T} == {"defghijxy"}


def test_the_score_is_that_of_bits_counted_one_by_one():
    task = CharLanguage(num_steps=7)
    batch = task.sample({}, STREAMS, 5, "test")
    outputs = torch.randn(2, 7, 5, len(ALPHABET), dtype=torch.float64)
    for model in range(2):
        bits = []
        for t in range(7):
            for column in range(5):
                odds = outputs[model, t, column].exp()
                bits.append(-math.log2(odds[batch.target[model, t, column]] / odds.sum()))
        score = task.score(outputs, batch)[model].item()
        assert bits_per_character(score) == pytest.approx(sum(bits) / len(bits), rel=1e-12)
        assert task.loss(outputs, batch)[model].item() == pytest.approx(sum(bits) / len(bits) * math.log(2), rel=1e-6)
    assert task.score(torch.zeros_like(outputs), batch).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert bits_per_character(0.0) == math.log2(len(ALPHABET))


def witten_bell(train, test, num_symbols, order):
    """Bits per character from dictionaries, character by character."""
    counts, followers = Counter(), {}
    for place in range(len(train)):
        for length in range(min(order, place + 1)):
            context = train[place - length : place]
            counts[context, train[place]] += 1
            followers.setdefault(context, []).append(train[place])
    bits = 0.0
    for place, character in enumerate(test):
        p = 1 / num_symbols
        for length in range(min(order, place + 1)):
            after = followers.get(test[place - length : place])
            if after:
                kinds = len(set(after))
                p = (counts[test[place - length : place], character] + kinds * p) / (len(after) + kinds)
        bits -= math.log2(p)
    return bits / len(test)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_n_grams_are_those_of_dictionaries(order):
    train, test = VERSE[:300] + "it was a dark night.", "the fox: who jumps? a dark, lazy night!"
    numbers = [torch.cat(numbered(text, "x")) for text in (train, test)]
    expected = witten_bell(train.lower(), test, len(ALPHABET), order)
    assert ngram_bits(*numbers, len(ALPHABET), order) == pytest.approx(expected, rel=1e-12)


def test_unigrams_are_counts_plus_one():
    train, test = torch.tensor([0, 0, 1]), torch.tensor([0, 2])
    assert unigram_bits(train, test, 3) == pytest.approx(-(math.log2(3 / 6) + math.log2(1 / 6)) / 2)


def test_random_characters_cost_their_entropy_and_a_periodic_text_next_to_nothing():
    drawn = torch.randint(4, (20000,), generator=torch.Generator().manual_seed(0))
    assert unigram_bits(drawn[:15000], drawn[15000:], 4) == pytest.approx(2, abs=0.01)
    assert 1.99 < ngram_bits(drawn[:15000], drawn[15000:], 4, 3) < 2.02
    periodic = torch.arange(7).repeat(300)
    assert ngram_bits(periodic, periodic, 7) < 0.02
    with pytest.raises(ValueError, match=r"`order` \(=11\) must be from 1 to 10 for a text with 52 characters"):
        ngram_bits(drawn, drawn, 52, 11)


REFUSED = [
    ("a line\nSoßen für €5\n" * 20, {}, r"has 3 unknown characters \('ß', 'ü', '€'\), the first in line 2; known are "),
    (b"\xff\xfe" * 40, {}, r"is not UTF-8 \(invalid start byte, byte 0\); convert it"),
    ("short", {}, r"has 0 characters, too few for windows of `num_steps` \(=50\)"),
    ("", {}, r"has 0 characters, too few for windows"),
    (VERSE, {"sha256": "0" * 64}, r"has the sha256 [0-9a-f]{64}, expected 0{64}: it is another text"),
]


@pytest.mark.parametrize(("text", "fields", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_text_that_cannot_be_read_is_refused_in_one_line(text, fields, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        tasks.load("CharLanguage", {"path": written(tmp_path, text), **fields})
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_and_one_that_changed_is_read_anew(tmp_path):
    with pytest.raises(ValueError, match=r"`path` \(='no such file'\) is not a file; give a text file"):
        CharLanguage(path="no such file")
    path = written(tmp_path, VERSE)
    before = CharLanguage(path=path).text
    written(tmp_path, VERSE + "more.\n")
    assert len(CharLanguage(path=path).text.test) >= len(before.test)
    assert len(torch.cat(CharLanguage(path=path).text)) == len(torch.cat(before)) + 6
    right = hashlib.sha256((VERSE + "more.\n").encode()).hexdigest()
    assert CharLanguage(path=path, sha256=right).config["sha256"] == right
