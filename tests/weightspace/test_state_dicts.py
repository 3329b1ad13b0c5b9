"""State dicts of torch.nn as files: the same outputs, the same embeddings, and refusals that name what does not fit."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.weightspace.zoos import write_zoo
from weightspace import families
from weightspace.cli import main
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.exchange import state_dicts
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.layered import Layered
from weightspace.families.lstm import LSTM
from weightspace.objectives.supervised import Supervised
from weightspace.rollout import generator, rollout
from weightspace.store import open_zoo
from weightspace.training.embed import embed, embed_state_dicts
from weightspace.training.module import EmbeddingModule, fit

CONVERTIBLE = [kind for kind in families.available().values() if issubclass(kind, Layered)]
EXAMPLES = [example for kind in CONVERTIBLE for example in kind.examples() if example.has_bias]
MIXED = (
    Elman(input_size=1, hidden_size=4, output_size=1),
    Elman(input_size=1, hidden_size=6, output_size=1, nonlinearity="relu"),
    GRU(input_size=2, hidden_size=4, output_size=3),
    LSTM(input_size=2, hidden_size=3, output_size=3, num_layers=2, has_readout=False),
)


def outputs_of(family, params, x):
    return rollout(family, {name: tensor[None] for name, tensor in params.items()}, x[None]).outputs[0]


def outputs_of_torch(module, readout, x):
    hidden, _ = module(x)
    return (hidden if readout is None else readout(hidden)).detach()


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_what_is_read_computes_what_torch_computes(example, biases, tmp_path):
    torch.manual_seed(0)
    module, readout = example.torch_modules(bias=biases, readout_bias=biases, dtype=torch.float64)
    family, params = state_dicts.read(state_dicts.write(tmp_path / "new" / "a.safetensors", module, readout))
    x = torch.randn(9, 4, example.input_size, dtype=torch.float64)
    assert family == example
    torch.testing.assert_close(outputs_of(family, params, x), outputs_of_torch(module, readout, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_params_go_there_and_back_bit_for_bit(example, dtype, tmp_path):
    params = {name: tensor.to(dtype) for name, tensor in example.init(generator(0, "m", "init")).items()}
    paths = [state_dicts.write(tmp_path / f"{n}.safetensors", *example.to_torch(params)) for n in range(2)]
    family, same = state_dicts.read(paths[0])
    assert family == example
    assert {tensor.dtype for tensor in same.values()} == {dtype}
    assert all(torch.equal(same[name], params[name]) for name in params)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].with_suffix(".json").read_bytes() == paths[1].with_suffix(".json").read_bytes()


class Forecaster(nn.Module):
    """A model as anybody writes it."""

    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(3, 8, num_layers=2)
        self.head = nn.Linear(8, 1, bias=False)


def test_the_state_dict_of_a_model_of_ones_own_needs_a_few_words_only(tmp_path):
    model = Forecaster().double()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "mine.safetensors")
    said = {"class": "LSTM", "input_size": 3, "hidden_size": 8, "num_layers": 2, "recurrent": "body"}
    said |= {"readout": "head", "output_size": 1, "readout_bias": False, "dropout": 0.3, "batch_first": True}
    (tmp_path / "mine.json").write_text(json.dumps(said))
    family, params = state_dicts.read(tmp_path / "mine.safetensors")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = outputs_of_torch(model.body, model.head, x)
    torch.testing.assert_close(outputs_of(family, params, x), expected, rtol=0, atol=1e-12)


def test_a_bare_layer_has_no_names_in_front(tmp_path):
    layer = nn.GRU(2, 3)
    safetensors.torch.save_file(layer.state_dict(), tmp_path / "bare.safetensors")
    (tmp_path / "bare.json").write_text(json.dumps({"class": "GRU", "input_size": 2, "hidden_size": 3}))
    family, params = state_dicts.read(tmp_path / "bare.safetensors")
    assert family == GRU(input_size=2, hidden_size=3, output_size=3, has_readout=False)
    x = torch.randn(5, 2, 2)
    torch.testing.assert_close(outputs_of(family, params, x), outputs_of_torch(layer, None, x), rtol=0, atol=1e-6)


SAID = {"class": "LSTM", "input_size": 2, "hidden_size": 4, "recurrent": "recurrent"}
REFUSED = [
    ({"bidirectional": True}, r"`bidirectional` \(=True\) of the torch.nn.LSTM has no place in LSTM"),
    ({"proj_size": 2}, r"`proj_size` \(=2\) of the torch.nn.LSTM has no place"),
    ({"dropout": "much"}, r"`dropout` \(='much'\) of .*a.json must be of type int \| float"),
    ({"batch_first": 1}, r"`batch_first` \(=1\) of .*a.json must be of type bool"),
    ({"class": "Linear"}, r"a.safetensors is a 'Linear'; only torch.nn's \['GRU', 'GRUCell', .* have a family"),
    ({"class": "LSTMCell"}, r"missing \['recurrent.bias_hh', .*unexpected \['recurrent.bias_hh_l0', "),
    ({"class": "LSTMCell", "num_layers": 2}, r"`num_layers` \(=2\) of .*a.json must be 1, as a LSTMCell is one layer"),
    ({"class": ["LSTM"]}, r"is a \['LSTM'\]; only"),
    ({"class": None}, r"is a None; only"),
    ({"class": "RNN", "nonlinearity": "sin"}, r"a.json: `nonlinearity` \(='sin'\) must be 'tanh' or 'relu'"),
    ({"nonlinearity": "tanh"}, r"has no option 'nonlinearity'"),
    ({"hiden_size": 4}, r"has no option 'hiden_size'.* Did you mean 'hidden_size'\?"),
    ({"hidden_size": 4.0}, r"`hidden_size` \(=4.0\) of .*a.json must be of type int"),
    ({"hidden_size": 10**12}, r"says `hidden_size` 1000000000000, but the largest axis of its tensors is 16"),
    ({"num_layers": 10**12}, r"says `num_layers` 1000000000000, but has 4 tensors"),
    ({"num_layers": -1}, r"a.json: `num_layers` \(=-1\) of LSTM must be at least 1"),
    ({"hidden_size": 5}, r"'recurrent.weight_ih_l0' of .* has shape \(16, 2\), expected \(20, 2\)"),
    ({"num_layers": 2}, r"missing \['recurrent.bias_hh_l1', .*unexpected \[\].*names of the two modules"),
    ({"recurrent": "rnn"}, r"missing \['rnn.bias_hh_l0', .*unexpected \['recurrent.bias_hh_l0'"),
    ({"bias": False}, r"missing \[\], unexpected \['recurrent.bias_hh_l0', 'recurrent.bias_ih_l0'\]"),
    ({"readout": "head"}, r"does not say the `output_size`"),
    ({"readout": "head", "output_size": 3}, r"missing \['head.bias', 'head.weight'\]"),
    ({"readout": 3}, r"`readout` \(=3\) of .* must be of type str \| None"),
    ({"output_size": 3}, r"`output_size` \(=3\) of LSTM must be `hidden_size`"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_what_a_sidecar_says_that_is_not_so_is_refused_by_name(changes, message, tmp_path):
    path = state_dicts.write(tmp_path / "a.safetensors", nn.LSTM(2, 4))
    path.with_suffix(".json").write_text(json.dumps({**SAID, **changes}))
    with pytest.raises(ValueError, match=message):
        state_dicts.read(path)


@pytest.mark.parametrize(
    ("module", "option"),
    [(nn.LSTM(2, 4, bidirectional=True), "bidirectional"), (nn.LSTM(2, 4, proj_size=3), "proj_size")],
    ids=["bidirectional", "proj_size"],
)
def test_layers_that_cannot_be_represented_are_known_by_their_tensors_too(module, option, tmp_path):
    with pytest.raises(ValueError, match=rf"`{option}` .* has no place in LSTM"):
        state_dicts.write(tmp_path / "a.safetensors", module)
    assert not list(tmp_path.iterdir())
    tensors = {f"recurrent.{name}": tensor for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps(SAID))
    with pytest.raises(ValueError, match=rf"only a layer with `{option}` has"):
        state_dicts.read(tmp_path / "a.safetensors")


def test_files_that_are_no_state_dicts_are_refused(tmp_path):
    path = state_dicts.write(tmp_path / "a.safetensors", nn.LSTM(2, 4))
    tensors, said = path.read_bytes(), path.with_suffix(".json").read_text()
    with pytest.raises(ValueError, match=r"only torch.nn's .* have a family"):
        state_dicts.write(tmp_path / "b.safetensors", nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"a.pt must end in .safetensors"):
        state_dicts.read(tmp_path / "a.pt")
    path.write_bytes(tensors[:50])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        state_dicts.read(path)
    half = {
        name: tensor.half() if "bias" in name else tensor for name, tensor in safetensors.torch.load(tensors).items()
    }
    path.write_bytes(safetensors.torch.save(half))
    with pytest.raises(ValueError, match=r"holds tensors of \['torch.float16', 'torch.float32'\]"):
        state_dicts.read(path)
    path.write_bytes(safetensors.torch.save({name: tensor.long() for name, tensor in half.items()}))
    with pytest.raises(ValueError, match=r"holds tensors of \['torch.int64'\]"):
        state_dicts.read(path)
    for text, message in (("{", "a.json is not JSON"), ("[]", "does not say the `class`"), ("{}", "does not say")):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ValueError, match=message):
            state_dicts.read(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"lacks a.json, which says what it holds, such as \{\"class\": \"LSTM\""):
        state_dicts.read(path)
    path.unlink()
    path.with_suffix(".json").write_text(said)
    with pytest.raises(ValueError, match="There is no file"):
        state_dicts.read(path)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)
KEYS = st.sampled_from(["class", "input_size", "hidden_size", "num_layers", "bias", "recurrent", "readout", "dropout"])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return state_dicts.write(tmp_path_factory.mktemp("any") / "a.safetensors", nn.LSTM(2, 4))


@settings(max_examples=60, deadline=None)
@given(said=st.dictionaries(KEYS, JSON | st.sampled_from(["LSTM", "GRU", 1, 2, 4])))
def test_whatever_a_sidecar_says_is_understood_or_refused(path, said):
    path.with_suffix(".json").write_text(json.dumps({**SAID, **said}))
    try:
        family, _ = state_dicts.read(path)
    except ValueError:
        return
    assert (family.input_size, family.hidden_size) == (2, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zoo, a checkpoint trained on it, and its models as state dicts named in the order of its rows."""
    folder = tmp_path_factory.mktemp("state_dicts")
    zoo = write_zoo(folder / "zoo", MIXED, models=10, steps=(100,), rollouts=False)
    encoder = MessagePassing(embedding_dim=5, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
    best = fit(EmbeddingModule(encoder, Supervised(["score"])), ZooDataModule(zoo), folder / "run", max_epochs=1)
    for stack in open_zoo(zoo).stacks():
        for place, row in enumerate(stack.rows.tolist()):
            own = {name: tensor[place] for name, tensor in stack.params.items()}
            state_dicts.write(folder / "models" / f"row-{row:03d}.safetensors", *stack.family.to_torch(own))
    return zoo, best, folder / "models"


def read_embeddings(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor("embedding"), json.loads(file.metadata()["weightspace"])


@pytest.mark.parametrize("batch_size", [4, 64])
def test_state_dicts_have_the_embeddings_of_the_same_models_in_a_zoo(made, tmp_path, batch_size):
    zoo, best, folder = made
    expected, said = read_embeddings(embed(best, zoo, tmp_path / "zoo.safetensors"))
    found, record = read_embeddings(
        embed_state_dicts(best, folder, tmp_path / "files.safetensors", batch_size=batch_size)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # No two models have the same embedding, so the order is right.
    assert torch.pdist(expected).min() > 1e-4
    assert record["state_dicts"] == [f"row-{row:03d}" for row in range(40)]
    assert record["zoo"] is None
    assert {key: record[key] for key in ("encoder", "objective", "learned_with", "name")} == {
        key: said[key] for key in ("encoder", "objective", "learned_with", "name")
    }


def test_the_command_embeds_a_folder_or_a_zoo_but_not_both(made, tmp_path, capsys):
    zoo, best, folder = made
    start = ["embed", "--checkpoint", str(best), "--out", str(tmp_path / "e.safetensors")]
    assert main([*start, "--state_dicts", str(folder), "--name", "mine"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'e.safetensors'}\n"
    assert read_embeddings(tmp_path / "e.safetensors")[1]["name"] == "mine"
    for wrong in ([], ["--zoo", str(zoo), "--state_dicts", str(folder)]):
        assert main([*start, *wrong]) == 2
        assert "either `--zoo DIR` or `--state_dicts DIR`" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*start, "--state_dicts", str(tmp_path / "empty")]) == 2
    assert "holds no state dicts" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(made, tmp_path):
    layer = nn.GRU(2, 3).double()
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] = 1e300
    state_dicts.write(tmp_path / "good.safetensors", nn.GRU(2, 3))
    state_dicts.write(tmp_path / "wild.safetensors", layer)
    with pytest.raises(ValueError, match=r"'weight_hh\.0' of the model 'wild' is not finite in float32"):
        embed_state_dicts(made[1], tmp_path, tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()
