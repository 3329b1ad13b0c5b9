"""Networks that Python packages ship, against the code of those packages: the extra `real`, skipped without."""

import ast
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.probes.page_parser import Page
from weightspace.exchange.readings import Words, read_models, readings_of
from weightspace.rollout import rollout
from weightspace.store import open_zoo


def folder_of(package):
    """The folder of a package, found without importing it: their imports load data from the network."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed (extra `real`)")
    return Path(spec.origin).parent


def outputs(model, x):
    return rollout(model.family, model.params, x).outputs


def in_float64(model, x):
    return rollout(model.family, {k: v.double() for k, v in model.params.items()}, x.double()).outputs


def methods(path, *names):
    """Methods of the first class of a file that have these names, as they stand there."""
    with warnings.catch_warnings():
        # An invalid escape in a text of theirs.
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_text())
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    kept = [node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope = {"np": np}
    module = ast.fix_missing_locations(ast.Module([ast.ClassDef("Kept", [], [], kept, [])], []))
    exec(compile(module, str(path), "exec"), scope)
    return scope["Kept"]()


KEYS = {
    f"{short}_{kind}_{end}": f"{name}.{long}_{end}_l0"
    for short, name in (("enc", "encoder"), ("dec", "decoder"))
    for kind, long in (("w", "weight"), ("b", "bias"))
    for end in ("ih", "hh")
}


def test_both_networks_of_g2p_en_compute_what_its_code_computes(tmp_path):
    folder = folder_of("g2p_en")
    shutil.copy(folder / "checkpoint20.npz", tmp_path / "g2p.npz")
    (tmp_path / "keys.json").write_text(json.dumps({**KEYS, "fc_w": "fc.weight", "fc_b": "fc.bias"}))
    arrays = dict(np.load(folder / "checkpoint20.npz"))
    theirs = methods(folder / "g2p.py", "sigmoid", "grucell", "gru")
    decoder, encoder = readings_of(tmp_path, Words.of(keys=tmp_path / "keys.json"))
    for model, short in ((decoder, "dec"), (encoder, "enc")):
        # The letters or phonemes that their embedding table holds, in a random order.
        x = arrays[f"{short}_emb"][np.random.default_rng(0).integers(0, 29, (4, 12))]
        # In float64: in float32 both are about 1e-6 from the answer.
        weights = [arrays[f"{short}_{name}"].astype(float) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        wanted = theirs.gru(x.astype(float), 12, *weights)
        found = in_float64(model, torch.from_numpy(x).transpose(0, 1)).transpose(0, 1)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)
    words = Words.of(recurrent="decoder", readout="fc", keys=tmp_path / "keys.json")
    (model,) = readings_of(tmp_path, words)
    assert model.family.output_size == 74


def test_the_cell_of_silero_vad_computes_what_torch_computes():
    path = folder_of("silero_vad") / "data" / "silero_vad_16k.safetensors"
    (model,) = read_models(path)
    assert model.name == "silero_vad_16k"
    # tinygrad_model.py of the package makes an LSTMCell(128, 128) of these tensors.
    cell, tensors = nn.LSTMCell(128, 128), safetensors.torch.load_file(path)
    own = {k.removeprefix("lstm_cell."): tensor for k, tensor in tensors.items() if k.startswith("lstm_cell.")}
    cell.load_state_dict(own)
    x, state, wanted = torch.randn(9, 2, 128), None, []
    for now in x:
        state = cell(now, state)
        wanted.append(state[0])
    torch.testing.assert_close(outputs(model, x), torch.stack(wanted).detach(), rtol=0, atol=1e-6)


def test_the_layers_of_resemblyzer_compute_what_torch_computes(tmp_path):
    checkpoint = torch.load(folder_of("resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True)
    state = checkpoint["model_state"]
    safetensors.torch.save_file(state, tmp_path / "voice.safetensors")
    (model,) = read_models(tmp_path / "voice.safetensors", Words(readout="linear"))
    # As VoiceEncoder of the package builds them.
    lstm, linear = nn.LSTM(40, 256, 3), nn.Linear(256, 256)
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})
    linear.load_state_dict({k.removeprefix("linear."): v for k, v in state.items() if k.startswith("linear.")})
    # In float64: in float32 torch itself is 4e-6 from its answer there, on outputs of up to 6.
    x = torch.randn(20, 2, 40, dtype=torch.float64)
    torch.testing.assert_close(in_float64(model, x), linear.double()(lstm.double()(x)[0]).detach(), rtol=0, atol=1e-6)


def run(*command):
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shipped(tmp_path):
    """For each package a folder with the file that it ships, and the options of the command that reads it."""
    folders = {name: tmp_path / name for name in ("g2p_en", "silero_vad", "resemblyzer")}
    for name, folder in folders.items():
        folder_of(name)
        folder.mkdir()
    shutil.copy(folder_of("g2p_en") / "checkpoint20.npz", folders["g2p_en"] / "g2p.npz")
    shutil.copy(folder_of("silero_vad") / "data" / "silero_vad_16k.safetensors", folders["silero_vad"])
    checkpoint = torch.load(folder_of("resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True)
    safetensors.torch.save_file(checkpoint["model_state"], folders["resemblyzer"] / "voice.safetensors")
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    # Fixed points among 1,536 states take many minutes.
    labels = ["--labels", "Rank", "Memory"]
    options = {"g2p_en": ["--key_map", tmp_path / "keys.json"], "resemblyzer": ["--readout", "linear"]}
    return [(folders[name], [*options.get(name, ()), *labels]) for name in folders]


PICTURES = {"g2p_en": 3 + 3, "silero_vad": 4, "resemblyzer": 3 * 4}
"""Recurrent matrices of each package, by gate: two GRUs, an LSTM, and an LSTM of three layers."""


@pytest.mark.slow
def test_networks_of_three_packages_are_embedded_measured_and_shown_in_reports_below_4_gb(tmp_path):
    others = tmp_path / "others"
    run("zoo_builder", "build", "--config", "quickstart-tiny", "--out", others)
    run("weightspace", "embed", "--zoo", others, "--out", f"{others}.safetensors")
    for folder, options in shipped(tmp_path):
        zoo, report = folder / "zoo", folder / "report"
        run("zoo_builder", "import", "--state_dicts", folder, "--out", zoo, *options)
        run("weightspace", "embed", "--zoo", zoo, "--out", f"{zoo}.safetensors")
        command = ["probes", "run", "--zoo", zoo, "--embeddings", f"{zoo}.safetensors", "--out", report]
        run(*command, "--reference", others, f"{others}.safetensors")
        page, table = Page((report / "report.html").read_text()), open_zoo(zoo).table
        names = table["model_id"].to_pylist()
        assert [page.data["models"][code] for code in page.data["model"][: len(names)]] == names
        assert all(name in page.text for name in names)
        for label in ("state_effective_rank", "memory_decay_rate"):
            assert f"{label} " in page.text
            assert all(f"{value:.4g}" in page.text for value in table[label].to_pylist())
        assert sum(tag == "svg" for tag, _ in page.elements) == PICTURES[folder.name]
        # Kilobytes, of the largest process so far.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"{folder.name}: {peak / 2**20:.2f} GB")
        assert peak < 4 * 2**20
