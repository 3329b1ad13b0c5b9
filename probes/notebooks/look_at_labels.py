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
# # Look at labels before you learn from them
#
# Labels are measurements of trained networks. Before an encoder is trained on them or a probe is judged by them, it
# pays to know what they mean, where they are missing, how they are spread, and how much of them follows from what kind
# of network it is. Run `weightspace quickstart --out quickstart` first, or point `WEIGHTSPACE_QUICKSTART` at the folder
# of an earlier one; without one, the tiny zoo is built here.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_QUICKSTART", "quickstart"))
is_there = (folder / "zoo" / "zoo.json").is_file()
zoo = ws.open_zoo(folder / "zoo") if is_there else ws.build_zoo("quickstart-tiny", folder / "zoo")
table = zoo.table.to_pandas()
headlines = ["state_effective_rank", "memory_decay_rate", "score"]

# %% [markdown]
# ## What they mean
#
# `zoo.json` has the definition, unit and source of every label. Nulls are not noise: they stand where a label does not
# apply (a label of gates, for a network without any) or would not be finite.

# %%
described = pd.DataFrame(zoo.manifest["labels"]).T
described["missing"] = table[described.index].isna().mean().round(3)
described.loc[headlines, ["unit", "missing", "definition"]].style.set_properties(**{"text-align": "left"})

# %%
table.groupby(["family", "status"]).size().unstack(fill_value=0)

# %% [markdown]
# ## How they are spread
#
# At the last snapshot, by family. A label with far outliers (here the memory decay rate) rules a squared loss, so
# targets clip it; a score where most models reach the top says little about their order.

# %%
last = table[table["step"] == table["step"].max()]
figure_spread, panels = plt.subplots(1, 3, figsize=(12, 3.5))
for panel, name in zip(panels, headlines, strict=True):
    low, high = last[name].quantile([0.01, 0.99])
    for family, rows in last.groupby("family"):
        panel.hist(rows[name].clip(low, high), bins=24, histtype="step", label=family)
    panel.set(xlabel=f"{name} ({zoo.manifest['labels'][name]['unit'].split(',')[0]})")
panels[0].set(ylabel="models")
panels[-1].legend()
figure_spread.tight_layout()
plt.close(figure_spread)
figure_spread

# %% [markdown]
# ## How they change in training
#
# Median and quartiles over models. What holds of trained networks need not hold of untrained ones, which is why scores
# are probed without step 0.

# %%
figure_training, panels = plt.subplots(1, 3, figsize=(12, 3.5))
for panel, name in zip(panels, headlines, strict=True):
    for family, rows in table.groupby("family"):
        quartiles = rows.groupby("step")[name].quantile([0.25, 0.5, 0.75]).unstack()
        panel.plot(quartiles.index, quartiles[0.5], marker="o", label=family)
        panel.fill_between(quartiles.index, quartiles[0.25], quartiles[0.75], alpha=0.2)
    panel.set(xlabel="updates", ylabel=name)
panels[-1].legend()
figure_training.tight_layout()
plt.close(figure_training)
figure_training

# %% [markdown]
# ## How much the kind of network explains
#
# A *cell* holds the models of one family, size, class of task and snapshot. The share of a label's variance that lies
# between cells is what a probe gets for knowing the kind of network alone; so the headline of every table in this
# project is the R2 *within* cells. Correlations between labels, too, differ within cells from those over the whole zoo.

# %%
cells = table.groupby(["family", "family_config", "task", "step"])
trimmed = table[headlines].clip(table[headlines].quantile(0.01), table[headlines].quantile(0.99), axis=1)
means = trimmed.groupby([table[name] for name in cells.keys]).transform("mean")
between = means.var() / trimmed.var()
print(between.round(2).to_string())

figure_cells, panels = plt.subplots(1, 2, figsize=(9, 3.8))
for panel, values, title in zip(
    panels, (trimmed, trimmed - means), ("over the whole zoo", "within cells"), strict=True
):
    correlations = values.corr(method="spearman")
    panel.imshow(correlations, vmin=-1, vmax=1, cmap="RdBu_r")
    for (i, j), value in np.ndenumerate(correlations.to_numpy()):
        panel.text(j, i, f"{value:.2f}", ha="center", va="center")
    panel.set(title=f"rank correlation {title}", xticks=range(3), yticks=range(3))
    panel.set_xticklabels(headlines, rotation=20, ha="right")
    panel.set_yticklabels(headlines if panel is panels[0] else [])
figure_cells.tight_layout()
plt.close(figure_cells)
figure_cells

# %% [markdown]
# ## A label, measured again by hand
#
# Labels of the weights are functions of what the zoo stores. Where a network has a single recurrent matrix, its
# spectral radius is the largest absolute eigenvalue of `weight_hh.0`. The eigenvalues of the models whose memory fades
# slowest and fastest:

# %%
radius = "weight_hh_0_spectral_radius"
stack = next(stack for stack in zoo.stacks() if table.loc[stack.rows.numpy(), radius].notna().all())
print(stack.family)
eigenvalues = np.linalg.eigvals(stack.params["weight_hh.0"].double().numpy())
rows = table.iloc[stack.rows.numpy()]
disagreement = np.abs(np.abs(eigenvalues).max(1) - rows[radius]).max()
print(f"largest difference from the stored label: {disagreement:.0e}")

decay = rows["memory_decay_rate"].to_numpy()
order = np.argsort(decay)[: np.isfinite(decay).sum()]
figure_eigenvalues, panel = plt.subplots(figsize=(5, 4.5))
for places, label in ((order[:5], "slowest five"), (order[-5:], "fastest five")):
    chosen = eigenvalues[places].ravel()
    panel.scatter(chosen.real, chosen.imag, s=12, label=label)
circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
panel.plot(circle.real, circle.imag, color="grey", linewidth=0.5)
panel.set(aspect="equal", xlabel="real part", ylabel="imaginary part", title="eigenvalues of weight_hh")
panel.legend()
plt.close(figure_eigenvalues)
figure_eigenvalues
