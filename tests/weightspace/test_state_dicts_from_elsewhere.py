"""Networks that others trained and wrapped: taken as they compute, or refused by name with the way out."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as old_weight_norm

from tests.weightspace.test_state_dicts import EXAMPLES, outputs_of, outputs_of_torch
from weightspace.exchange import state_dicts
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def normed(module, name, dim=0):
    return parametrizations.weight_norm(module, name, dim=dim)


def old_normed(module, name, dim=0):
    return old_weight_norm(module, name, dim=dim)


def pruned(module, name):
    return prune.random_unstructured(module, name, amount=0.4)


def twice_pruned(module, name):
    return prune.l1_unstructured(pruned(module, name), name, amount=0.5)


COMPUTED = {
    "weight_norm": normed,
    "weight_norm of columns": lambda module, name: normed(module, name, 1),
    "weight_norm of all": lambda module, name: normed(module, name, None),
    "old weight_norm": old_normed,
    "old weight_norm of columns": lambda module, name: old_normed(module, name, 1),
    "old weight_norm of all": lambda module, name: old_normed(module, name, None),
    "pruned": pruned,
    "pruned twice": twice_pruned,
}


def trained(layer, readout):
    """Take one step of an optimiser, after which what hooks have computed is stale."""
    parameters = [*layer.parameters(), *readout.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    readout(layer(torch.randn(6, 3, 2, dtype=torch.float64))[0]).pow(2).mean().backward()
    optimiser.step()


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_weights_that_are_computed_come_in_as_the_module_would_use_them_now(compute, tmp_path):
    torch.manual_seed(0)
    layer, readout = nn.GRU(2, 4, num_layers=2).double(), nn.Linear(4, 3).double()
    for name in ("weight_hh_l0", "weight_ih_l1"):
        compute(layer, name)
    compute(readout, "weight")
    trained(layer, readout)
    family, params = GRU.from_torch(layer, readout)
    # A file that `write` wrote is read, and so is the state dict as it is.
    _, written = state_dicts.read(state_dicts.write(tmp_path / "w.safetensors", layer, readout))
    model = nn.ModuleDict({"recurrent": layer, "readout": readout})
    safetensors.torch.save_file(model.state_dict(), tmp_path / "s.safetensors")
    (tmp_path / "s.json").write_bytes((tmp_path / "w.json").read_bytes())
    _, stored = state_dicts.read(tmp_path / "s.safetensors")
    x = torch.randn(7, 3, 2, dtype=torch.float64)
    expected = outputs_of_torch(layer, readout, x)
    for found in (params, written, stored):
        torch.testing.assert_close(outputs_of(family, found, x), expected, rtol=0, atol=1e-12)


class Doubled(nn.Module):
    """Two tensors, as weight normalisation has, used in another way."""

    def forward(self, g, v):
        return g + v

    def right_inverse(self, weight):
        return weight[:, :1].clone(), weight.clone()


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(make):
    return lambda module: parametrize.register_parametrization(module, "weight_hh_l0", make())


def hooked(module):
    raw = module._parameters.pop("weight_hh_l0")
    module.register_parameter("weight_hh_l0_raw", raw)
    module.weight_hh_l0 = raw.detach()


UNKNOWN = {
    "scaled": parametrized(Scaled),
    "doubled": parametrized(Doubled),
    "orthogonal": lambda module: parametrizations.orthogonal(module, "weight_hh_l0"),
    "spectral_norm": lambda module: parametrizations.spectral_norm(module, "weight_hh_l0"),
    "old spectral_norm": lambda module: nn.utils.spectral_norm(module, "weight_hh_l0"),
    "normed and scaled": lambda module: parametrized(Scaled)(normed(module, "weight_hh_l0")),
    "raw": hooked,
}


@pytest.mark.parametrize("compute", UNKNOWN.values(), ids=UNKNOWN)
def test_weights_computed_in_another_way_are_refused_by_name_with_the_way_out(compute, tmp_path):
    torch.manual_seed(0)
    layer = nn.LSTM(2, 4)
    compute(layer)
    for refuse in (LSTM.from_torch, lambda module: state_dicts.write(tmp_path / "a.safetensors", module)):
        with pytest.raises(ValueError, match=r"'weight_hh_l0' of the torch.nn.LSTM is computed from .* make it plain"):
            refuse(layer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scaled", "orthogonal", "spectral_norm", "old spectral_norm", "raw"])
def test_files_of_weights_computed_in_another_way_are_refused_by_name(name, tmp_path):
    layer = nn.LSTM(2, 4)
    UNKNOWN[name](layer)
    path = saved(tmp_path, layer.state_dict(), {"class": "LSTM", "input_size": 2, "hidden_size": 4})
    with pytest.raises(ValueError, match=r"'weight_hh_l0' of .*a.safetensors is computed from .* make it plain"):
        state_dicts.read(path)


def test_what_is_computed_from_tensors_of_other_shapes_is_refused(tmp_path):
    for form in (old_normed, pruned):
        tensors = form(nn.LSTM(2, 4), "weight_hh_l0").state_dict()
        name = next(key for key in tensors if key.endswith(("_g", "_mask")))
        tensors[name] = torch.ones(4, 4)
        path = saved(tmp_path, tensors, {"class": "LSTM", "input_size": 2, "hidden_size": 4})
        with pytest.raises(ValueError, match=r"'weight_hh_l0' of .* is computed from"):
            state_dicts.read(path)


def saved(folder, tensors, said):
    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    safetensors.torch.save_file(apart, folder / "a.safetensors")
    (folder / "a.json").write_text(json.dumps(said))
    return folder / "a.safetensors"


def test_dropout_is_taken_in_evaluation_mode_and_told_how_in_training(tmp_path):
    layer = nn.LSTM(2, 4, num_layers=2, dropout=0.4, batch_first=True)
    with pytest.raises(ValueError, match=r"`dropout` \(=0.4\) .* acts in training mode.* call `.eval\(\)` first"):
        state_dicts.write(tmp_path / "a.safetensors", layer)
    layer.eval()
    family, params = state_dicts.read(state_dicts.write(tmp_path / "a.safetensors", layer))
    x = torch.randn(3, 5, 2)
    torch.testing.assert_close(outputs_of(family, params, x.transpose(0, 1)).transpose(0, 1), layer(x)[0].detach())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.num_layers == 1], ids=str)
def test_cells_are_layers_of_one_step(example, bias, tmp_path):
    torch.manual_seed(0)
    make = type(example).torch_cell
    cell = make(example.input_size, example.hidden_size, bias=bias, **example._options_to_torch())
    readout = nn.Linear(example.hidden_size, example.output_size)
    family, params = state_dicts.read(state_dicts.write(tmp_path / "w.safetensors", cell, readout))
    assert family == example
    model = nn.ModuleDict({"cell": cell, "head": readout})
    said = {"class": make.__name__, "input_size": example.input_size, "hidden_size": example.hidden_size, "bias": bias}
    said |= {"recurrent": "cell", "readout": "head", "output_size": example.output_size}
    _, stored = state_dicts.read(saved(tmp_path, model.state_dict(), said | example._options_to_torch()))
    x, state, outputs = torch.randn(6, 3, example.input_size), None, []
    for now in x:
        state = cell(now, state)
        outputs.append(readout(state[0] if isinstance(state, tuple) else state))
    for found in (params, stored):
        torch.testing.assert_close(outputs_of(family, found, x), torch.stack(outputs).detach(), rtol=0, atol=1e-6)


class Whole(nn.Module):
    """A model with more than a recurrent layer and a read-out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.norm = nn.BatchNorm1d(3)
        self.rnn, self.rnn2 = nn.GRU(3, 4), nn.GRU(3, 4)
        self.head, self.header = nn.Linear(4, 2), nn.Linear(4, 2)


