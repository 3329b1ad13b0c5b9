"""What a notebook imports: names that cost nothing until they are used, and models taken in any shape."""

import contextlib
import io
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import weightspace as ws
from tests.weightspace.zoos import write_zoo
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.exchange import state_dicts
from weightspace.objectives.supervised import Supervised
from weightspace.training.embed import embed_stacks
from weightspace.training.module import EmbeddingModule, fit
from zoo_builder import labels
from zoo_builder.members import Members


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def checkpoint(zoo, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    module = EmbeddingModule(small_encoder(), Supervised(["trace"]))
    fit(module, ZooDataModule(zoo), run, max_epochs=1)
    return run


@pytest.fixture(scope="module")
def encoder():
    return ws.load_encoder()


def small_encoder():
    return MessagePassing(embedding_dim=8, edge_dim=4, node_dim=4, product_dim=2)


def layer(kind=nn.LSTM, **options):
    torch.manual_seed(0)
    return kind(3, 8, **options)


def test_the_face_costs_nothing_until_it_is_used():
    code = """
        import sys, time
        before = time.process_time()
        import weightspace as ws
        spent = time.process_time() - before
        assert spent < 0.1, spent
        heavy = {"torch", "numpy", "sklearn", "pyarrow", "zoo_builder"} & set(sys.modules)
        assert not heavy, heavy
        assert {"open_zoo", "embed", "measure"} <= set(dir(ws))
        try:
            ws.emebd
        except AttributeError as error:
            assert "has no attribute 'emebd'; it has" in str(error)
        else:
            raise AssertionError
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_face_is_there_and_in_its_stub():
    names = [name for name in ws.__all__ if name != "__version__"]
    assert all(callable(getattr(ws, name)) or name == "families" for name in names)
    stub = Path(ws.__file__).with_suffix(".pyi").read_text()
    assert all(f" {name}\n" in stub or f"\n{name} = " in stub for name in names)
    assert (Path(ws.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_one_model_runs_without_a_models_axis(kind):
    module, x = layer(kind), torch.randn(9, 4, 3)
    family, params = ws.from_torch(module)
    ran = ws.rollout(family, params, x)
    torch.testing.assert_close(ran.outputs, module(x)[0].detach(), rtol=0, atol=1e-6)
    stacked = ws.rollout(family, {name: tensor[None] for name, tensor in params.items()}, x[None])
    assert torch.equal(stacked.outputs[0], ran.outputs)
    assert torch.equal(stacked.final["h.0"][0], ran.final["h.0"])


def test_one_direction_of_a_bidirectional_layer_is_a_model():
    module, x = layer(bidirectional=True), torch.randn(9, 4, 3)
    backward = ws.from_torch(module, direction="backward")
    outputs = ws.rollout(*backward, x.flip(0)).outputs.flip(0)
    torch.testing.assert_close(outputs, module(x)[0][..., 8:].detach(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"give as `direction` one of \['forward', 'backward'\]"):
        ws.from_torch(module)
    with pytest.raises(ValueError, match="the module is not bidirectional; leave it out"):
        ws.from_torch(layer(), direction="forward")


def test_models_have_the_same_embeddings_however_they_come(zoo, encoder, tmp_path):
    module = layer(nn.GRU)
    family, params = ws.from_torch(module)
    wanted = ws.embed(module, encoder)
    assert wanted.shape == (encoder.embedding_dim,)
    state_dicts.write(tmp_path / "models" / "mine.safetensors", module)
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in params.items()}
    ways = [(family, stacked), [module], tmp_path / "models", str(tmp_path / "models" / "mine.safetensors")]
    for models in ways:
        for row in ws.embed(models, encoder):
            torch.testing.assert_close(row, wanted, rtol=1e-5, atol=1e-6)
    opened = ws.open_zoo(zoo)
    whole = ws.embed(zoo, encoder)
    direct = torch.cat([embed_stacks(encoder, [stack]) for stack in opened.stacks()])
    torch.testing.assert_close(whole, direct, rtol=1e-5, atol=1e-6)
    chosen = [5, 0, len(opened) - 1]
    for models in (opened[chosen], [opened[i] for i in chosen], [opened[chosen[:1]], opened[chosen[1:]]]):
        torch.testing.assert_close(ws.embed(models, encoder, batch_size=2), whole[chosen], rtol=1e-5, atol=1e-6)


def test_what_is_no_model_is_refused(encoder):
    with pytest.raises(ValueError, match="A int is no model; give a zoo"):
        ws.embed(3, encoder)
    with pytest.raises(ValueError, match="The module is a 'Linear'; only torch"):
        ws.embed(nn.Linear(3, 2), encoder)
    with pytest.raises(ValueError, match="`batch_size`"):
        ws.embed(layer(), encoder, batch_size=0)


def test_labels_are_predicted_in_their_unit(zoo, checkpoint):
    predicted = ws.predict(zoo, checkpoint)
    opened = ws.open_zoo(zoo)
    assert list(predicted.columns) == ["trace"]
    assert len(predicted) == len(opened)
    alone = ws.predict(opened[3], checkpoint)
    np.testing.assert_allclose(alone["trace"], predicted["trace"].iloc[3:4], rtol=1e-4, atol=1e-6)


def test_a_head_undoes_its_standardisation():
    objective = Supervised(["score", "trace"])
    objective.build(4)
    objective.mean.copy_(torch.tensor([[1.0, 2.0], [9.0, 9.0]]))
    objective.scale.copy_(torch.tensor([[3.0, 5.0], [7.0, 7.0]]))
    embedding = torch.randn(6, 4)
    weight, bias = objective.head[-1].weight[:2], objective.head[-1].bias[:2]
    wanted = (embedding @ weight.T + bias) * torch.tensor([3.0, 5.0]) + torch.tensor([1.0, 2.0])
    torch.testing.assert_close(objective.predict(embedding), wanted)


def test_an_encoder_without_labels_predicts_none(zoo, tmp_path):
    from weightspace.objectives.reconstruction import Reconstruction

    module = EmbeddingModule(small_encoder(), Reconstruction())
    fit(module, ZooDataModule(zoo), tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="trained by Reconstruction, which predicts no labels"):
        ws.predict(zoo, tmp_path)


def test_labels_are_measured_on_noise_or_on_inputs_of_ones_own():
    module, x = layer(nn.GRU), torch.full((2, 150, 3), 0.3)
    family, params = ws.from_torch(module)
    frame = ws.measure([module, (family, params)], ["Dynamics"], inputs=x)
    members = Members(0, ["0"], recorded=x[None])
    stacked = {name: tensor[None] for name, tensor in params.items()}
    wanted = labels.measure(["Dynamics"], family, stacked, None, members, "native")
    assert list(frame.index) == ["0", "1"]
    np.testing.assert_allclose(frame["spectral_radius"], wanted["spectral_radius"].expand(2), rtol=1e-5)
    assert ws.measure(module, "Dynamics")["spectral_radius"].iloc[0] != frame["spectral_radius"].iloc[0]
    with pytest.raises(ValueError, match=r"expected \(sequences, time, input\) with the 3 inputs of the GRU"):
        ws.measure(module, "Dynamics", inputs=np.zeros((4, 2)))
    with pytest.raises(ValueError, match="No label is called 'Dynamic'"):
        ws.measure(module, "Dynamic")


def test_a_graph_of_one_model_is_that_of_its_spec():
    family, params = ws.from_torch(layer(nn.GRU))
    data = ws.to_data((family, params))
    assert data.num_nodes == sum(axis.size for axis in family.spec.axes.values() if axis.kind != "channel")
    (same,) = ws.to_data([(family, params)])
    assert torch.equal(data.edge_attr, same.edge_attr)


def test_models_are_a_first_step_of_a_pipeline(zoo, encoder):
    models = list(ws.open_zoo(zoo))[:12]
    reduced = make_pipeline(ws.Embedder(encoder), PCA(2)).fit_transform(models)
    embedded = ws.embed(models, encoder).numpy()
    np.testing.assert_allclose(np.abs(reduced), np.abs(PCA(2).fit_transform(embedded)), rtol=1e-3, atol=1e-4)
    fitted = ws.Embedder(encoder).fit(models)
    assert len(fitted.get_feature_names_out()) == encoder.embedding_dim


CHECKS_WITHOUT_INPUT = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_the_transformer_passes_the_checks_of_scikit_learn_that_need_no_rows_of_numbers():
    # Told by the tags that input is no table of numbers, it leaves the rest out, part of which needs no input at all.
    check_estimator(ws.Embedder())
    for check in CHECKS_WITHOUT_INPUT:
        getattr(estimator_checks, check)("Embedder", ws.Embedder(batch_size=32))


def test_checks_of_families_are_part_of_the_face():
    ws.check_family(ws.families.load("GRU", {"input_size": 2, "hidden_size": 3, "output_size": 1}))


SCRIPT = """
import torch, weightspace as ws

lstm, head = torch.nn.LSTM(3, 16), torch.nn.Linear(16, 2)     # your network, trained
model = ws.from_torch(lstm, head)
point = ws.embed(model)                                       # by the encoder that comes with the package
print(ws.measure(model, ["Rank", "Dynamics"]).T)              # dimension of its states, Lyapunov exponent
print(ws.predict(model, "first/run/supervised"))              # labels as an encoder reads them off the weights
zoo = ws.open_zoo("first/zoo")
nearest = (ws.embed(zoo) - point).norm(dim=1).argsort()[:3].tolist()
print(zoo[nearest].table.select(["model_id", "task", "score"]).to_pandas())
"""


def test_ten_lines_look_into_a_network_of_ones_own(zoo, checkpoint, capsys):
    """The script of the README, here on a zoo and an encoder of the tests."""
    assert len([line for line in SCRIPT.splitlines() if line]) <= 10
    text = SCRIPT.replace("first/run/supervised", str(checkpoint)).replace("first/zoo", str(zoo))
    scope = {}
    exec(text, scope)
    opened = ws.open_zoo(zoo)
    distances = (ws.embed(opened) - scope["point"]).norm(dim=1)
    assert scope["nearest"][0] == int(distances.argmin())
    printed = capsys.readouterr().out
    assert "state_effective_rank" in printed
    assert "trace" in printed
    assert opened.table["model_id"][scope["nearest"][0]].as_py() in printed


STRANGER = """
import torch
import weightspace as ws

layer = torch.nn.LSTM(3, 16)  # your trained network
zoo = ws.open_zoo("first/zoo")
mine, theirs = ws.embed(layer), ws.embed(zoo)  # by the encoder that comes with the package
predicted = ws.predict(layer, "first/run/supervised")
measured = ws.measure(layer, ["Dynamics", "Memory"])
nearest = torch.cdist(mine[None], theirs)[0].argsort()[:5]
print(predicted, measured, zoo[nearest.tolist()].table.to_pandas()[["family", "task", "score"]], sep="\\n")
"""


def test_the_ten_lines_of_a_stranger_embed_predict_measure_and_find_neighbours(zoo, checkpoint, tmp_path, monkeypatch):
    shutil.copytree(zoo, tmp_path / "first" / "zoo")
    shutil.copytree(checkpoint, tmp_path / "first" / "run" / "supervised")
    monkeypatch.chdir(tmp_path)
    found = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(STRANGER, found)
    assert len(STRANGER.split("\n")) <= 12
    distances = np.linalg.norm(found["theirs"].double().numpy() - found["mine"].double().numpy(), axis=1)
    assert sorted(distances[found["nearest"]]) == pytest.approx(sorted(distances)[:5])
    assert list(found["predicted"].columns) == ["trace"]
    module = nn.LSTM(3, 16)
    module.load_state_dict(found["layer"].state_dict())
    assert ws.embed(module).tolist() == pytest.approx(found["mine"].tolist(), abs=1e-6)
    assert {"spectral_radius", "memory_decay_rate"} <= set(found["measured"].columns)
    assert found["measured"].notna().all(axis=None)
    assert "score" in said.getvalue()
