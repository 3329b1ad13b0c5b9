"""Saved encoders: the same numbers there and back, on a hub that is made up, and refusals of what is damaged."""

import inspect
import json
import pickle
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from tests.members import EXAMPLES
from tests.weightspace.encoders.models import fitted, stack_of
from tests.weightspace.zoos import write_zoo
from weightspace import encoders
from weightspace.cli import main
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders import Encoder
from weightspace.encoders.message_passing import MessagePassing
from weightspace.encoders.statistics import Statistics
from weightspace.exchange import pretrained
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.store import open_zoo, pretty
from weightspace.store.layout import bytes_entry
from weightspace.training.module import EmbeddingModule, fit

SMALL = {"embedding_dim": 5, "edge_dim": 4, "node_dim": 4, "product_dim": 2, "num_layers": 1}
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    zoo = write_zoo(folder / "zoo", models=10, rollouts=False)
    module = EmbeddingModule(MessagePassing(**SMALL), Reconstruction(width=8))
    return zoo, fit(module, ZooDataModule(zoo), folder / "run", max_epochs=1)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return MessagePassing(**SMALL).save_pretrained(tmp_path / "encoder")


def assert_same(one, other):
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name])
    assert one.construction == other.construction


@pytest.mark.parametrize("name", encoders.available())
def test_every_encoder_comes_back_bit_for_bit(name, tmp_path):
    encoder = encoders.available()[name](embedding_dim=6)
    fitted(encoder, *(stack_of(family) for family in EXAMPLES[:2]))
    stream = torch.get_rng_state()
    again = Encoder.from_pretrained(encoder.save_pretrained(tmp_path))
    assert torch.equal(stream, torch.get_rng_state())
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert_same(encoder, again)
    assert not again.training
    stack = stack_of(EXAMPLES[0], seed=1)
    assert torch.equal(encoder([stack]), again([stack]))


def test_the_files_are_what_other_programs_read(made, tmp_path, capsys):
    zoo, best = made
    assert main(["pretrained", "--checkpoint", str(best), "--out", str(tmp_path / "e"), "--license", "mit"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'e'}\n"
    tensors = safetensors.torch.load_file(tmp_path / "e" / "model.safetensors")
    stored = torch.load(best, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, stored[f"encoder.{name}"]) for name, tensor in tensors.items())
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert (config["encoder"], config["symmetry"]) == ("MessagePassing", ["permutation"])
    assert config["arguments"] | SMALL == config["arguments"]
    trained = config["provenance"]
    assert (trained["objective"], trained["learned_with"]) == ("Reconstruction", "no_labels")
    assert (trained["zoo"], trained["epochs"]) == (open_zoo(zoo).fingerprint, 1)
    card = huggingface_hub.ModelCard.load(tmp_path / "e" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "weightspace")
    for text in (open_zoo(zoo).fingerprint, "Reconstruction", "no labels", "from_pretrained", "permutation"):
        assert text in card.text


def test_a_saved_encoder_embeds_a_zoo_as_its_checkpoint_does_byte_for_byte(made, tmp_path):
    zoo, best = made
    folder = tmp_path / "e"
    assert main(["pretrained", "--checkpoint", str(best), "--out", str(folder)]) == 0
    for source, out in ((best, "a"), (folder, "b")):
        assert main(["embed", "--checkpoint", str(source), "--zoo", str(zoo), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_recipe_and_figures_go_into_the_card_if_they_are_of_this_training(made, tmp_path, capsys):
    zoo, best = made
    row = {"features": "embedding:MessagePassing-Reconstruction", "probe": "ridge", "target": "trace"}
    row |= {"split": "in_distribution", "metric": "r2_within_cell", "value": 0.125, "low": None, "high": 0.25}
    (tmp_path / "probes.json").write_text(json.dumps({"rows": [row, {**row, "features": "shuffled"}]}))
    command = ["pretrained", "--checkpoint", str(best), "--out", str(tmp_path / "e")]
    assert main([*command, "--zoo", str(zoo), "--probes", str(tmp_path / "probes.json")]) == 0
    assert "| ridge | trace | in_distribution | r2_within_cell | 0.125 |  | 0.250 |" in (
        tmp_path / "e" / "README.md"
    ).read_text()
    assert Encoder.from_pretrained(tmp_path / "e").provenance["recipe"] == open_zoo(zoo).manifest["recipe"]
    capsys.readouterr()
    assert main([*command, "--probes", str(tmp_path / "probes.json"), "--name", "mine"]) == 2
    assert "has no row of embedding:mine; it has ['embedding:MessagePassing-Rec" in capsys.readouterr().err
    other = write_zoo(tmp_path / "other", models=5, seed=3, rollouts=False)
    assert main([*command, "--zoo", str(other)]) == 2
    assert "give the zoo of the training" in capsys.readouterr().err


def test_training_on_makes_the_earlier_record_void(made, tmp_path):
    zoo, best = made
    assert main(["pretrained", "--checkpoint", str(best), "--out", str(tmp_path / "e")]) == 0
    encoder = Encoder.from_pretrained(tmp_path / "e").train()
    assert encoder.provenance["zoo"] == open_zoo(zoo).fingerprint
    fit(EmbeddingModule(encoder, Reconstruction(width=8)), ZooDataModule(zoo), tmp_path / "run", max_epochs=1)
    assert encoder.provenance is None


def test_a_class_reads_its_own_and_those_of_its_subclasses_only(folder):
    assert isinstance(MessagePassing.from_pretrained(folder), MessagePassing)
    with pytest.raises(ValueError, match="holds a MessagePassing, not a Statistics"):
        Statistics.from_pretrained(folder)


class Unlisted(Statistics):
    """In no package of encoders."""


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Unlisted is not among the encoders"):
        Unlisted().save_pretrained(tmp_path / "new")
    spoilt = MessagePassing(**SMALL)
    spoilt.head[2].bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"'head\.2\.bias' of the MessagePassing is not finite"):
        spoilt.save_pretrained(tmp_path / "new")
    grown = MessagePassing(**SMALL)
    grown.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"its config would not make it: 'more.bias' has shape \(2,\)"):
        grown.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_earlier_encoder_is_replaced_and_other_files_are_not(folder):
    (folder / "notes.txt").write_text("mine")
    Statistics(embedding_dim=3).save_pretrained(folder)
    assert isinstance(Encoder.from_pretrained(folder), Statistics)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds other files of the names"):
        Statistics(embedding_dim=3).save_pretrained(folder)