SAID = {"class": "GRU", "input_size": 3, "hidden_size": 4, "recurrent": "rnn", "readout": "head", "output_size": 2}
FRONTS = ["", "module.", "_orig_mod.", "model.", "module._orig_mod.model.", "_orig_mod.module.", "net._orig_mod.a.b."]


@pytest.mark.parametrize("front", FRONTS)
def test_other_tensors_of_a_whole_model_and_what_wrappers_put_in_front_are_left_aside(front, tmp_path):
    model = Whole()
    tensors = {front + name: tensor for name, tensor in model.state_dict().items()}
    _, expected = GRU.from_torch(model.rnn, model.head)
    _, found = state_dicts.read(saved(tmp_path, {**tensors, "loss.weight": torch.ones(2, dtype=torch.int64)}, SAID))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_compiled_part_and_a_bare_layer_inside_a_wrapper_are_found(tmp_path):
    model = Whole()
    tensors = {name.replace("rnn.", "rnn._orig_mod."): tensor for name, tensor in model.state_dict().items()}
    _, expected = GRU.from_torch(model.rnn, model.head)
    _, found = state_dicts.read(saved(tmp_path, tensors, SAID))
    assert torch.equal(found["weight_hh.0"], expected["weight_hh.0"])
    bare = {f"module.{name}": tensor for name, tensor in normed(model.rnn, "weight_hh_l0").state_dict().items()}
    said = {key: SAID[key] for key in ("class", "input_size", "hidden_size")}
    _, found = state_dicts.read(saved(tmp_path, bare, said))
    torch.testing.assert_close(found["weight_hh.0"], expected["weight_hh.0"])


