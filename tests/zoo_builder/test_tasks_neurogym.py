"""Trials of environments with the interface of neurogym, and of neurogym itself where it is installed."""

import hashlib
import json
import sys
import types

import huggingface_hub
import numpy as np
import pytest
import safetensors
import torch

import weightspace as ws
from tests.zoo_builder.test_relabel import run_here
from weightspace.components import plugins
from weightspace.exchange import hub
from weightspace.rollout import Streams
from weightspace.store import verify
from zoo_builder import tasks
from zoo_builder.build import build, repair
from zoo_builder.relabel import relabel
from zoo_builder.tasks.kept import keep
from zoo_builder.tasks.neuro_gym import NeuroGym
from zoo_builder.tasks.trials import from_tensors, trials_of
from zoo_builder.tasks.two_choices import Discrete, TwoChoices

OWN = "zoo_builder.tasks.two_choices:TwoChoices"


@pytest.fixture
def neurogym(monkeypatch):
    """A package with the functions of neurogym that are used; environments come wrapped, as there."""
    made = []

    def make(name, **options):
        made.append(name)
        return types.SimpleNamespace(unwrapped=TwoChoices(**options))

    names = ("neurogym", "neurogym.envs", "neurogym.envs.registration")
    package, _, registration = modules = [types.ModuleType(name) for name in names]
    package.make = make
    registration.all_envs = lambda **kinds: ["PerceptualDecisionMaking-v0", "GoNogo-v0"]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    trials_of.cache_clear()
    return made


def streams(models=3):
    return Streams(0, [str(i) for i in range(models)], "train")


def test_trials_are_those_of_the_environment_and_end_with_the_decision():
    task = NeuroGym(env=OWN, num_trials=40, seed=5, options='{"longest": 9, "decision": 3}')
    env = TwoChoices(longest=9, decision=3)
    env.seed(5)
    x, target, num_actions = task.trials
    assert (tuple(x.shape), tuple(target.shape), num_actions) == ((40, 13, 3), (40, 3), 3)
    lengths = set()
    for own, answers in zip(x, target, strict=True):
        env.new_trial()
        np.testing.assert_allclose(own[13 - len(env.ob) :], env.ob, atol=1e-7)
        assert not own[: 13 - len(env.ob)].any()
        assert answers.tolist() == env.gt[env.start_ind["decision"] : env.end_ind["decision"]].tolist()
        lengths.add(len(env.ob))
    assert len(lengths) > 3
    assert task.input_range == (x.min().item(), x.max().item())


def test_every_step_is_asked_for_without_a_period():
    task = NeuroGym(env=OWN, num_trials=40, period="", options='{"shortest": 4, "longest": 4}')
    target = task.trials.target
    assert target.shape == (40, task.num_steps)
    assert not target[:, :-2].any()
    assert target[:, -2:].min() == 1


def test_models_are_trained_and_tested_on_different_trials_each_with_its_own_answer():
    task = NeuroGym(env=OWN, num_trials=50)
    answer_of = {tuple(own.flatten().tolist()): right.tolist() for own, right in zip(*task.trials[:2], strict=True)}
    seen = {}
    for split in ("train", "test"):
        batch = task.sample({}, streams(), 200, split)
        shown = batch.x.transpose(1, 2).flatten(0, 1)
        for own, right in zip(shown, batch.target.transpose(1, 2).flatten(0, 1), strict=True):
            assert answer_of[tuple(own.flatten().tolist())] == right.tolist()
        seen[split] = {tuple(own.flatten().tolist()) for own in shown}
    assert (len(seen["train"]), len(seen["test"])) == (40, 10)
    assert not seen["train"] & seen["test"]


def test_the_larger_sum_is_the_right_answer_more_often_than_not():
    x, target, _ = NeuroGym(env=OWN, num_trials=500).trials
    chosen = 1 + (x[..., 2].sum(1) > x[..., 1].sum(1)).long()
    right = (chosen == target[:, 0]).float().mean()
    assert 0.6 < right < 1


