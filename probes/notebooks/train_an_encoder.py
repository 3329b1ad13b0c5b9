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
# # Train an encoder
#
# An encoder reads all weights of a network and gives one vector, its embedding. This notebook trains one on the labels
# of a zoo, looks at its symmetry, and at what it makes of models it has not seen. Run `weightspace quickstart --out
# quickstart` first, or point `WEIGHTSPACE_QUICKSTART` at the folder of an earlier one; without one, the tiny zoo is
# built here.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import weightspace as ws

folder = Path(os.environ.get("WEIGHTSPACE_QUICKSTART", "quickstart"))
epochs = os.environ.get("WEIGHTSPACE_EPOCHS", "8")
run_folder = Path(tempfile.mkdtemp(prefix="run-"))
is_there = (folder / "zoo" / "zoo.json").is_file()
zoo = ws.open_zoo(folder / "zoo") if is_there else ws.build_zoo("quickstart-tiny", folder / "zoo")

# %% [markdown]
# ## Training
#
# A recipe names the encoder, the objective and the data; options go before it. `supervised-tiny` is `MessagePassing` on
# the graph of a network, and `Supervised`, which predicts each label, and what is left of it within cells, by a linear
# head: what it learns is linearly readable. `GroupMoves` flips signs and rescales units in training stacks by draws
# from the declared symmetry: other weights, the same functions. Which rows are for training, validation and test is
# said by the zoo, and the best epoch on validation rows is kept.

# %%
options = ["--trainer.max_epochs", epochs, "--trainer.default_root_dir", str(run_folder)]
options += ["--trainer.enable_progress_bar", "false"]
command = [sys.executable, "-m", "weightspace", "fit", "--config", "supervised-tiny", "--data.zoo", str(zoo.path)]
subprocess.run([*command, *options], check=True)
print(sorted(path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*.*")))

# %%
metrics = pd.read_csv(run_folder / "metrics.csv").groupby("epoch").first()
figure_losses, panel = plt.subplots(figsize=(5, 3.5))
for part in ("train", "val"):
    panel.plot(metrics.index, metrics[f"{part}/loss"], marker="o", label=part)
panel.set(xlabel="epoch", ylabel="loss")
panel.legend()
plt.close(figure_losses)
figure_losses

# %% [markdown]
# ## The encoder
#
# An encoder states its symmetry. Hidden units can be permuted without any effect; permuting rows of the recurrent
# matrix alone, which makes another network, moves the embedding.

# %%
encoder = ws.load_encoder(run_folder)
print(f"{sum(p.numel() for p in encoder.parameters())} parameters, invariant to {set(encoder.symmetry)}")

stack = next(iter(zoo[:16].stacks()))
spec = stack.family.spec
element = spec.random_elements(len(stack), torch.Generator().manual_seed(0))
element.gauges.update({name: torch.ones_like(signs) for name, signs in element.gauges.items()})
(recurrent, *_) = spec.recurrent()
moves = {
    "all hidden units": spec.act_stacked(element, stack.params),
    "rows of weight_hh alone": {**stack.params, recurrent: stack.params[recurrent].roll(1, dims=-2)},
}
before = ws.embed(stack, encoder)
change = {}
for what, params in moves.items():
    after = ws.embed((stack.family, params), encoder)
    change[what] = ((after - before).abs().max() / before.std()).item()
    print(f"permuting {what} changes embeddings by {change[what]:.0e} of their spread")

# %% [markdown]
# ## What it makes of models it has not seen
#
# Predictions on test rows against the labels. Colours are families: where clouds line up from family to family but not
# within one, the encoder has recognised the kind of network and not more.

# %%
test = zoo.filter(split="test", step=lambda step: step > 0)
predicted = ws.predict(test, run_folder)
table = test.table.to_pandas()

num = len(predicted.columns)
figure_test, (panels,) = plt.subplots(1, num, figsize=(4 * num, 3.8), squeeze=False)
correlation = {}
for panel, name in zip(panels, predicted.columns, strict=True):
    rows = table.assign(predicted=predicted[name].to_numpy()).dropna(subset=[name])
    for family, own in rows.groupby("family"):
        panel.scatter(own[name], own["predicted"], s=6, label=family)
    correlation[name] = rows[name].corr(rows["predicted"], method="spearman")
    panel.set(xlabel=name, ylabel="predicted", title=f"rank correlation {correlation[name]:.2f}")
panels[0].legend()
figure_test.tight_layout()
plt.close(figure_test)
figure_test

# %% [markdown]
# ## Frozen embeddings
#
# Embeddings of every row of the zoo, in the order of its table; `weightspace embed --checkpoint
# RUN/checkpoints/best.ckpt --zoo ZOO --out FILE` writes them into a file. Whether they hold more than plain statistics
# of the weights, the record of the training, or chance: that is what `probe_a_zoo` asks.

# %%
embeddings = ws.embed(zoo, encoder)
embeddings.shape