def test_what_could_be_several_modules_or_one_tensor_twice_is_told(tmp_path):
    model = Whole()
    tensors = {f"{front}.{name}": tensor for front in "ab" for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"several modules that `recurrent` may mean: \['a.rnn', 'b.rnn'\]; say which"):
        state_dicts.read(saved(tmp_path, tensors, SAID))
    state_dicts.read(saved(tmp_path, tensors, {**SAID, "recurrent": "b.rnn", "readout": "b.head"}))
    twice = {**model.state_dict(), "rnn._orig_mod.weight_hh_l0": torch.zeros(12, 4)}
    with pytest.raises(ValueError, match=r"holds 'rnn.*' and 'rnn.*weight_hh_l0', which are one tensor"):
        state_dicts.read(saved(tmp_path, twice, SAID))
    with pytest.raises(ValueError, match=r"unexpected \['rnn.extra'\]"):
        state_dicts.read(saved(tmp_path, {**model.state_dict(), "rnn.extra": torch.ones(1)}, SAID))
    inside = {name.replace("head.", "head.0."): tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['head.bias', 'head.weight'\], unexpected \['head.0.bias'"):
        state_dicts.read(saved(tmp_path, inside, SAID))


def test_tied_expanded_and_transposed_tensors_are_written_and_read(tmp_path):
    layer, readout = nn.RNN(4, 4), nn.Linear(4, 4)
    layer.bias_hh_l0 = layer.bias_ih_l0
    layer.weight_ih_l0 = nn.Parameter(torch.randn(4, 4).t())
    readout.weight = layer.weight_hh_l0
    readout.bias = nn.Parameter(torch.ones(1).expand(4))
    family, params = state_dicts.read(state_dicts.write(tmp_path / "a.safetensors", layer, readout))
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(outputs_of(family, params, x), outputs_of_torch(layer, readout, x))


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_modules_that_read_would_not_understand_are_not_written(tmp_path):
    for layer, readout, message in (
        (nn.LSTM(2, 4).half(), nn.Linear(4, 1), r"holds tensors of \['torch.float16', 'torch.float32'\]"),
        (nn.LSTM(2, 4).to(torch.complex64), None, r"holds tensors of \['torch.complex64'\]"),
        (nn.LSTM(2, 4, device="meta"), None, "is on the device meta, where tensors have no values"),
        (nn.LSTM(2, 4), nn.Sequential(nn.Linear(4, 1)), "The read-out is a Sequential, expected a torch.nn.Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            state_dicts.write(tmp_path / "a.safetensors", layer, readout)
    assert list(tmp_path.iterdir()) == []


HOSTILE = ["[" * 100_000,
           '{"class":' * 50_000, '{"class": "GRU", "class": "LSTM"}', '{"class": NaN}', "\udcff", "1e999",
           '{"class": "GRU", "input_size": 1e999, "hidden_size": 4}', '{"class": "GRU", "input_size": true}',
           '{"class": "GRU", "input_size": 3, "hidden_size": ' + "9" * 5000 + "}",
           '{"class": "' + "x" * 10**6 + '"}', '{"class": {}}', '{"class": "GRU", "' + "y" * 10**5 + '": 3}',
           '{"class": "GRU", "input_size": 3, "hidden_size": 4, "proj_size": [' + "0," * 9999 + "0]}",
           '{"class": "GRU", "input_size": 3, "hidden_size": 4, "recurrent": "\\ud800((("}',
           '{"class": "GRU", "input_size": 3, "hidden_size": 4, "dropout": NaN, "num_layers": -1}',
           '{"class": "GRU"}' + " " * 2**20]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_sidecars_end_in_one_short_line(tmp_path, text):
    path = saved(tmp_path, nn.GRU(3, 4).state_dict(), {})
    path.with_suffix(".json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json|a\.safetensors") as caught:
        state_dicts.read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1500