def test_an_environment_of_neurogym_is_made_by_its_name(neurogym):
    task = tasks.load("NeuroGym", {"env": "GoNogo-v0", "options": '{"longest": 7}', "num_trials": 30})
    own = NeuroGym(env=OWN, options='{"longest": 7}', num_trials=30)
    assert all(torch.equal(a, b) for a, b in zip(task.trials[:2], own.trials[:2], strict=True))
    task.sample({}, streams(), 4, "train")
    assert neurogym == ["GoNogo-v0"]


def test_trials_are_kept_and_need_the_package_no_longer(neurogym, tmp_path, monkeypatch):
    fields = {"env": "GoNogo-v0", "num_trials": 31, "file": str(tmp_path / "trials.safetensors")}
    first = NeuroGym(**fields).trials
    kept = (tmp_path / "trials.safetensors").read_bytes()
    monkeypatch.setitem(sys.modules, "neurogym", None)
    # Another hash asks for the file again.
    digest = hashlib.sha256(kept).hexdigest()
    again = NeuroGym(**fields, sha256=digest).trials
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert again.num_actions == 3
    assert neurogym == ["GoNogo-v0"]
    with pytest.raises(ValueError, match="expected 00: they are others"):
        NeuroGym(**fields, sha256="00")
    with pytest.raises(ValueError, match="were drawn with `seed` 0, expected 1"):
        NeuroGym(**fields, seed=1)
    (tmp_path / "trials.safetensors").write_bytes(b"no trials")
    with pytest.raises(ValueError, match="is no file of trials"):
        NeuroGym(**fields, period="")


class Steering(TwoChoices):
    action_space = types.SimpleNamespace(shape=(2,))


class Bandit(TwoChoices):
    def new_trial(self):
        pass


class Silent(TwoChoices):
    def new_trial(self):
        super().new_trial()
        self.ob[:] = 0


class Endless(TwoChoices):
    action_space = Discrete(3)

    def new_trial(self):
        super().new_trial()
        self.end_ind["decision"] = self.start_ind["decision"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": "PerceptualDecision-v0"}, "Did you mean 'PerceptualDecisionMaking-v0'"),
        ({"env": "GoNogo-v0", "period": "decison"}, "Did you mean 'decision'"),
        ({"env": "GoNogo-v0", "options": '{"shortst": 2}'}, "cannot be made with the `options`"),
        ({"env": "GoNogo-v0", "options": "[1]"}, "must be a mapping in JSON"),
        ({"env": "GoNogo-v0", "num_trials": 4}, "`num_trials`"),
        ({"env": "GoNogo-v0", "sha256": "00"}, "is not given"),
        ({"env": "GoNogo-v0", "file": "/nowhere/trials.safetensors"}, "there is no folder /nowhere"),
        ({"env": "os:system"}, "would run code of 'os'; allow its package with `--allow_import`"),
        ({"env": "zoo_builder.tasks.two_choices:Three"}, "has no environment 'Three'"),
        ({"env": "zoo_builder.tasks.nothing:Three"}, "cannot be imported: No module named"),
        ({"env": "zoo_builder.tasks.test:Steering"}, "are no classes"),
        ({"env": "zoo_builder.tasks.test:Bandit"}, "are no `ob` with a right answer"),
        ({"env": "zoo_builder.tasks.test:Silent"}, "All inputs of"),
        ({"env": "zoo_builder.tasks.test:Endless"}, "and a period of at least one"),
    ],
)
def test_what_has_no_trials_is_refused_with_the_way_out(neurogym, monkeypatch, fields, message):
    module = types.ModuleType("zoo_builder.tasks.test")
    module.Steering, module.Silent, module.Endless, module.Bandit = Steering, Silent, Endless, Bandit
    monkeypatch.setitem(sys.modules, "zoo_builder.tasks.test", module)
    with pytest.raises(ValueError, match=message):
        NeuroGym(**fields)


