"""Models in files of tensors: found, inferred and read so that they compute what their source computes."""

import json
import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from weightspace.cli import main
from weightspace.exchange.files import read_inputs
from weightspace.exchange.readings import Words, read_models, readings_of
from weightspace.face import embed
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lstm import LSTM
from weightspace.rollout import rollout

TANH = Words(options={"nonlinearity": "tanh"})
LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def outputs(model, x):
    """Outputs (time, batch, output) of a reading on inputs (time, batch, input)."""
    stacked = {name: tensor.to(x.dtype)[None] for name, tensor in model.params.items()}
    return rollout(model.family, stacked, x[None]).outputs[0]


def saved(tensors, path):
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, path)
    return path


def equal(found, wanted):
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-6)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_needs_no_sidecar(kind, depth, bias, tmp_path):
    layer = LAYERS[kind](3, 6, depth, bias=bias)
    (model,) = read_models(saved(layer.state_dict(), tmp_path / "a.safetensors"), TANH)
    x = torch.randn(9, 4, 3)
    assert (model.name, model.is_backward, model.family.num_layers) == ("a", False, depth)
    equal(outputs(model, x), layer(x)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_read_as_the_layer_of_one_step(kind, bias, tmp_path):
    cell = CELLS[kind](3, 6, bias=bias)
    (model,) = read_models(saved(cell.state_dict(), tmp_path / "a.safetensors"), TANH)
    x, state, wanted = torch.randn(9, 4, 3), None, []
    for now in x:
        state = cell(now, state)
        wanted.append(state[0] if isinstance(state, tuple) else state)
    equal(outputs(model, x), torch.stack(wanted))


@pytest.mark.parametrize("kind", LAYERS)
def test_both_directions_are_models_whose_states_are_halves_of_the_output(kind, tmp_path):
    layer = LAYERS[kind](3, 6, bidirectional=True)
    forward, backward = read_models(saved(layer.state_dict(), tmp_path / "a.safetensors"), TANH)
    x = torch.randn(9, 4, 3)
    assert (forward.name, backward.name) == ("a.forward", "a.backward")
    assert (forward.is_backward, backward.is_backward) == (False, True)
    both = torch.cat([outputs(forward, x), outputs(backward, x.flip(0)).flip(0)], dim=-1)
    equal(both, layer(x)[0])


def test_layers_above_a_bidirectional_one_read_both_directions_below(tmp_path):
    layer = nn.LSTM(3, 4, 2, bidirectional=True)
    models = read_models(saved(layer.state_dict(), tmp_path / "a.safetensors"))
    assert [model.name for model in models] == ["a.l0.forward", "a.l0.backward", "a.l1.forward", "a.l1.backward"]
    x = torch.randn(9, 5, 3)
    wanted = layer(x)[0]
    for forward, backward in (models[:2], models[2:]):
        x = torch.cat([outputs(forward, x), outputs(backward, x.flip(0)).flip(0)], dim=-1)
    equal(x, wanted)


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(5, 6)
        self.decoder = nn.GRU(3, 6)
        self.head = nn.Linear(6, 2)


@pytest.mark.parametrize("front", ["", "module.", "_orig_mod.", "model.net.", "model._orig_mod.module."])
def test_every_recurrent_module_of_a_whole_model_is_a_model_under_its_name(front, tmp_path):
    speech = Speech()
    path = saved({front + name: tensor for name, tensor in speech.state_dict().items()}, tmp_path / "s.safetensors")
    decoder, encoder = read_models(path)
    bare = front.replace("_orig_mod.", "")
    assert (decoder.name, encoder.name) == (f"s.{bare}decoder", f"s.{bare}encoder")
    x = torch.randn(9, 4, 5)
    equal(outputs(encoder, x), speech.encoder(x)[0])
    (model,) = read_models(path, Words(recurrent="decoder", readout="head"))
    x = torch.randn(9, 4, 3)
    assert model.family == GRU(input_size=3, hidden_size=6, output_size=2)
    equal(outputs(model, x), speech.head(speech.decoder(x)[0]))


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated.*")
def test_normed_weights_are_folded_in(norm, tmp_path):
    plain = nn.LSTM(3, 6)
    layer = norm(norm(plain, "weight_hh_l0"), "weight_ih_l0")
    (model,) = read_models(saved(layer.state_dict(), tmp_path / "a.safetensors"))
    x = torch.randn(9, 4, 3)
    equal(outputs(model, x), layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_without_loss(dtype, tmp_path):
    layer = nn.GRU(3, 6).to(dtype)
    (model,) = read_models(saved(layer.state_dict(), tmp_path / "a.safetensors"))
    x = torch.randn(9, 4, 3)
    equal(outputs(model, x), layer.float()(x)[0])


def test_an_npz_with_a_key_map_is_read(tmp_path):
    layer, head = nn.GRU(3, 6), nn.Linear(6, 2)
    words = {"w": "rnn.weight_ih_l0", "u": "rnn.weight_hh_l0", "b": "rnn.bias_ih_l0", "c": "rnn.bias_hh_l0"}
    arrays = {key: layer.state_dict()[name.removeprefix("rnn.")].numpy() for key, name in words.items()}
    out = {"fc_w": head.weight.detach().numpy(), "fc_b": head.bias.detach().numpy()}
    np.savez(tmp_path / "a.npz", **arrays, **out, note=np.array("trained on Monday"))
    (tmp_path / "keys.json").write_text(json.dumps({**words, "fc_w": "fc.weight", "fc_b": "fc.bias"}))
    (model,) = read_models(tmp_path / "a.npz", Words.of(readout="fc", keys=tmp_path / "keys.json"))
    x = torch.randn(9, 4, 3)
    equal(outputs(model, x), head(layer(x)[0]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras(kind, w, u, b, x):
    """Outputs of a layer as Keras defines it, gates in its order and kernels (from, to), on x (time, batch, input)."""
    units, outs = u.shape[0], []
    h, c = np.zeros((x.shape[1], units)), np.zeros((x.shape[1], units))
    for now in x:
        if kind == "rnn":
            h = np.tanh(now @ w + h @ u + b)
        if kind == "lstm":
            i, f, g, o = np.split(now @ w + h @ u + b, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        if kind == "gru":
            (xz, xr, xn), (hz, hr, hn) = np.split(now @ w + b[0], 3, axis=1), np.split(h @ u + b[1], 3, axis=1)
            z = sigmoid(xz + hz)
            h = z * h + (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn)
        outs.append(h)
    return np.stack(outs)


@pytest.mark.parametrize(("kind", "blocks"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_layers_of_keras_compute_what_keras_computes(kind, blocks, tmp_path):
    rng = np.random.default_rng(0)
    w, u, b = rng.normal(size=(3, blocks * 5)), rng.normal(size=(5, blocks * 5)), rng.normal(size=blocks * 5)
    b = np.stack([b, rng.normal(size=b.shape)]) if kind == "gru" else b
    dense, shift = rng.normal(size=(5, 2)), rng.normal(size=2)
    cell = f"net/{kind}/{kind}_cell"
    arrays = {f"{cell}/kernel:0": w, f"{cell}/recurrent_kernel:0": u, f"{cell}/bias:0": b}
    np.savez(tmp_path / "k.npz", **arrays, **{"net/dense/kernel:0": dense, "net/dense/bias:0": shift})
    (model,) = read_models(tmp_path / "k.npz", Words(readout="dense", options={"nonlinearity": "tanh"}))
    x = rng.normal(size=(9, 4, 3))
    wanted = keras(kind, w, u, b, x) @ dense + shift
    np.testing.assert_allclose(outputs(model, torch.from_numpy(x)).numpy(), wanted, atol=1e-10)


FLAX = {
    "rnn": ({"i": True, "h": False}, Elman),
    "gru": ({"ir": True, "iz": True, "in": True, "hr": False, "hz": False, "hn": True}, GRU),
    "lstm": ({f"{side}{gate}": side == "h" for side in "ih" for gate in "ifgo"}, LSTM),
}


def flax(kind, maps, x):
    """Outputs of a cell as Flax defines it, with a dense map for each gate, on x (time, batch, input)."""
    h = c = np.zeros((x.shape[1], 5))
    outs = []
    for now in x:
        a = {name: (now if name[0] == "i" else h) @ kernel + bias for name, (kernel, bias) in maps.items()}
        if kind == "rnn":
            h = np.tanh(a["i"] + a["h"])
        if kind == "gru":
            z = sigmoid(a["iz"] + a["hz"])
            h = (1 - z) * np.tanh(a["in"] + sigmoid(a["ir"] + a["hr"]) * a["hn"]) + z * h
        if kind == "lstm":
            c = sigmoid(a["if"] + a["hf"]) * c + sigmoid(a["ii"] + a["hi"]) * np.tanh(a["ig"] + a["hg"])
            h = sigmoid(a["io"] + a["ho"]) * np.tanh(c)
        outs.append(h)
    return np.stack(outs)


@pytest.mark.parametrize("kind", FLAX)
def test_cells_of_flax_compute_what_flax_computes(kind, tmp_path):
    rng = np.random.default_rng(0)
    has_bias, family = FLAX[kind]
    maps, arrays = {}, {}
    for name, biased in has_bias.items():
        kernel = rng.normal(size=(3 if name[0] == "i" else 5, 5))
        bias = rng.normal(size=5) if biased else np.zeros(5)
        maps[name] = kernel, bias
        arrays[f"params/cell/{name}/kernel"] = kernel
        arrays |= {f"params/cell/{name}/bias": bias} if biased else {}
    np.savez(tmp_path / "f.npz", **arrays)
    (model,) = read_models(tmp_path / "f.npz", TANH)
    x = rng.normal(size=(9, 4, 3))
    assert type(model.family) is family
    np.testing.assert_allclose(outputs(model, torch.from_numpy(x)).numpy(), flax(kind, maps, x), atol=1e-10)


def test_a_sidecar_goes_before_what_is_said_for_all(tmp_path):
    layer = nn.RNN(3, 6, nonlinearity="relu")
    path = saved(layer.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('{"nonlinearity": "relu"}')
    (model,) = read_models(path, TANH)
    x = torch.randn(9, 4, 3)
    equal(outputs(model, x), layer(x)[0])


def rnn():
    return nn.RNN(3, 6).state_dict()


REFUSED = {
    "a choice that tensors do not say": (rnn(), Words(), "do not say its `nonlinearity`; add `--nonlinearity tanh`"),
    "projections": (nn.LSTM(3, 6, proj_size=2).state_dict(), Words(), "projections"),
    "no recurrent module": (nn.Linear(3, 6).state_dict(), Words(), "has no recurrent module"),
    "a module that is not there": (Speech().state_dict(), Words(recurrent="lstm"), "is none of the recurrent modules"),
    "a read-out of one of several": (Speech().state_dict(), Words(readout="head"), "say which is `recurrent`"),
    "a read-out that is not there": (
        Speech().state_dict(),
        Words(recurrent="encoder", readout="fc"),
        "its linear maps are ['head']",
    ),
    "a read-out of other sizes": (
        {**nn.GRU(3, 6).state_dict(), "head.weight": torch.ones(2, 7)},
        Words(readout="head"),
        "has shape (2, 7), expected (2, 6)",
    ),
    "a read-out of both directions": (
        {**nn.GRU(3, 6, bidirectional=True).state_dict(), "head.weight": torch.ones(2, 12)},
        Words(readout="head"),
        "reads both directions",
    ),
    "rows of no layer": (
        {"weight_hh_l0": torch.ones(10, 5), "weight_ih_l0": torch.ones(10, 5)},
        Words(),
        "1 row per unit (RNN), 3 (GRU) or 4 (LSTM)",
    ),
    "computed in an unknown way": (
        nn.utils.parametrizations.spectral_norm(nn.GRU(3, 6), "weight_hh_l0").state_dict(),
        Words(),
        "is computed from",
    ),
    "a GRU that resets before": (
        {"kernel": torch.ones(3, 15), "recurrent_kernel": torch.ones(5, 15), "bias": torch.ones(15)},
        Words(),
        "`reset_after=False`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_told_with_what_to_say(case, tmp_path):
    tensors, words, message = REFUSED[case]
    path = saved(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_models(path, words)
    assert "\n" not in str(error.value)


def test_folders_without_files_of_tensors_are_refused_with_the_conversion(tmp_path):
    torch.save(nn.GRU(3, 6).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="pickled files run code when they are opened; write such a state dict anew"):
        list(readings_of(tmp_path))
    saved(nn.GRU(3, 6).state_dict(), tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="rename one"):
        list(readings_of(tmp_path))


def test_arrays_of_python_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as npz"):
        read_models(tmp_path / "a.npz")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"P" * 99])
def test_damaged_archives_end_in_one_line(damage, tmp_path):
    np.savez(tmp_path / "a.npz", kernel=np.ones((3, 4)))
    (tmp_path / "a.npz").write_bytes(damage((tmp_path / "a.npz").read_bytes()))
    with pytest.raises(ValueError, match="cannot be read as npz") as error:
        read_models(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', '{"a": "b", "c": "b"}'])
def test_key_maps_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(ValueError, match=r"key map .*keys\.json"):
        Words.of(keys=tmp_path / "keys.json")


NO_INPUTS = [{"x": np.ones((3, 4))}, {"a": np.ones(3), "b": np.ones(3)}, {"x": np.full((1, 2, 3), np.nan)}]


@pytest.mark.parametrize("arrays", NO_INPUTS)
def test_inputs_that_are_none_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"The inputs .*x\.npz"):
        read_inputs(tmp_path / "x.npz")


def test_the_command_embeds_every_model_of_files_without_sidecars(tmp_path):
    saved(nn.GRU(3, 6, bidirectional=True).state_dict(), tmp_path / "models" / "b.safetensors")
    saved(Speech().state_dict(), tmp_path / "models" / "a.safetensors")
    assert main(["embed", "--state_dicts", str(tmp_path / "models"), "--out", str(tmp_path / "e.safetensors")]) == 0
    with safetensors.safe_open(tmp_path / "e.safetensors", framework="pt") as file:
        embedding, record = file.get_tensor("embedding"), json.loads(file.metadata()["weightspace"])
    models = list(readings_of(tmp_path / "models"))
    assert record["state_dicts"] == ["a.decoder", "a.encoder", "b.forward", "b.backward"]
    wanted = torch.stack([embed((model.family, model.params)) for model in models])
    torch.testing.assert_close(embedding, wanted, rtol=1e-4, atol=1e-5)
