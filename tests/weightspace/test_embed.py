"""From a checkpoint to a file of embeddings, and what is refused on the way."""

import json
import sys

import pytest
import safetensors
import torch

from tests.weightspace.zoos import write_zoo
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.supervised import Supervised
from weightspace.store import open_zoo
from weightspace.store.checksum import tensors_digest
from weightspace.training.embed import embed, load, write_embeddings
from weightspace.training.module import EmbeddingModule, fit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    zoo = write_zoo(folder / "zoo", models=10, rollouts=False)
    encoder = MessagePassing(embedding_dim=5, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
    best = fit(EmbeddingModule(encoder, Supervised(["score"])), ZooDataModule(zoo), folder / "run", max_epochs=1)
    return zoo, best


def test_embeddings_stand_in_the_row_order_of_the_table_whatever_the_batches(made, tmp_path):
    zoo, best = made
    path = embed(best, zoo, tmp_path / "new" / "e.safetensors", batch_size=7)
    with safetensors.safe_open(path, framework="pt") as file:
        embeddings = file.get_tensor("embedding")
    encoder = load(best).encoder.eval()
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (open_zoo(zoo).table.num_rows, 5)
    for row in (0, 13, 41):
        with torch.no_grad():
            alone = encoder([open_zoo(zoo).stack([row])])[0]
        torch.testing.assert_close(embeddings[row], alone, atol=1e-5, rtol=1e-4)


def test_the_file_says_in_one_key_what_it_holds_and_its_bytes_are_stable(made, tmp_path):
    zoo, best = made
    paths = [embed(best, zoo, tmp_path / f"{n}.safetensors") for n in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with safetensors.safe_open(paths[0], framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["weightspace"]
    said = json.loads(metadata["weightspace"])
    assert metadata["weightspace"] == json.dumps(said, sort_keys=True)
    assert said == {
        "encoder": "MessagePassing",
        "objective": "Supervised",
        "learned_with": "labels",
        "label_adjacent": [],
        "encoder_sha256": tensors_digest(load(best).encoder.state_dict()),
        "queries": False,
        "name": "MessagePassing-Supervised",
        "zoo": open_zoo(zoo).fingerprint,
        "split": "in_distribution",
        "fold": None,
        "sha256": said["sha256"],
    }


def test_another_zoo_can_be_embedded_with_a_warning(made, tmp_path, caplog):
    other = write_zoo(tmp_path / "other", models=5, seed=3, rollouts=False)
    path = embed(made[1], other, tmp_path / "e.safetensors", name="mine")
    assert "trained on another zoo" in caplog.text
    with safetensors.safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["weightspace"])
    assert (said["name"], said["zoo"]) == ("mine", open_zoo(other).fingerprint)


def test_embeddings_that_are_not_finite_are_not_written(tmp_path):
    embeddings = torch.zeros(4, 2)
    embeddings[2, 1] = torch.nan
    with pytest.raises(ValueError, match="embedding of row 2 is not finite"):
        write_embeddings(tmp_path / "e.safetensors", embeddings, {})
    assert not list(tmp_path.iterdir())


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_is_not_run(made, tmp_path):
    torch.save({"weightspace": {}, "hyper_parameters": Evil(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of plain data"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["class_path", "_class_path"])
def test_a_checkpoint_that_names_a_foreign_class_is_refused_and_its_module_not_imported(
    made, tmp_path, monkeypatch, key
):
    (tmp_path / "foreign_module_for_this_test.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(made[1], weights_only=True)
    content["hyper_parameters"]["encoder"][key] = "foreign_module_for_this_test.Thing"
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign_module_for_this_test.Thing', which is not part of this package"):
        load(tmp_path / "foreign.ckpt")
    assert "foreign_module_for_this_test" not in sys.modules


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint"):
        load(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="no checkpoint of plain data"):
        load(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not say which encoder"):
        load(tmp_path / "other.ckpt")
    for said, reason in (
        ({"split": "new_world"}, "split 'new_world'"),
        (["new_task"], "list"),
        ({"split": []}, "list"),
    ):
        torch.save({"weightspace": said, "hyper_parameters": {}}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=rf"odd.ckpt is not a checkpoint of `weightspace fit`: .*{reason}"):
            load(tmp_path / "odd.ckpt")