CONFIGS = [
    ({"encoder": "MessagePasing"}, "No encoder is called 'MessagePasing'.*Did you mean 'MessagePassing'"),
    ({"encoder": "foreign_module_for_this_test.Thing"}, "No encoder is called 'foreign_module_for_this_test.Thing'"),
    ({"encoder": 3}, r"`encoder` \(=3\) of .*config.json is not of the type"),
    ({"format": "another"}, "not the config of an encoder of this package: its `format` is 'another'"),
    ({"arguments": {**SMALL, "edges": 4}}, "MessagePassing has no option 'edges'"),
    ({"arguments": {**SMALL, "edge_dim": "4"}}, "`edge_dim` .* must be of type int"),
    ({"arguments": {**SMALL, "edge_dim": 8}}, r"has shape \(.*\), but by its settings \("),
    ({"arguments": {**SMALL, "edge_dim": 65536, "node_dim": 65536}}, "but by its settings"),
    ({"arguments": {**SMALL, "num_layers": 65536}}, r"more than the \d+ tensors that it holds"),
    ({"arguments": {"class_path": "os.system", "init_args": {}}}, "has no option 'class_path'"),
    ({"provenance": {"learned_with": "magic"}}, r"`provenance` of .*: `learned_with` \(='magic'\) must be"),
    ({"provenance": {"split": "new_world"}}, "split 'new_world'"),
    ({"provenance": []}, "`provenance` .* is not of the type"),
    ({"files": {}}, "does not give the bytes and the sha256"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[message[:30] for _, message in CONFIGS])
def test_a_config_that_is_not_so_is_refused_in_one_line_and_nothing_is_imported(
    folder, tmp_path, monkeypatch, changes, message
):
    (tmp_path / "foreign_module_for_this_test.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(pretty({**config, **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        Encoder.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert "foreign_module_for_this_test" not in sys.modules


@pytest.mark.parametrize("text", ["{", "[]", '{"format": NaN}', "[" * 9999, '{"a":' * 99 + "1" + "}" * 99, "\xff"])
def test_a_config_that_is_no_plain_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json (is|holds) ") as caught:
        Encoder.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


def rewritten(folder, data):
    """The folder with other tensors, and the checksum that fits them."""
    (folder / "model.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(pretty({**config, "files": {"model.safetensors": bytes_entry(data)}}))


def changed(change):
    """A function that rewrites a folder with its tensors changed by `change`."""

    def rewrite(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        rewritten(folder, safetensors.torch.save(tensors))

    return rewrite


def flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


FAULTS = [
    (flip, r"model.safetensors is damaged, or not the file"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 9), r"damaged, or not .*: 9 bytes, expected"),
    (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing"),
    (lambda f: (f / "config.json").unlink(), r"config.json is missing"),
    (lambda f: rewritten(f, pickle.dumps(Evil())), "cannot be read as safetensors"),
    (lambda f: rewritten(f, b""), "is damaged"),
    (changed(lambda t: t.pop("head.4.bias")), r"'head.4.bias' has shape None, but by its settings \(5,\)"),
    (changed(lambda t: t.update(more=torch.ones(2))), r"'more' has shape \(2,\), but by its settings None"),
    (changed(lambda t: t.update({"head.4.bias": torch.ones(6)})), r"'head.4.bias' has shape \(6,\)"),
    (changed(lambda t: t["head.4.bias"].fill_(torch.inf)), "'head.4.bias' of .* is not finite"),
    (changed(lambda t: t.update({"head.4.bias": torch.ones(5, dtype=torch.int64)})), "'head.4.bias' is of torch.int64"),
    (changed(lambda t: t.update({"head.4.bias": torch.ones(5).half()})), "give all one floating dtype"),
    (changed(lambda t: t["vocabulary"].add_(1)), "roles and slots of weights, but this is version"),
    (changed(lambda t: t.update(vocabulary=torch.ones(2, dtype=torch.int64))), "does not fit the encoder"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_damaged_and_foreign_tensors_are_refused_in_one_line(folder, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Encoder.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


class FakeHub:
    """Stands for the client of the Hub: takes what that takes, and keeps what is uploaded in a folder."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def _bound(self, name, repo, options):
        inspect.signature(getattr(REAL, name)).bind(self, repo, **options)
        self.calls.append((name, options))

    def create_repo(self, repo, **options):
        self._bound("create_repo", repo, options)
        return f"https://huggingface.co/{repo}"

    def create_branch(self, repo, **options):
        self._bound("create_branch", repo, options)

    def upload_folder(self, **options):
        inspect.signature(REAL.upload_folder).bind(self, **options)
        self.calls.append(("upload_folder", options))
        shutil.copytree(options["folder_path"], self.folder / options["repo_id"])

    def hf_hub_download(self, repo, name, **options):
        inspect.signature(DOWNLOAD).bind(repo, name, **options)
        self.calls.append((name, options))
        return str(self.folder / repo / name)


REAL, DOWNLOAD = huggingface_hub.HfApi, huggingface_hub.hf_hub_download


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.chdir(tmp_path)
    return fake


def test_what_is_pushed_to_the_hub_is_read_from_there(hub):
    encoder = MessagePassing(**SMALL)
    url = encoder.push_to_hub("me/encoder", private=True, token="secret", branch="new", license="mit")
    assert url == "https://huggingface.co/me/encoder"
    (_, made), (branched, _), (_, uploaded) = hub.calls
    assert made == {"repo_type": "model", "private": True, "token": "secret", "exist_ok": True}
    assert branched == "create_branch"
    assert (uploaded["repo_id"], uploaded["revision"], uploaded["token"]) == ("me/encoder", "new", "secret")
    assert set(uploaded["allow_patterns"]) == FILES
    assert {path.name for path in (hub.folder / "me" / "encoder").iterdir()} == FILES
    assert_same(encoder, Encoder.from_pretrained("me/encoder", revision="new", token="secret"))
    assert all(options["revision"] == "new" and options["token"] == "secret" for _, options in hub.calls[3:])


def test_saving_can_push_and_the_commands_push_and_read(hub, made, tmp_path, capsys):
    MessagePassing(**SMALL).save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/one")
    assert (hub.folder / "me" / "one" / "config.json").is_file()
    with pytest.raises(ValueError, match="`push_to_hub` needs a `repo_id`"):
        MessagePassing(**SMALL).save_pretrained(tmp_path / "a", push_to_hub=True)
    zoo, best = made
    command = ["pretrained", "--checkpoint", str(best), "--out", str(tmp_path / "b"), "--push"]
    assert main([*command, "me/two"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "b"), "https://huggingface.co/me/two"]
    assert main(["embed", "--checkpoint", "me/two", "--zoo", str(zoo), "--out", str(tmp_path / "e")]) == 0
    assert main([*command, "two"]) == 2
    assert "expected OWNER/NAME" in capsys.readouterr().err


def test_a_config_on_the_hub_is_refused_before_tensors_are_loaded_down(hub):
    MessagePassing(**SMALL).push_to_hub("me/encoder")
    config = hub.folder / "me" / "encoder" / "config.json"
    config.write_bytes(pretty({**json.loads(config.read_text()), "encoder": "Foreign"}))
    hub.calls.clear()
    with pytest.raises(ValueError, match="No encoder is called 'Foreign'"):
        Encoder.from_pretrained("me/encoder")
    assert [name for name, _ in hub.calls] == ["config.json"]


def test_the_real_client_without_a_network_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"There is no folder me/none, and config.json of such a repository") as caught:
        Encoder.from_pretrained("me/none", local_files_only=True, cache_dir=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match=r"is no folder of an encoder, none of the packaged encoders .*OWNER/NAME"):
        Encoder.from_pretrained("no such encoder")
    (tmp_path / "models").mkdir()
    command = ["embed", "--state_dicts", "models", "--out", "e", "--checkpoint"]
    for source, message in (("runs/best.ckpt", "There is no checkpoint runs/best.ckpt"), ("models", "is missing")):
        assert main([*command, source]) == 2
        assert message in capsys.readouterr().err


def test_the_recipe_of_the_packaged_encoder_is_the_one_beside_the_code():
    root = Path(__file__).parents[2] / "configs"
    trained = Encoder.from_pretrained(pretrained.DEFAULT).provenance
    assert trained["learned_with"] == "no_labels"
    for name, training in (("all-families", trained), ("dynamics", trained["started_from"])):
        assert training["recipe"]["families"] == yaml.safe_load((root / "zoo" / f"{name}.yaml").read_text())["families"]
    said = yaml.safe_load((root / "encoder" / "pretraining.yaml").read_text())["model"]
    for part in ("encoder", "objective"):
        recorded = trained["settings"][part]["init_args"]
        assert recorded | said[part]["init_args"] == recorded
