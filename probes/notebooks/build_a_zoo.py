# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Build a zoo
#
# A zoo is thousands of recurrent networks, trained side by side and measured one by one. This notebook writes a recipe,
# looks at the plan that follows from it, builds the zoo, and reads it back. It takes some seconds; the zoo is left in
# `WEIGHTSPACE_NOTEBOOKS` (`notebooks` unless set). The same from a terminal: `zoo-builder build --config recipe.yaml
# --out zoo`.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_NOTEBOOKS", "notebooks"))
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## A recipe
#
# A recipe names families, tasks, how to learn, and what to measure. Lists are crossed: every family configuration meets
# every task, and each pair is a *cohort*. What is spread (`uniform`, `log_uniform`, `integers`, `choice`) each model
# draws for itself. `zoo-builder list families` (or tasks, labels, learners) says what there is.

# %%
recipe = {
    "title": "Who remembers how long?",
    "families": [
        {"class": "Elman", "hidden_size": 8, "nonlinearity": ["tanh", "relu"]},
        {"class": "GRU", "hidden_size": 8},
    ],
    "tasks": [{"class": "DelayedRecall", "num_steps": 12, "delay": {"integers": [1, 6]}}],
    "learning": {
        "class": "BPTT",
        "num_updates": 100,
        "batch_size": 16,
        "learning_rate": {"log_uniform": [5.0e-3, 5.0e-2]},
    },
    "snapshots": [0, 20, 50, 100],
    "models_per_cohort": 32,
    "shard_size": 32,
    "labels": ["Performance", "Memory"],
    "splits": {"test": 0.2, "val": 0.1},
}

# %% [markdown]
# ## The plan
#
# The plan is a pure function of the recipe: which models there are, what they are called, what they draw, and which
# split they belong to. A model's draws are keyed by its name, so another family in the recipe changes nothing here.

# %%
# JSON is YAML.
(folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
command = [sys.executable, "-m", "zoo_builder", "build", "--dry_run", "--config", str(folder / "recipe.yaml")]
planned = subprocess.run([*command, "--out", str(folder / "zoo")], capture_output=True, text=True, check=True)
print(planned.stdout)

# %% [markdown]
# ## Building
#
# All models of a shard learn as one computation. A build that is stopped goes on where it was; one that is finished is
# found finished, as when this cell runs again. The same recipe gives the same bytes, and `zoo-builder verify` reads
# every one of them.

# %%
zoo = ws.build_zoo(recipe, folder / "zoo")
print(f"{zoo}, fingerprint {zoo.fingerprint[:12]}")

# %% [markdown]
# ## What was learned
#
# `models.parquet` has one row per model and snapshot. The longer the delay, the harder the task.

# %%
table = zoo.table.to_pandas()
table["delay"] = [json.loads(config)["delay"] for config in table["task_config"]]
nonlinearity = [json.loads(config).get("nonlinearity", "") for config in table["family_config"]]
table["network"] = table["family"].str.cat(nonlinearity, sep=" ").str.strip()

figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
last = table[table["step"] == table["step"].max()]
for network, rows in table.groupby("network"):
    panels[0].plot(rows.groupby("step")["score"].mean(), marker="o", label=network)
    own = last[last["network"] == network]
    panels[1].plot(own.groupby("delay")["score"].mean(), marker="o", label=network)
panels[0].set(xlabel="updates", ylabel="mean score")
panels[1].set(xlabel="delay in steps, after the last update")
panels[1].axhline(0.5, color="grey", linestyle=":", label="guessing")
panels[1].legend()
plt.close(figure)
figure

# %% [markdown]
# ## The weights
#
# Weights come as stacks, one family at one size, with a leading axis for the models. The family knows the function they
# compute, and the symmetry of its weight space: here every model's hidden units are permuted and their signs flipped,
# and the outputs stay what they were.

# %%
*_, stack = zoo.stacks()
print(stack.family)
print({name: tuple(tensor.shape) for name, tensor in stack.params.items()})

params = {name: tensor.double() for name, tensor in stack.params.items()}
elements = stack.family.spec.random_elements(len(stack), torch.Generator().manual_seed(0), torch.float64)
moved = stack.family.spec.act_stacked(elements, params)
x = torch.randn(len(stack), 12, 4, stack.family.input_size, generator=torch.Generator().manual_seed(1)).double()
before, after = (ws.rollout(stack.family, weights, x).outputs for weights in (params, moved))
largest_change = (after - before).abs().max().item()
print(f"weights moved by up to {(moved['weight_hh.0'] - params['weight_hh.0']).abs().max():.2f}, "
      f"outputs by {largest_change:.0e}")  # fmt: skip