def test_an_environment_of_ones_own_package_needs_the_permission_of_the_option(tmp_path, monkeypatch):
    (tmp_path / "mine_of_tasks.py").write_text("from zoo_builder.tasks.two_choices import TwoChoices as Search\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="would run code of 'mine_of_tasks'"):
        NeuroGym(env="mine_of_tasks:Search", num_trials=20)
    assert "mine_of_tasks" not in sys.modules
    monkeypatch.setattr(plugins, "_allowed", {})
    plugins.allow("mine_of_tasks")
    own, same = (NeuroGym(env=name, num_trials=20).trials for name in ("mine_of_tasks:Search", OWN))
    assert torch.equal(own.x, same.x)


def test_without_the_package_its_environments_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurogym", None)
    with pytest.raises(ValueError, match=r"not installed; `pip install 'weightspace\[neurogym\]'`"):
        NeuroGym(env="ContextDecisionMaking-v0")


def test_a_zoo_of_several_environments_says_the_range_of_all_inputs(tmp_path):
    options = [json.dumps({"strength": strength}) for strength in (0.2, 0.6)]
    recipe = {
        "title": "Two choices",
        "families": [{"class": "GRU", "hidden_size": 8}],
        "tasks": [{"class": "NeuroGym", "env": OWN, "options": options, "num_trials": 200}],
        "learning": {"class": "BPTT", "num_updates": 60, "batch_size": 16, "learning_rate": 0.02},
        "snapshots": [0, 60],
        "models_per_cohort": 4,
        "labels": ["Performance"],
        "splits": {"test": 0.25, "val": 0.25},
        "rollouts": {"sequences": 8},
    }
    build(recipe, tmp_path / "zoo", engine=run_here, method="torch")
    assert verify(tmp_path / "zoo") == []
    opened = ws.open_zoo(tmp_path / "zoo")
    record = opened.manifest["tasks"]["NeuroGym"]
    inputs = [NeuroGym(env=OWN, options=own, num_trials=200).trials.x for own in options]
    assert record["input_range"] == [0.0, max(x.max().item() for x in inputs)]
    table = opened.table.to_pandas()
    table["strength"] = [json.loads(json.loads(config)["options"])["strength"] for config in table["task_config"]]
    score = table.groupby(["strength", "step"])["score"].mean()
    assert score[0.6, 60] > 0.9
    assert score[0.6, 60] > score[0.6, 0] + 0.2
    x = opened.trajectories([0]).inputs[0]
    assert x.shape == (8, 9, 3)


RECIPE = {
    "title": "Two choices",
    "families": [{"class": "GRU", "hidden_size": 4}],
    "tasks": [{"class": "NeuroGym", "env": ["GoNogo-v0", OWN], "num_trials": 30}],
    "learning": {"class": "BPTT", "num_updates": 4, "batch_size": 4},
    "snapshots": [0, 4],
    "models_per_cohort": 3,
    "labels": ["Performance"],
}


@pytest.fixture
def small(neurogym, tmp_path, monkeypatch):
    """A zoo whose trials are of a package."""
    for module in ("build", "relabel"):
        monkeypatch.setattr(f"zoo_builder.{module}.run_shards", run_here)
    build(RECIPE, tmp_path / "small", engine=run_here, method="torch")
    return tmp_path / "small"


class Newer(TwoChoices):
    """The same environment in a version that draws other trials."""

    def seed(self, seed=None):
        super().seed(seed + 1)


def with_newer(monkeypatch):
    make = lambda name, **options: types.SimpleNamespace(unwrapped=Newer(**options))  # noqa: E731
    monkeypatch.setattr(sys.modules["neurogym"], "make", make)
    # Another version comes with another process, which has drawn nothing yet.
    trials_of.cache_clear()


def test_a_zoo_keeps_its_trials_and_is_labelled_without_the_package(small, monkeypatch):
    drawn = NeuroGym(env="GoNogo-v0", num_trials=30)
    with safetensors.safe_open(small / "tasks.safetensors", "pt") as kept:
        keys = [key for key in kept.keys() if torch.equal(kept.get_tensor(key), drawn.trials.x)]  # noqa: SIM118
        assert len(kept.keys()) == 6
    assert len(keys) == 2
    monkeypatch.setitem(sys.modules, "neurogym", None)
    trials_of.cache_clear()
    with pytest.raises(ValueError, match="is not installed"):
        NeuroGym(env="GoNogo-v0", num_trials=30)
    opened = ws.open_zoo(small)
    shown = {tuple(own.flatten().tolist()) for own in drawn.trials.x}
    seen = opened.trajectories([0]).inputs[0]
    assert {tuple(own.flatten().tolist()) for own in seen} <= shown
    before = opened.table.to_pandas()["score"]
    relabel(small, ["Performance", "Rank"])
    assert verify(small) == []
    again = ws.open_zoo(small).table.to_pandas()
    np.testing.assert_array_equal(again["score"], before)
    assert "state_effective_rank" in again


def test_a_build_goes_on_with_the_trials_that_it_began_with(neurogym, tmp_path, monkeypatch):
    build(RECIPE, tmp_path / "whole", engine=run_here, method="torch")

    def stop(job, indices, workers, report):
        run_here(job, indices[:1], workers, report)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(RECIPE, tmp_path / "begun", engine=stop, method="torch")
    with_newer(monkeypatch)
    build(RECIPE, tmp_path / "begun", engine=run_here, method="torch")
    build(RECIPE, tmp_path / "newer", engine=run_here, method="torch")
    whole, begun, newer = (ws.open_zoo(tmp_path / name).fingerprint for name in ("whole", "begun", "newer"))
    assert whole == begun != newer


def test_damaged_trials_are_seen_and_made_again_where_the_package_draws_the_same(small, monkeypatch):
    path = small / "tasks.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    (fault,) = verify(small)
    assert fault.path == "tasks.safetensors"
    assert repair(small) == []
    assert path.read_bytes() == whole
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"tasks.safetensors is damaged .*`zoo-builder verify .* --repair` makes it"):
        ws.open_zoo(small).trajectories([0])
    with_newer(monkeypatch)
    with pytest.raises(ValueError, match="cannot be made again: tasks draw other trials here"):
        repair(small)
    assert path.read_bytes() == whole[:100]


