"""Networks trained elsewhere as a zoo: every command takes it, and its labels are those of the networks."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from probes.cli import main as probes
from weightspace.cli import main as weightspace
from weightspace.exchange.readings import Words
from weightspace.store import open_zoo, verify
from zoo_builder import labels
from zoo_builder.bring import bring
from zoo_builder.build import build, repair
from zoo_builder.cli import main
from zoo_builder.members import Members


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    layers = {f"lstm{i}": nn.LSTM(3, 6) for i in range(8)} | {f"gru{i}": nn.GRU(3, 5) for i in range(4)}
    layers["both"] = nn.GRU(3, 5, bidirectional=True)
    for name, layer in layers.items():
        safetensors.torch.save_file(layer.state_dict(), folder / f"{name}.safetensors")
    return folder, layers


@pytest.fixture(scope="module")
def zoo(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    x = torch.randn(4, 30, 3, generator=torch.Generator().manual_seed(1))
    np.savez(out / "inputs.npz", x=x.numpy())
    bring(models[0], out / "zoo", inputs=out / "inputs.npz")
    return out / "zoo", x


def test_the_zoo_holds_the_networks_and_their_answers_to_the_recorded_inputs(models, zoo):
    opened, x = open_zoo(zoo[0]), zoo[1]
    names = opened.table["model_id"].to_pylist()
    assert sorted(names) == sorted([*(set(models[1]) - {"both"}), "both.forward", "both.backward"])
    assert verify(zoo[0]) == []
    assert opened.manifest["recipe"]["learning"] == {"class": "Imported"}
    assert set(opened.table["status"].to_pylist()) == {"ok"}
    assert set(opened.table["split"].to_pylist()) == {"train", "val", "test"}
    for row, name in enumerate(names):
        drive, outputs = (side[0] for side in opened.rollouts([row]))
        wanted = models[1][name.partition(".")[0]](x.transpose(0, 1))[0].transpose(0, 1).detach()
        if name == "both.backward":
            assert torch.equal(drive, x.flip(1))
            wanted = wanted.flip(1)[..., 5:]
        elif name == "both.forward":
            wanted = wanted[..., :5]
        torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-6)


def spectral_radii(stack, recorded=None):
    members = Members(0, [str(row) for row in stack.rows.tolist()], recorded=recorded)
    return labels.measure(["Dynamics"], stack.family, stack.params, None, members)["spectral_radius"]


def test_recorded_inputs_drive_labels_in_place_of_noise(models, zoo):
    """Driven to its fixed point, a network has the Jacobian of that point at every step: a closed form."""
    opened = open_zoo(zoo[0])
    row = opened.table["model_id"].to_pylist().index("gru0")
    stack = opened.stack([row])
    cell = nn.GRU(3, 5).double()
    cell.load_state_dict({name: value.double() for name, value in models[1]["gru0"].state_dict().items()})
    state, x = torch.zeros(1, 1, 5, dtype=torch.float64), torch.full((1, 1, 3), 0.3, dtype=torch.float64)
    for _ in range(500):
        state = cell(x, state)[1].detach()
    jacobian = torch.autograd.functional.jacobian(lambda h: cell(x, h[None, None])[1][0, 0], state[0, 0])
    wanted = float(torch.linalg.eigvals(jacobian).abs().max())
    found = float(spectral_radii(stack, torch.full((1, 2, 150, 3), 0.3)))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert abs(float(spectral_radii(stack)) - wanted) > 1e-3


@pytest.mark.slow
def test_every_command_takes_the_zoo(models, zoo, tmp_path, capsys):
    path, embeddings = str(tmp_path / "zoo"), str(tmp_path / "e.safetensors")
    command = ["import", "--state_dicts", str(models[0]), "--out", path, "--inputs", str(zoo[0].parent / "inputs.npz")]
    assert main([*command, "--labels", "Performance", "--workers", "1"]) == 0
    assert main(["label", path, "--labels", "Dynamics", "--workers", "1"]) == 0
    assert main(["verify", path]) == 0
    capsys.readouterr()
    assert main(["info", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == 14
    opened = open_zoo(path)
    stack = next(opened.stacks())
    assert opened.table["score"].null_count == opened.num_rows
    stored = opened.table["spectral_radius"].take(stack.rows.tolist()).to_numpy()
    recorded = opened.rollouts(stack.rows.tolist())[0]
    np.testing.assert_allclose(spectral_radii(stack, recorded).numpy(), stored, rtol=1e-5)
    assert weightspace(["embed", "--zoo", path, "--out", embeddings]) == 0
    assert weightspace(["export", "--zoo", path, "--out", str(tmp_path / "export")]) == 0
    options = ["--targets", "largest_lyapunov", "--splits", "in_distribution"]
    assert probes(["run", "--zoo", path, "--embeddings", embeddings, "--out", str(tmp_path / "p"), *options]) == 0
    assert (tmp_path / "p" / "report.html").is_file()


def test_the_command_says_what_it_needs(models, tmp_path, capsys):
    layers = tmp_path / "layers"
    layers.mkdir()
    safetensors.torch.save_file(nn.RNN(3, 6).state_dict(), layers / "a.safetensors")
    command = ["import", "--state_dicts", str(layers), "--out", str(tmp_path / "zoo")]
    assert main(command) == 2
    assert "add `--nonlinearity tanh`" in capsys.readouterr().err
    assert main([*command, "--nonlinearity", "relu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == 1
    assert next(open_zoo(tmp_path / "zoo").stacks()).family.nonlinearity == "relu"
    assert main([*command, "--nonlinearity", "relu"]) == 2
    assert "holds a zoo already" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_is_written(models, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 9, 4)))
    with pytest.raises(ValueError, match=r"The inputs have 4 columns, but the model 'both\.forward' reads 3"):
        bring(models[0], tmp_path / "zoo", inputs=tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"There is no file .*absent\.npz of inputs"):
        bring(models[0], tmp_path / "zoo", inputs=tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="No label is called 'Ranck'"):
        bring(models[0], tmp_path / "zoo", labels=["Ranck"])
    with pytest.raises(ValueError, match="is none of the recurrent modules"):
        bring(models[0], tmp_path / "zoo", words=Words(recurrent="rnn"))
    assert not (tmp_path / "zoo").exists()


def test_imported_models_are_neither_built_nor_repaired(zoo, tmp_path):
    recipe = open_zoo(zoo[0]).manifest["recipe"]
    with pytest.raises(ValueError, match="No recipe makes imported models"):
        build(recipe, tmp_path / "zoo")
    with pytest.raises(ValueError, match="have `models` and the learner Imported"):
        build({key: value for key, value in recipe.items() if key != "models"}, tmp_path / "zoo")
    with pytest.raises(ValueError, match="were trained elsewhere"):
        repair(zoo[0])


def test_two_models_of_one_name_are_refused_by_that_name(tmp_path):
    both = nn.ModuleDict({"encoder": nn.GRU(2, 4), "decoder": nn.GRU(2, 4)})
    (tmp_path / "files").mkdir()
    safetensors.torch.save_file(both.state_dict(), tmp_path / "files" / "a.safetensors")
    safetensors.torch.save_file(nn.GRU(2, 4).state_dict(), tmp_path / "files" / "a.encoder.safetensors")
    with pytest.raises(ValueError, match=r"Two models are called 'a\.encoder': a file has that name"):
        bring(tmp_path / "files", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
