"""Classes of the user's own: taken from packages that the command names, and from nowhere else."""

import contextlib
import json
import os

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch  # noqa: F401
import pytest
import torch
import yaml

import zoo_builder.cli
from probes.cli import main as probes_main
from tests.weightspace.test_cli import CONFIG, call
from tests.weightspace.zoos import write_zoo
from weightspace import encoders, families
from weightspace.components import plugins
from weightspace.store import open_zoo, verify
from weightspace.training.restoring import read_checkpoint
from zoo_builder.build import build, build_identity
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import read_recipe
from zoo_builder.workers import ray as ray_engine
from zoo_builder.workers.job import Job

PARTS = '''
"""An Elman network under another name, and an encoder that counts."""
import dataclasses
from pathlib import Path
import torch
from weightspace.encoders.base import Encoder
from weightspace.families.elman import Elman
from weightspace.objectives.supervised import Supervised

Path(__file__).with_name("imported").touch()

@dataclasses.dataclass(frozen=True, kw_only=True)
class Jordan(Elman):
    """Elman's network."""

class Counting(Encoder):
    """The mean of each model's weights, times a factor."""
    symmetry = "none"
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__(embedding_dim=1)
        self.factor = torch.nn.Parameter(torch.tensor(factor))
    def fit_standardisation(self, stacks):
        pass
    def forward(self, stacks):
        means = [torch.stack([p.flatten(1).mean(1) for p in stack.params.values()]).mean(0) for stack in stacks]
        return self.factor * torch.cat(means)[:, None]

class Fitting(Supervised):
    """Supervised learning under another name."""
'''


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with two packages of the user's own that Python finds: `theirs`, never imported, and `mine`."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("mine", "theirs"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
        (folder / name / "parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield folder


@pytest.fixture(autouse=True)
def nothing_allowed_yet(packages, monkeypatch):
    """Allowances of a command last as long as its process: taken back here, because other tests share it."""
    monkeypatch.setattr(plugins, "_allowed", {})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("plugins") / "zoo", models=10, rollouts=False)


def config(folder, zoo, package="mine"):
    path = folder / "config.yaml"
    encoder = {"class_path": f"{package}.parts.Counting", "init_args": {"factor": 3.0}}
    objective = {"class_path": f"{package}.parts.Fitting", "init_args": {"targets": ["score"]}}
    model = {**CONFIG["model"], "encoder": encoder, "objective": objective}
    path.write_text(yaml.safe_dump({**CONFIG, "model": model, "data": {"zoo": str(zoo), "batch_size": 16}}))
    return path


