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
# # Are networks with near embeddings alike in their dynamics?
#
# An embedding is read from weights alone. Dynamical similarity analysis (DSA; Ostrow, Eisen, Kozachkov and Fiete,
# NeurIPS 2023) is read from activity alone: it fits linear dynamics to the delay-embedded states of each network, and
# asks how far two of them are from each other up to an orthogonal change of coordinates. This notebook takes 30 trained
# networks, has both distances between all pairs, and asks whether they order the pairs alike.

# %%
import importlib.util
import logging
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_NOTEBOOKS", "notebooks"))
num_models = int(os.environ.get("WEIGHTSPACE_MODELS", "10"))

# %% [markdown]
# ## Thirty networks
#
# Ten GRUs on each of three tasks, all of one size, which learn in some seconds. Learning rates and initial weights
# differ, so that networks of one task are not all alike.

# %%
zoo = ws.build_zoo(
    {
        "title": "Networks whose dynamics are compared",
        "families": [{"class": "GRU", "hidden_size": 16}],
        "tasks": [{"class": "FlipFlop", "num_bits": 2}, {"class": "DelayedRecall", "delay": 4}, {"class": "NParity"}],
        "learning": {
            "class": "BPTT",
            "num_updates": 200,
            "batch_size": 16,
            "learning_rate": {"log_uniform": [2.0e-3, 2.0e-2]},
            "init_scale": {"uniform": [0.5, 1.5]},
        },
        "snapshots": [200],
        "models_per_cohort": num_models,
        "labels": ["Performance"],
        "rollouts": {"sequences": 16},
        "splits": {"test": 0.2, "val": 0.1},
    },
    folder / "dynamics",
)
table = zoo.table.select(["model_id", "task", "score"]).to_pandas()
tasks = table["task"].to_numpy()
table.groupby("task")["score"].describe()[["count", "min", "mean", "max"]]

# %% [markdown]
# ## Distance of dynamics
#
# `zoo.trajectories` runs each network on sequences of its task: states as arrays (trials, time, channels), which
# `dsa-metric` takes as they are.
#
# Below stands the distance from its definition, for all pairs at once. Delay-embedded states are the rows of a matrix
# H; V are its first left singular vectors, the trajectory in coordinates of equal size; A is the matrix of least
# squares that takes V one step on. The distance of two networks is the smallest angle between A1 and C A2 C^T over
# orthogonal matrices C, found by gradient steps from several starts, half of them with a reflection.

# %%
DELAYS, RANK = 2, 10


def linear_dynamics(states: np.ndarray) -> np.ndarray:
    """Matrix (rank, rank) that takes delay-embedded states (trials, time, channels) one step on."""
    steps = states.shape[1] - DELAYS + 1
    embedded = np.concatenate([states[:, lag : lag + steps] for lag in range(DELAYS)], axis=-1).astype(np.float64)
    left, _, _ = np.linalg.svd(embedded.reshape(-1, embedded.shape[-1]), full_matrices=False)
    v = left[:, :RANK].reshape(*embedded.shape[:2], RANK)
    now, later = v[:, :-1].reshape(-1, RANK), v[:, 1:].reshape(-1, RANK)
    return np.linalg.lstsq(now, later, rcond=None)[0].T


def smallest_angles(matrices: np.ndarray, starts: int = 4, updates: int = 300) -> np.ndarray:
    """Angles (models, models) between matrices (models, rank, rank), the smallest over orthogonal coordinates."""
    first, second = np.triu_indices(len(matrices), 1)
    a = torch.from_numpy(matrices / np.linalg.norm(matrices, axis=(1, 2), keepdims=True))
    a1, a2 = a[first], a[second]
    chance = torch.Generator().manual_seed(0)
    cosine = torch.full((len(first),), -1.0, dtype=torch.float64)
    for start in range(starts):
        generators = 0.5 * torch.randn(len(first), RANK, RANK, generator=chance, dtype=torch.float64)
        generators.requires_grad_()
        reflection = torch.ones(RANK, dtype=torch.float64)
        reflection[0] = (-1) ** start
        optimiser = torch.optim.Adam([generators], lr=0.05)
        for _ in range(updates):
            c = torch.matrix_exp(generators - generators.mT) * reflection
            alike = (a1 * (c @ a2 @ c.mT)).sum((1, 2))
            optimiser.zero_grad()
            (-alike.sum()).backward()
            optimiser.step()
            cosine = torch.maximum(cosine, alike.detach())
    angles = np.zeros((len(matrices), len(matrices)))
    angles[first, second] = angles[second, first] = torch.arccos(cosine.clamp(-1, 1)).numpy()
    return angles


states = zoo.trajectories(range(len(zoo))).states
print(f"{len(states)} networks, states {states[0].shape} of the first one")
by_definition = smallest_angles(np.stack([linear_dynamics(own) for own in states]))
pairs = np.triu_indices(len(states), 1)
print(f"angles from {by_definition[pairs].min():.2f} to {by_definition[pairs].max():.2f}")

# %% [markdown]
# The authors' package (`pip install dsa-metric`) fits the same matrices. Unless it is asked for angles, it compares
# their eigenvalues, by a Wasserstein distance: these do not depend on C, so that there is nothing to search. Where the
# package is installed, its distances are those that are compared below.

