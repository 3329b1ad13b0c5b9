"""Checkpoints: the best and the last epoch, never one of NaN, whole, with a checksum, of bounded sizes."""

import copy
import math
import tempfile
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tests.weightspace.test_module import Sums, data_of, module_of, states
from tests.weightspace.zoos import write_zoo
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.supervised import Supervised
from weightspace.store import open_zoo, write_durably
from weightspace.training.divergence import Diverged
from weightspace.training.embed import embed, load
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.restoring import read_checkpoint


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    family = Elman(input_size=1, hidden_size=4, output_size=1)
    return write_zoo(tmp_path_factory.mktemp("checkpoints") / "zoo", [family], models=10, shards_per_family=2)


@pytest.fixture(scope="module")
def best(zoo, tmp_path_factory):
    encoder = MessagePassing(embedding_dim=3, edge_dim=2, node_dim=3, product_dim=2, num_layers=1)
    module = EmbeddingModule(encoder, Emulation(width=4, max_input_size=2, max_output_size=2))
    return fit(module, data_of(zoo), tmp_path_factory.mktemp("best"), max_epochs=1)


class Spoil(pl.Callback):
    """Lets training diverge in its second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            next(pl_module.encoder.parameters()).data.fill_(math.nan)


class Getting(EmbeddingModule):
    """Its validation loss is the number of the epoch, so that the first is the best."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.current_epoch), batch_size=len(batch))


def test_the_last_checkpoint_is_the_last_epoch_and_the_best_the_best(zoo, tmp_path):
    module = Getting(Sums(), Supervised(["trace"]))
    best = fit(module, data_of(zoo), tmp_path, max_epochs=3)
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] for path in best.parent.iterdir()}
    assert epochs == {"best.ckpt": 0, "last.ckpt": 2}


def test_a_run_of_an_older_version_goes_on_with_the_best_loss_that_it_had(zoo, tmp_path):
    fit(Getting(Sums(), Supervised(["trace"])), data_of(zoo), tmp_path, max_epochs=1)
    keys = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert any(key.startswith("ModelCheckpoint{") for key in keys)
    fit(Getting(Sums(), Supervised(["trace"])), data_of(zoo), tmp_path, max_epochs=2, resume=True)
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0


def test_a_run_that_diverges_says_so_and_keeps_the_last_finite_epoch(zoo, tmp_path):
    with pytest.raises(Diverged, match=r"diverged in epoch 1: .*last\.ckpt is the last epoch before.*learning_rate"):
        fit(module_of(), data_of(zoo), tmp_path, max_epochs=4, callbacks=[Spoil()])
    for name in ("best", "last"):
        checkpoint = tmp_path / "checkpoints" / f"{name}.ckpt"
        assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in states(checkpoint).values())


