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
# `WEIGHTSPACE_QUICKSTART` at the folder of an earlier one; without one, the tiny quickstart is run here, a smoke test
# whose figures say nothing about the methods.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_QUICKSTART", "quickstart"))


def run(*command: str) -> None:
    """Run a command of the package, and show what it says."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="")


if not (folder / "embeddings.safetensors").is_file():
    run("weightspace", "quickstart", "--size", "tiny", "--out", str(folder))
zoo = ws.open_zoo(folder / "zoo")

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
{file.name: load_file(file)["embedding"].shape for file in files}

# %% [markdown]
# ## Probes
#
# Ridge regression with its penalty chosen by cross-validation over training models (and gradient boosting, left out
# here); intervals by bootstrap over test models; `shuffled` is the same probe on permuted labels, and its interval must
# contain 0. The quickstart has run these probes; for a zoo and embeddings of your own, `probes run` does.

# %%
if not (folder / "probes" / "probes.json").is_file():
    run("probes", "run", "--zoo", str(zoo.path), "--embeddings", *map(str, files), "--out", str(folder / "probes"))
rows = pd.DataFrame(json.loads((folder / "probes" / "probes.json").read_text())["rows"])
is_headline = (rows["split"] == "in_distribution") & (rows["metric"] == "r2_within_cell")
is_headline &= (rows["probe"] == "ridge") & ~rows["features"].str.contains(r" [-+] ")
headline = rows[is_headline].sort_values(["target", "features"])
for row in headline.itertuples():
    print(f"{row.target:24s} {row.features:24s} {row.value:6.2f}  [{row.low:.2f}, {row.high:.2f}]")

# %% [markdown]
# ## A look at the embedding
#
# The first two principal components, coloured by one label.

# %%
embedding = load_file(files[0])["embedding"]
embedding = embedding - embedding.mean(0)
_, _, axes = np.linalg.svd(embedding, full_matrices=False)
points = embedding @ axes[:2].T
figure, panel = plt.subplots(figsize=(6, 5))
dots = panel.scatter(*points.T, c=table["state_effective_rank"], s=6)
figure.colorbar(dots, label="state_effective_rank")
panel.set(xlabel="first component", ylabel="second component", title=files[0].stem)
plt.close(figure)
figure
