"""The recipe that mixes every family: it names them all, they train, and one encoder reads them in one batch."""

import json
from collections import Counter

import pytest
import torch
import yaml

from weightspace import families, recipes
from weightspace.encoders.message_passing import MessagePassing
from weightspace.store import Stack, open_zoo
from zoo_builder.build import build
from zoo_builder.cli import main
from zoo_builder.planning.plan import make_plan
from zoo_builder.planning.recipe import learning_entries, read_recipe
from zoo_builder.workers import in_process

RECIPE = recipes.recipe("zoo/mixed-families.yaml")


def test_the_recipe_names_every_family():
    named = {entry["class"] for entry in yaml.safe_load(RECIPE.read_text())["families"]}
    assert named == set(families.available()), "add the families that are missing to configs/zoo/mixed-families.yaml"


@pytest.mark.parametrize(("name", "num_tasks", "snapshots"), [("all-families", 8, 4), ("dynamics", 4, 1)])
def test_the_large_recipes_have_every_family_at_three_sizes_and_thousands_of_models(name, num_tasks, snapshots):
    recipe = read_recipe(recipes.named(name, "zoo"))
    plan = make_plan(recipe)
    sizes = {(type(cohort.family).__name__, cohort.family.hidden_size) for cohort in plan.cohorts}
    assert Counter(family for family, _ in sizes) == dict.fromkeys(families.available(), 3)
    assert len({size for _, size in sizes}) == 3
    assert {cohort.split_size for cohort in plan.cohorts} == {"in", "out"}
    tasks = Counter(type(cohort.task).__name__ for cohort in plan.cohorts)
    assert len(tasks) == num_tasks
    # Tasks have the same number of models, up to one cohort, and the sizes of a family share them out.
    assert max(tasks.values()) - min(tasks.values()) <= len(learning_entries(recipe))
    met = {(type(cohort.family).__name__, type(cohort.task).__name__) for cohort in plan.cohorts}
    turns = min(num_tasks, 3 * recipe["tasks_per_family"])
    assert Counter(family for family, _ in met) == dict.fromkeys(families.available(), turns)
    assert plan.num_models >= 4000
    assert len(plan.snapshots) == snapshots


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The zoo of the recipe with few updates of few models, one of each family."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["families"] = [
        {name: value[0] if isinstance(value, list) else value for name, value in entry.items()}
        for entry in recipe["families"]
    ]
    recipe |= {"snapshots": [0, 2], "models_per_cohort": 2, "shard_size": 2}
    recipe |= {"labels": [], "splits": {"test": 0, "val": 0}}
    recipe["learning"] |= {"num_updates": 2, "batch_size": 2}
    out = tmp_path_factory.mktemp("mixed") / "zoo"
    build(recipe, out, engine=in_process.run_shards, method="torch")
    return open_zoo(out)


def test_every_family_trains_in_one_recipe(zoo):
    assert set(zoo.table["status"].to_pylist()) == {"ok", "untrained"}
    steps = torch.tensor(zoo.table["step"].to_pylist())
    for name in families.available():
        rows = [row for row, family in enumerate(zoo.table["family"].to_pylist()) if family == name]
        first, last = (zoo.stack([row for row in rows if steps[row] == step]) for step in (0, 2))
        moved = {key for key in first.params if not torch.equal(first.params[key], last.params[key])}
        learnable = first.family.spec.trained
        assert moved == set(learnable), f"{name}: {json.dumps(sorted(moved ^ set(learnable)))}"


def used(stack, tensor):
    """Where the entries of a stored tensor act: not on a diagonal that is cut out, nor under a mask."""
    _, effective = stack.effective
    total = sum((value * torch.rand_like(value)).sum() for value in effective.values())
    (gradient,) = torch.autograd.grad(total, tensor)
    return gradient != 0


def test_one_mixed_batch_goes_through_one_encoder_and_gradients_reach_every_trained_entry(zoo):
    steps = zoo.table["step"].to_pylist()
    stored = list(zoo.stacks([row for row, step in enumerate(steps) if step == 2], 2))
    assert {type(stack.family).__name__ for stack in stored} == set(families.available())
    stacks = []
    for stack in stored:
        # Away from bounds and zeros, where no gradient need pass.
        drawn = stack.family.spec.random_params(torch.Generator().manual_seed(0), torch.float64)
        params = {name: (value.double() + 0.1 * drawn[name]) for name, value in stack.params.items()}
        fixed = {name: stack.params[name].double() for name in params if name not in stack.family.spec.trained}
        stacks.append(Stack(stack.family, params | fixed, stack.rows))
    torch.manual_seed(0)
    # Edge states are cut at 0: of few channels all may be silent for an entry.
    encoder = MessagePassing(embedding_dim=16, edge_dim=24, node_dim=16).double().eval()
    encoder.fit_standardisation(iter(stacks))
    leaves = []
    for stack in stacks:
        trained = {name: stack.params[name].requires_grad_() for name in stack.family.spec.trained}
        leaves += [(stack, name, tensor) for name, tensor in trained.items()]
    embedding = encoder(stacks)
    assert embedding.shape == (sum(len(stack.rows) for stack in stacks), 16)
    gradients = torch.autograd.grad(embedding.square().sum(), [tensor for *_, tensor in leaves], allow_unused=True)
    for (stack, name, tensor), gradient in zip(leaves, gradients, strict=True):
        where = f"{name} of {stack.family}"
        assert gradient is not None, where
        assert gradient.isfinite().all(), where
        assert ((gradient != 0) == used(stack, tensor)).all(), where


@pytest.mark.slow
def test_the_recipe_builds_whole(tmp_path):
    assert main(["build", "--config", str(RECIPE), "--out", str(tmp_path / "zoo")]) == 0
    statuses = open_zoo(tmp_path / "zoo").table["status"].to_pylist()
    assert len(statuses) > 2 * len(families.available())
    assert set(statuses) <= {"ok", "untrained"}
