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
# # Look into your own RNN
#
# A network that you trained with `torch.nn` needs no zoo to be looked into: this notebook draws its trajectories in
# state space with the fixed points that organise them, reads time constants off their spectra, measures labels, and
# finds its neighbours among networks that were trained on known tasks. Put a network of your own in the place of the
# one that is trained here in some seconds; everything after that stays the same.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_NOTEBOOKS", "notebooks"))
num_updates = int(os.environ.get("WEIGHTSPACE_UPDATES", "400"))

# %% [markdown]
# ## A network
#
# It remembers two bits (Sussillo and Barak, Neural Computation 2013): on each of two channels comes a pulse of -1 or 1
# now and then, and the output is the last pulse of each.


# %%
def flip_flop(sequences: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pulses and right answers, (sequences, steps, 2)."""
    chance = torch.Generator().manual_seed(seed)
    shape = (sequences, steps, 2)
    signs = 2.0 * torch.randint(2, shape, generator=chance) - 1
    shown = torch.rand(shape, generator=chance) < 0.1
    shown[:, 0] = True
    pulses, answers = signs * shown, signs.clone()
    for t in range(1, steps):
        answers[:, t] = torch.where(shown[:, t], signs[:, t], answers[:, t - 1])
    return pulses, answers


torch.manual_seed(0)
gru, head = nn.GRU(2, 16, batch_first=True), nn.Linear(16, 2)
optimiser = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=1e-2)
for update in range(num_updates):
    pulses, answers = flip_flop(32, 30, seed=update)
    loss = (head(gru(pulses)[0]) - answers).square().mean()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(gru.parameters(), 1.0)
    optimiser.step()
print(f"mean squared error {loss.item():.3f}, of a constant answer 1")

# %% [markdown]
# `from_torch` copies the weights: a model is a family, which knows the function and the symmetry of its weights, with
# the tensors of one network. It computes what the modules compute.

# %%
model = ws.from_torch(gru, head)
pulses, answers = flip_flop(64, 60, seed=10_000)
states, inputs, outputs = ws.trajectories(model, pulses)
largest_difference = np.abs(outputs - head(gru(pulses)[0]).detach().numpy()).max()
print(model.family)
print(f"states {states.shape}, outputs differ from those of the modules by at most {largest_difference:.0e}")

# %% [markdown]
# ## Inputs beside outputs

# %%
figure_outputs, panels = plt.subplots(2, 1, figsize=(9, 4), sharex=True)
for channel, panel in enumerate(panels):
    panel.stem(inputs[0, :, channel], linefmt="C7-", markerfmt=" ", basefmt=" ", label="input")
    panel.plot(answers[0, :, channel], color="black", linestyle=":", label="right answer")
    panel.plot(outputs[0, :, channel], color=f"C{channel}", label="output")
    panel.set(ylabel=f"channel {channel + 1}", ylim=(-1.6, 1.6))
panels[1].set(xlabel="step")
panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
plt.close(figure_outputs)
figure_outputs

# %% [markdown]
# ## State space, and the points that organise it
#
# Fixed points are states in which the network stays when its input is silent, h = F(h, 0), found by Newton steps from
# many states at once. Small deviations from a stable one shrink: these are memories. From the others they grow in some
# direction: these lie between memories, and so the search starts from states halfway between two that the network
# visits, too. Trajectories and points are drawn along the first two principal components of the states.

# %%
flat = states.reshape(-1, states.shape[-1])
visited = flat[:: len(flat) // 60]
halfway = (visited + np.random.default_rng(0).permutation(visited)) / 2
found = ws.fixed_points(model, starts=np.concatenate([visited, halfway]))
mean = flat.mean(0)
_, sizes, axes = np.linalg.svd(flat - mean, full_matrices=False)
share = (sizes**2 / (sizes**2).sum())[:2]


def projected(points: np.ndarray) -> np.ndarray:
    """States (..., state) along the first two principal components (2, ...)."""
    return np.moveaxis((points - mean) @ axes[:2].T, -1, 0)


figure_states, panel = plt.subplots(figsize=(6, 5))
for trajectory in states[:24]:
    panel.plot(*projected(trajectory), color="grey", linewidth=0.5, alpha=0.5)
panel.scatter(*projected(found.points[found.stable]), s=80, color="C0", zorder=3, label="stable")
panel.scatter(*projected(found.points[~found.stable]), s=80, color="C3", marker="x", zorder=3, label="not stable")
panel.set(xlabel=f"first component ({share[0]:.0%})", ylabel=f"second component ({share[1]:.0%})")
panel.legend()
plt.close(figure_states)
print(f"{len(found.points)} fixed points, {found.stable.sum()} of them stable; two bits need four memories")
figure_states

# %% [markdown]
# Each stable point is a memory: the read-out, put on the points, says which one.

# %%
with torch.no_grad():
    remembered = head(torch.from_numpy(found.points[found.stable]).float()).numpy()
remembered.round(1)

# %% [markdown]
# ## Spectra and time constants
#
# Near a fixed point a deviation along an eigenvector of the Jacobian dF/dh is multiplied by its eigenvalue at every
# step: below 1 in absolute value it fades, with a time constant of -1 / ln |eigenvalue| steps.

# %%
figure_spectra, panels = plt.subplots(1, 2, figsize=(10, 4.2))
circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
panels[0].plot(circle.real, circle.imag, color="grey", linewidth=0.5)
for stable, colour, marker, label in ((True, "C0", "o", "stable"), (False, "C3", "x", "not stable")):
    values = found.eigenvalues[found.stable == stable].ravel()
    panels[0].scatter(values.real, values.imag, s=14, color=colour, marker=marker, label=label)
panels[0].set(aspect="equal", xlabel="real part", ylabel="imaginary part", title="eigenvalues at the fixed points")
panels[0].legend()
time_constants = -1 / np.log(np.abs(found.eigenvalues[found.stable]))
for own in np.sort(time_constants, axis=1)[:, ::-1]:
    panels[1].semilogy(range(1, len(own) + 1), own, marker="o", markersize=3)
panels[1].set(xlabel="mode, slowest first", ylabel="steps", title="time constants at each memory")
figure_spectra.tight_layout()
plt.close(figure_spectra)
figure_spectra

# %% [markdown]
# ## Labels
#
# Labels of zoos can be measured on your own models, driven by your inputs: `zoo-builder list labels` says
# what there is, and `zoo-builder list labels Rank` what its columns mean.

# %%
measured = ws.measure(model, ["Rank", "Dynamics", "Memory", "FixedPoints"], inputs=pulses).T
measured

# %% [markdown]
# ## Neighbours in a reference zoo
#
# A small zoo of GRUs of the same size, trained on this task and two others, takes some seconds. The encoder that comes
# with the package reads the weights of all of them, whatever the order of their units; near embeddings mean weights
# that it reads alike. It was trained without labels, so that nothing made it tell tasks apart: whether the neighbours
# learned the same task is for you to judge.

# %%
zoo = ws.build_zoo(
    {
        "title": "Networks to compare with",
        "families": [{"class": "GRU", "hidden_size": 16}],
        "tasks": [
            {"class": "FlipFlop", "num_bits": 2},
            {"class": "DelayedRecall", "num_steps": 20, "delay": {"integers": [1, 8]}},
            {"class": "ContextDecision"},
        ],
        "learning": {"class": "BPTT", "num_updates": 150, "batch_size": 16, "learning_rate": 1.0e-2},
        "snapshots": [0, 150],
        "models_per_cohort": 16,
        "shard_size": 16,
        "labels": ["Performance", "FixedPoints"],
        "splits": {"test": 0.2, "val": 0.1},
    },
    folder / "reference",
)
trained = zoo.filter(step=150)
embeddings, own = ws.embed(trained), ws.embed(model)
table = trained.table.select(["model_id", "task", "score", "num_fixed_points"]).to_pandas()
table["distance"] = (embeddings - own).norm(dim=1).numpy()
neighbours = table.sort_values("distance").head(8)
neighbours

# %%
centred = torch.cat([embeddings, own[None]]) - embeddings.mean(0)
_, _, directions = torch.linalg.svd(centred[:-1], full_matrices=False)
places = (centred @ directions[:2].T).numpy()
figure_map, panel = plt.subplots(figsize=(6, 5))
for task, rows in table.groupby("task"):
    panel.scatter(*places[rows.index].T, s=16, label=task)
panel.scatter(*places[-1], marker="*", s=200, color="black", label="yours")
panel.set(xlabel="first component", ylabel="second component", title="embeddings")
panel.legend()
plt.close(figure_map)
figure_map

# %% [markdown]
# ## Further
#
# `model.family.as_rnn(model.params)` is an `nn.Module` with the signature of `nn.GRU`, for tools that take one: finders
# of fixed points, or more training. `zoo.trajectories(rows)` has the states of models of a zoo as arrays (trials, time,
# channels), which `dsa-metric` compares: `DSA(zoo.trajectories(rows).states).fit_score()`. A folder of your networks
# becomes a zoo by `zoo-builder import --state_dicts FOLDER --out ZOO`.

# %%
rnn = model.family.as_rnn(model.params)
stays = rnn.cell(torch.zeros(len(found.points), 2), torch.from_numpy(found.points).float())
largest_step = (stays - torch.from_numpy(found.points)).abs().max().item()
print(f"one step from the fixed points moves a unit by at most {largest_step:.0e}")