def test_a_learning_rate_far_too_high_leaves_no_checkpoint_of_nan(zoo, tmp_path):
    with pytest.raises(Diverged, match="no epoch before was kept"):
        fit(module_of(learning_rate=1e8, weight_decay=0.1), data_of(zoo), tmp_path, max_epochs=8)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_checkpoints_are_written_beside_where_they_are_to_be_and_replaced_at_once(zoo, tmp_path, monkeypatch):
    """Not by way of TMPDIR, from where another file system takes a copy that a kill leaves in part."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    fit(module_of(), data_of(zoo), tmp_path / "run", max_epochs=1)
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightspace.store.durable.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "run/checkpoints/last.ckpt", b"another")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_changed_byte_and_a_missing_end_of_a_checkpoint_are_told_in_one_line(best, tmp_path):
    whole, path = best.read_bytes(), tmp_path / "damaged.ckpt"
    for place in [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 75, len(whole), 7)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged\.ckpt") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 80, len(whole) - 71, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged\.ckpt"):
            read_checkpoint(path)


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(zoo, tmp_path):
    fit(module_of(), data_of(zoo), tmp_path, max_epochs=1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
    with pytest.raises(ValueError, match="damaged or cut short"):
        fit(module_of(), data_of(zoo), tmp_path, max_epochs=2, resume=True)


def test_checkpoints_and_embeddings_of_older_versions_have_no_checksum_and_still_open(best, zoo, tmp_path):
    torch.save(torch.load(best, weights_only=True), tmp_path / "old.ckpt")
    module = load(tmp_path / "old.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), load(best).parameters(), strict=True))
    assert embed(tmp_path / "old.ckpt", zoo, tmp_path / "e.safetensors").exists()


HOSTILE = [2**63, 2**63 - 1, 2**40, 10**30, 10**6, 0, -1, math.nan, math.inf, 1e308, "x", "", None, True, [], {}]


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


def with_leaf(content, path, value):
    changed = copy.deepcopy(content)
    where = changed["hyper_parameters"]
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return changed


def test_no_setting_of_a_checkpoint_makes_more_than_its_tensors(best, tmp_path):
    content = torch.load(best, weights_only=True)
    sizes = [path for path in leaves(content["hyper_parameters"]) if str(path[-1]).endswith(("num_layers", "width"))]
    sizes.append(("encoder", "init_args", "embedding_dim"))
    assert len(sizes) == 4
    for path in sizes:
        for value in (2**63 - 1, 10**6):
            torch.save(with_leaf(content, path, value), tmp_path / "hostile.ckpt")
            with pytest.raises(ValueError, match=r"^[^\n]*hostile\.ckpt does not fit[^\n]*$"):
                load(tmp_path / "hostile.ckpt")


@pytest.mark.slow
def test_every_setting_of_a_checkpoint_may_be_anything(best, tmp_path):
    content = torch.load(best, weights_only=True)
    for path in leaves(content["hyper_parameters"]):
        for value in HOSTILE:
            torch.save(with_leaf(content, path, value), tmp_path / "hostile.ckpt")
            with suppress(ValueError):
                load(tmp_path / "hostile.ckpt")


def test_a_checkpoint_whose_tensors_are_not_those_that_it_describes_is_refused_by_name(best, tmp_path):
    content = torch.load(best, weights_only=True)
    for state in (None, {}, {"a": 1}, {**content["state_dict"], "encoder.edge_in.bias": torch.zeros(7)}):
        torch.save({**content, "state_dict": state}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=r"odd\.ckpt does not fit"):
            load(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("version", [1, 3])
def test_an_encoder_trained_with_other_words_for_weights_is_refused_in_one_line(best, tmp_path, version):
    content = torch.load(best, weights_only=True)
    state = content["state_dict"]
    state["encoder.vocabulary"] = torch.tensor(version)
    if version == 1:
        # As release 0.3 wrote them.
        for name in ("vocabulary", "edge_more", "node_more"):
            del state[f"encoder.{name}"]
        state |= {name: value[:, :5] for name, value in state.items() if name.endswith("_scale")}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=rf"version {version} of the roles and slots .* train it again") as error:
        load(tmp_path / "old.ckpt")
    assert "\n" not in str(error.value)


def test_changed_embeddings_and_records_are_told_from_what_was_written(best, zoo, tmp_path):
    from probes.feature_sets import read_embeddings

    path = embed(best, zoo, tmp_path / "e.safetensors")
    opened, whole = open_zoo(zoo), path.read_bytes()
    assert read_embeddings([path], opened)
    changes = {len(whole) - 2: 1, whole.index(b"no_labels") + 3: 0}
    for place, bit in changes.items():
        new = bytes([whole[place] ^ (1 << bit)]) if bit else b"x"
        path.write_bytes(whole[:place] + new + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"e\.safetensors"):
            read_embeddings([path], opened)
    old = whole.replace(b'\\"sha256\\"', b'\\"sha255\\"')
    Path(path).write_bytes(old)
    assert read_embeddings([path], opened)
