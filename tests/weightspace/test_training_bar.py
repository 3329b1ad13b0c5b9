"""The bar of a training: from its first update to 100%, with epoch and losses, and no other bar beside it."""

import re
import sys
import types

import lightning.pytorch as pl
import pytest

from tests.weightspace.test_module import ELMAN, Sums, data_of, module_of
from tests.weightspace.zoos import write_zoo
from weightspace import terminal
from weightspace.training import bar
from weightspace.training.module import fit
from weightspace.training.trainer import quiet

STATE = re.compile(r"Epoch (\d+)/(\d+): +(\d+)%\|[^|]*\| (\d+)/(\d+) \[([^\]]*)\]")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("bar") / "zoo", [ELMAN], models=60, shards_per_family=2)


@pytest.fixture(autouse=True)
def every_state(monkeypatch):
    """A file gets each state of a bar."""
    monkeypatch.setattr(bar, "SECONDS_IN_FILES", 0.0)


def states(capsys):
    """(epoch, epochs, percent, updates, of updates) of every state that a bar has shown, and the losses beside it."""
    written = capsys.readouterr()
    assert "%|" not in written.out
    shown = [(tuple(map(int, groups[:5])), groups[5]) for groups in STATE.findall(written.err)]
    # The bar alone stands on the stream: no other bar writes to it.
    assert written.err.count("%|") == len(shown)
    return [numbers for numbers, _ in shown], [text for _, text in shown]


class StopsAt(pl.Callback):
    def __init__(self, update, error=None):
        self.update, self.error = update, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.update:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


def test_a_training_has_one_bar_of_all_its_updates_that_ends_full(zoo, tmp_path, capsys):
    fit(module_of(), data_of(zoo), tmp_path, max_epochs=3, progress=True)
    numbers, texts = states(capsys)
    total = numbers[-1][-1]
    assert total == 3 * len(data_of_batches(zoo))
    assert numbers[0] == (1, 3, 0, 0, total)
    assert numbers[-1] == (3, 3, 100, total, total)
    assert [updates for _, _, _, updates, _ in numbers] == sorted(updates for _, _, _, updates, _ in numbers)
    assert {epoch for epoch, *_ in numbers} == {1, 2, 3}
    assert "loss=" in texts[2]
    assert "train/loss=" in texts[-1]
    assert "val/loss=" in texts[-1]


def data_of_batches(zoo):
    data = data_of(zoo)
    data.serve()
    return data.train_dataloader()


def test_the_bar_begins_after_all_that_comes_before_the_first_update(zoo, tmp_path, monkeypatch):
    events = []

    class Recorded(bar.tqdm):
        def __init__(self, *arguments, **options):
            events.append("bar")
            super().__init__(*arguments, **options)

    monkeypatch.setattr(bar, "tqdm", Recorded)
    monkeypatch.setattr(Sums, "fit_standardisation", lambda encoder, stacks: events.append("scales"))
    fit(module_of(), data_of(zoo), tmp_path, max_epochs=1, progress=True)
    assert events == ["scales", "bar"]


def test_a_training_that_is_stopped_early_is_whole_and_goes_on_where_it_was(zoo, tmp_path, capsys):
    stop = StopsAt(len(data_of_batches(zoo)))
    fit(module_of(), data_of(zoo), tmp_path, max_epochs=4, progress=True, callbacks=[stop])
    numbers, _ = states(capsys)
    stopped = numbers[-1]
    assert stopped[2] == 100
    assert stopped[3] == stopped[4] < numbers[0][4]
    fit(module_of(), data_of(zoo), tmp_path, max_epochs=4, progress=True, resume=True)
    numbers, _ = states(capsys)
    assert numbers[0][3] == stopped[3]
    assert numbers[-1][2:] == (100, numbers[0][4], numbers[0][4])


def test_a_training_that_fails_does_not_look_whole(zoo, tmp_path, capsys):
    with pytest.raises(ValueError, match="that was it"):
        fit(module_of(), data_of(zoo), tmp_path, progress=True, callbacks=[StopsAt(2, ValueError("that was it"))])
    numbers, _ = states(capsys)
    assert 0 < numbers[-1][2] < 100


def test_a_validation_alone_has_a_bar(zoo, tmp_path, capsys):
    with quiet():
        trainer = pl.Trainer(
            callbacks=[bar.TrainingBar()], logger=False, enable_checkpointing=False, default_root_dir=tmp_path
        )
        trainer.validate(module_of(), datamodule=data_of(zoo), verbose=False)
    assert "Validation" in capsys.readouterr().out


def test_notebooks_show_bars_and_files_do_not(monkeypatch):
    assert not terminal.shows_bars()
    kernel = type("OutStream", (), {"__module__": "ipykernel.iostream", "isatty": lambda stream: False})
    monkeypatch.setattr(sys, "stderr", kernel())
    assert terminal.shows_bars()
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: True))
    assert terminal.shows_bars()