# %%
has_package = importlib.util.find_spec("DSA") is not None
if has_package:
    from DSA import DSA

    logging.disable(logging.WARNING)
    of_dynamics = DSA([own.astype(np.float64) for own in states], n_delays=DELAYS, rank=RANK).fit_score()
    logging.disable(logging.NOTSET)
    agreement = spearmanr(of_dynamics[pairs], by_definition[pairs]).statistic
    print(f"distances of dsa-metric; the angles from the definition have rank correlation {agreement:.2f} with them")
else:
    of_dynamics, agreement = by_definition, None
    print("dsa-metric is not installed: the distances are those from the definition")

# %% [markdown]
# ## Distance of embeddings
#
# The encoder that comes with the package reads the weights; it was trained without labels, on other networks. Neither
# distance may depend on the order of a network's units: a copy whose units stand in another order is at distance 0 by
# its embedding, and at an angle of 0 but for what the search of C leaves.

# %%
embeddings = ws.embed(zoo).double()
of_embeddings = torch.cdist(embeddings, embeddings).numpy()
stack = next(zoo[[0]].stacks())
chance = torch.Generator().manual_seed(0)
params = {name: tensor[0] for name, tensor in stack.params.items()}
element = stack.family.spec.random_element(chance, torch.float32)
element.gauges.update({name: torch.ones_like(signs) for name, signs in element.gauges.items()})
moved = stack.family.spec.act(element, params)
inputs = zoo.trajectories([0]).inputs[0]
both = [ws.trajectories((stack.family, own), inputs).states for own in (params, moved)]
copy_of_dynamics = smallest_angles(np.stack([linear_dynamics(own) for own in both]))[0, 1]
copy_of_embeddings = (ws.embed((stack.family, moved)) - embeddings[0]).norm().item()
print(f"a copy in another order: angle {copy_of_dynamics:.3f}, distance of embeddings {copy_of_embeddings:.1e}")

# %%
order = np.argsort(tasks, kind="stable")
figure_matrices, panels = plt.subplots(1, 2, figsize=(10, 4.4))
for panel, distances, title in zip(
    panels, (of_dynamics, of_embeddings), ("dynamics: distance (DSA)", "weights: distance of embeddings"), strict=True
):
    figure_matrices.colorbar(panel.imshow(distances[np.ix_(order, order)]), ax=panel)
    middles = [np.flatnonzero(tasks[order] == task).mean() for task in sorted(set(tasks))]
    panel.set_xticks(middles, sorted(set(tasks)))
    panel.set_yticks(middles, sorted(set(tasks)), rotation=90, va="center")
    panel.set(title=title)
figure_matrices.tight_layout()
plt.close(figure_matrices)
figure_matrices

# %% [markdown]
# ## Do they order pairs alike?
#
# The rank correlation of the two distances over pairs, with a 95% interval from drawing the networks anew (not the
# pairs, which share networks): over all pairs, and over pairs that learned the same task. Between tasks much may differ
# that has nothing to do with dynamics, such as the number of inputs; within a task nothing but the solution differs.


# %%
def correlation(chosen: np.ndarray, same_task: bool) -> float:
    """Rank correlation of both distances over pairs of the chosen networks, of equal ones none."""
    first, second = (chosen[side] for side in np.triu_indices(len(chosen), 1))
    kept = (first != second) & ((tasks[first] == tasks[second]) | (not same_task))
    if not same_task:
        return spearmanr(of_dynamics[first, second][kept], of_embeddings[first, second][kept]).statistic
    # Within each task apart, so that tasks whose networks all lie far from each other do not make an order.
    values = []
    for task in sorted(set(tasks)):
        own = kept & (tasks[first] == task)
        if own.sum() > 3:
            values.append(spearmanr(of_dynamics[first, second][own], of_embeddings[first, second][own]).statistic)
    return float(np.mean(values))


draw = np.random.default_rng(0)
results = {}
for name, same_task in (("all pairs", False), ("pairs of one task", True)):
    everyone = np.arange(len(tasks))
    value = correlation(everyone, same_task)
    again = [correlation(draw.choice(everyone, len(everyone)), same_task) for _ in range(500)]
    low, high = np.nanquantile(again, [0.025, 0.975])
    results[name] = {"rank correlation": value, "low": low, "high": high}
    print(f"{name}: rank correlation {value:.2f} [{low:.2f}, {high:.2f}]")

# %%
figure_pairs, panel = plt.subplots(figsize=(6, 4.4))
first, second = pairs
for task in sorted(set(tasks)):
    own = (tasks[first] == task) & (tasks[second] == task)
    panel.scatter(of_embeddings[pairs][own], of_dynamics[pairs][own], s=14, label=f"both {task}")
other = tasks[first] != tasks[second]
x, y = of_embeddings[pairs][other], of_dynamics[pairs][other]
panel.scatter(x, y, s=6, color="lightgrey", zorder=0, label="two tasks")
panel.set(xlabel="distance of embeddings", ylabel="distance of dynamics (DSA)")
panel.legend(fontsize="small")
plt.close(figure_pairs)
figure_pairs

# %% [markdown]
# ## Further
#
# `look_into_your_rnn` has trajectories and neighbours of a network of your own, `train_an_encoder` an encoder that is
# trained on a zoo, to be put in the place of the packaged one: `ws.embed(zoo, "run")`.

# %%
pd.DataFrame(results).T.round(2)