def test_without_the_option_the_message_names_it_and_nothing_is_imported(packages, zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--allow_import", "mine"]):
        assert call("fit", "--config", config(tmp_path, zoo, "theirs"), *options) == 2
        error = capsys.readouterr().err
        assert "'theirs.parts.Counting' is not allowed" in error
        assert "add `--allow_import theirs`" in error
    assert not (packages / "theirs/imported").exists()


def test_own_encoders_and_objectives_are_trained_evaluated_and_embedded(packages, zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path, zoo)
    assert call("fit", "--config", path, "--allow_import", "json", "--allow_import=mine") == 0
    assert (packages / "mine/imported").exists()
    best = "runs/version_0/checkpoints/best.ckpt"
    assert call("test", "--allow_import", "json,mine", "--config", path, "--ckpt_path", best) == 0
    assert call("--allow_import", "mine", "embed", "--checkpoint", best, "--zoo", zoo, "--out", "e.safetensors") == 0
    short = ["--model.encoder", "Counting", "--model.objective.targets", "[trace]"]
    assert call("fit", "--allow_import", "mine", "--config", path, *short) == 0
    # A config cannot say what its reader must say.
    assert "allow_import" not in (tmp_path / "runs/version_0/config.yaml").read_text()
    path.write_text(path.read_text() + "allow_import: [mine]\n")
    assert call("fit", "--config", path) == 2
    assert "allow_import" in capsys.readouterr().err


def test_a_checkpoint_with_own_classes_needs_the_option_too(packages, zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": {"zoo": str(zoo), "batch_size": 16}}))
    assert call("fit", "--config", path) == 0
    content = torch.load("runs/version_0/checkpoints/best.ckpt", weights_only=True)
    content["hyper_parameters"]["encoder"]["class_path"] = "theirs.parts.Counting"
    torch.save(content, "theirs.ckpt")
    embed = ["embed", "--checkpoint", "theirs.ckpt", "--zoo", zoo, "--out", "e"]
    for command in (embed, ["predict", "--config", path, "--ckpt_path", "theirs.ckpt"]):
        assert call(*command, "--allow_import", "mine") == 2
        assert "'theirs.parts.Counting', which is not part of this package" in capsys.readouterr().err
    assert not (packages / "theirs/imported").exists()
    plugins.allow("theirs")
    assert read_checkpoint("theirs.ckpt")


RECIPE = {
    "families": [{"class": "Jordan", "hidden_size": 3}],
    "tasks": [{"class": "DelayedRecall", "num_steps": 6}],
    "learning": {"class": "BPTT", "num_updates": 2, "batch_size": 3},
    "snapshots": [0, 2],
    "models_per_cohort": 3,
    "labels": ["Performance"],
}


def test_own_families_are_built_listed_and_checked_like_any_other(packages, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    # Workers that trace no family start in half the time.
    command = ["build", "--config", str(recipe), "--out", str(tmp_path / "zoo"), "--workers", "1", "--method", "torch"]
    assert zoo_builder.cli.main(command) == 2
    assert "--allow_import PKG adds those of your own package" in capsys.readouterr().err
    assert zoo_builder.cli.main([*command, "--allow_import", "mine"]) == 0
    opened = open_zoo(tmp_path / "zoo")
    assert set(opened.table["family"].to_pylist()) == {"Jordan"}
    assert verify(tmp_path / "zoo") == []
    # What the weights are depends on that package, so another state of it is another plan.
    assert set(opened.manifest["generator"]["packages"]) == {"mine"}
    (tmp_path / "zoo/zoo.json").unlink()
    (packages / "mine/more.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="another plan"):
        build(RECIPE, tmp_path / "zoo", workers=1, method="torch")
    assert zoo_builder.cli.main(["list", "families", "--json"]) == 0
    assert "Jordan" in {row["name"] for row in json.loads(capsys.readouterr().out.partition("\n")[2])}
    assert call("check", "families", "--name", "Jordan") == 0


def test_a_worker_of_ray_is_told_which_packages_are_allowed(tmp_path, monkeypatch):
    plugins.allow("mine")
    plan = make_plan(read_recipe(RECIPE))
    job = Job(
        recipe=plan.recipe,
        out=str(tmp_path),
        device="cpu",
        method="torch",
        allow_import=("mine",),
        identity=build_identity(plan, "cpu", "torch"),
    )
    (tmp_path / ".staging").mkdir()
    monkeypatch.setattr(plugins, "_allowed", {})
    _, made = ray_engine._job(job.to_json())
    assert made == plan


def test_a_zoo_of_a_family_that_is_not_there_names_the_option(tmp_path, monkeypatch):
    plugins.allow("mine")
    own = families.available()["Jordan"](input_size=1, hidden_size=2, output_size=1)
    assert "Counting" in encoders.available()
    path = write_zoo(tmp_path / "zoo", [own], models=4, rollouts=False)
    assert torch.equal(open_zoo(path).stack([0]).rows, torch.tensor([0]))
    monkeypatch.setattr(plugins, "_allowed", {})
    with pytest.raises(ValueError, match=r"No family is called 'Jordan'.*--allow_import"):
        open_zoo(path)


def test_a_package_covers_what_is_in_it_and_not_its_namesakes():
    plugins.allow("mine")
    assert [plugins.covers(path) for path in ("mine", "mine.parts.Counting", "mineral.Thing", "x.mine")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["no_such_package", "no.such", "a-b", "", "json,no_such", "../x"])
def test_a_package_that_python_does_not_find_is_refused(name, capsys):
    for main in (call, lambda *argv: zoo_builder.cli.main(argv)):
        assert main("--allow_import", name, "check", "families") == 2
        assert "Python finds no package" in capsys.readouterr().err


def test_help_explains_the_option(capsys):
    probes, builder = (lambda *argv, main=m: main(argv) for m in (probes_main, zoo_builder.cli.main))
    for main, command in ((call, []), (call, ["embed"]), (call, ["fit"]), (builder, []), (probes, [])):
        with contextlib.suppress(SystemExit):
            main(*command, "--help")
        assert "--allow_import PKG" in " ".join(capsys.readouterr().out.split())


def test_an_installed_plug_in_needs_no_option(tmp_path, monkeypatch):
    """An entry point of a distribution names the package, as pip leaves it beside the code."""
    (tmp_path / "pondnets").mkdir()
    (tmp_path / "pondnets" / "__init__.py").write_text("")
    (tmp_path / "pondnets" / "parts.py").write_text(PARTS.replace("Jordan", "Pond"))
    (tmp_path / "pondnets-1.0.dist-info").mkdir()
    described = tmp_path / "pondnets-1.0.dist-info"
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: pondnets\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[{plugins.GROUP}]\npondnets = pondnets\n")
    monkeypatch.setattr(plugins, "_allowed", {})
    assert "Pond" not in families.available()
    monkeypatch.syspath_prepend(tmp_path)
    plugins.installed.cache_clear()
    try:
        assert plugins.allowed() == ("pondnets",)
        assert plugins.covers("pondnets.parts.Pond")
        assert families.load("Pond", {"input_size": 1, "hidden_size": 2, "output_size": 1}).hidden_size == 2
    finally:
        monkeypatch.undo()
        plugins.installed.cache_clear()
    assert plugins.allowed() == ()
