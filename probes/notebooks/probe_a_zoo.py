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
# # What can be read from the weights?
#
# This notebook opens a zoo of recurrent networks, looks at what was measured of them, and probes frozen embeddings
# beside the baselines that every claim must beat. Run `weightspace quickstart --out quickstart` first, or point
# `WEIGHTSPACE_QUICKSTART` at the folder of an earlier one.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from probes.evaluation import evaluate
from probes.feature_sets import baselines, read_embeddings
from probes.report import choose_targets
from weightspace.store import divide, open_zoo

folder = Path(os.environ.get("WEIGHTSPACE_QUICKSTART", "quickstart"))
zoo = open_zoo(folder / "zoo")

# %% [markdown]
# ## The zoo
#
# `models.parquet` has one row per model and snapshot: what it is, how it was trained, and its labels. A label's
# definition, unit and source stand in `zoo.json`.

# %%
table = zoo.table.to_pandas()
table.groupby(["family", "task", "step"])[["score", "state_effective_rank", "memory_decay_rate"]].mean().round(3)

# %%
for name in ("state_effective_rank", "memory_decay_rate", "score"):
    print(f"{name}: {zoo.manifest['labels'][name]['definition']}")

# %% [markdown]
# ## Features
#
# Embeddings come from `weightspace embed`. Beside them stand the record of each model (family, sizes, task, step,
# hyper-parameters), statistics of its weights, and their spectra. In a mixed zoo the record alone explains much of any
# label, so the headline is the R2 *within cells*: what is left after the training mean of family x size x task x step.

# %%
files = sorted(folder.glob("embeddings*.safetensors"))
feature_sets = [*read_embeddings(files, zoo), *baselines(zoo)]
in_distribution = divide(zoo.table, "in_distribution")
{features.name: features.on(in_distribution).values.shape for features in feature_sets}

# %% [markdown]
# ## Probes
#
# Ridge regression with its penalty chosen by cross-validation over training models; intervals by bootstrap over test
# models; `shuffled` is the same probe on permuted labels, and its interval must contain 0.

# %%
targets = [target for target in choose_targets(zoo, ()) if target.kind == "regression"]
rows = evaluate(zoo.table, feature_sets, targets, splits=["in_distribution"]).rows
headline = [row for row in rows if row["metric"] == "r2_within_cell" and " - " not in row["features"]]
for row in sorted(headline, key=lambda row: (row["target"], row["features"])):
    print(f"{row['target']:24s} {row['features']:24s} {row['probe']:18s} "
          f"{row['value']:6.2f}  [{row['low']:.2f}, {row['high']:.2f}]")  # fmt: skip

# %% [markdown]
# ## A look at the embedding
#
# The first two principal components, coloured by one label.

# %%
embedding = feature_sets[0].on(in_distribution).values
embedding = embedding - embedding.mean(0)
_, _, axes = np.linalg.svd(embedding, full_matrices=False)
points = embedding @ axes[:2].T
figure, panel = plt.subplots(figsize=(6, 5))
dots = panel.scatter(*points.T, c=table["state_effective_rank"], s=6)
figure.colorbar(dots, label="state_effective_rank")
panel.set(xlabel="first component", ylabel="second component", title=feature_sets[0].name)
plt.close(figure)
figure