def test_two_builders_whose_packages_draw_other_trials_do_not_share_a_zoo(small, monkeypatch):
    task = NeuroGym(env="GoNogo-v0", num_trials=30)
    keep(small, [task, None])
    with_newer(monkeypatch)
    with pytest.raises(ValueError, match="has other trials than this builder draws"):
        keep(small, [NeuroGym(env="GoNogo-v0", num_trials=30)])


def test_an_export_takes_the_trials_along(small, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    opened = ws.open_zoo(hub.export(small, tmp_path / "exported"))
    assert opened.fingerprint == ws.open_zoo(small).fingerprint
    assert (opened.path / "tasks.safetensors").read_bytes() == (small / "tasks.safetensors").read_bytes()


@pytest.mark.parametrize("change", [{"x": torch.zeros(2, 3)}, {"x": torch.full((2, 3, 1), torch.nan)},
                                    {"target": torch.full((2, 1), 3)}, {"num_actions": torch.zeros(2)},
                                    {"target": torch.zeros(1, 1).long()}])  # fmt: skip
def test_tensors_that_are_no_trials_are_refused(change):
    good = {"x": torch.zeros(2, 3, 1), "target": torch.zeros(2, 1).long(), "num_actions": torch.tensor(3)}
    assert from_tensors(good, "These").num_actions == 3
    with pytest.raises(ValueError, match="These are no inputs"):
        from_tensors({**good, **change}, "These")
    good.pop("x")
    with pytest.raises(ValueError, match="These are no inputs"):
        from_tensors(good, "These")


@pytest.mark.filterwarnings("ignore:.*render_modes")
@pytest.mark.parametrize(
    "name", ["PerceptualDecisionMaking-v0", "ContextDecisionMaking-v0", "GoNogo-v0", "yang19.dm1-v0"]
)
def test_trials_of_neurogym_come_again_from_their_seed(name):
    pytest.importorskip("neurogym")
    from zoo_builder.tasks.trials import Drawing, drawn

    drawing = Drawing(env=name, options='{"dt": 100}', period="decision", num_trials=20, seed=3)
    first, again = drawn(drawing), drawn(drawing)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.target, again.target)
    other = drawn(Drawing(env=name, options='{"dt": 100}', period="decision", num_trials=20, seed=4))
    assert not torch.equal(first.x, other.x)
    assert first.target.max() < first.num_actions
    assert len(first.target.unique()) > 1
