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

# %% [markdown]
# # Train an encoder
#
# An encoder reads all weights of a network and gives one vector, its embedding. This notebook trains one on the labels
# of a zoo, watches it learn, and looks at what it makes of models it has not seen. Run `weightspace quickstart --out
# quickstart` first, or point `WEIGHTSPACE_QUICKSTART` at the folder of an earlier one. The same from a terminal:
# `weightspace fit --config configs/encoder/supervised.yaml --data.zoo quickstart/zoo`.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from weightspace.data.augment import GroupMoves
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.targets import Target
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.supervised import Supervised
from weightspace.rollout import generator
from weightspace.training.embed import embed, embed_stacks, load
from weightspace.training.module import EmbeddingModule, fit

zoo = Path(os.environ.get("WEIGHTSPACE_QUICKSTART", "quickstart")) / "zoo"
epochs = int(os.environ.get("WEIGHTSPACE_EPOCHS", "8"))
run = Path(tempfile.mkdtemp(prefix="run-"))

# %% [markdown]
# ## The data
#
# The data module serves training rows in batches of stacks, each of one family and size, so nothing is padded. Which
# rows are for training, validation and test is said by the zoo. `GroupMoves` flips signs and rescales units in training
# stacks by draws from the declared symmetry: other weights, the same functions.

# %%
data = ZooDataModule(zoo, batch_size=64, augment=[GroupMoves()])
print({part: len(data.rows(part)) for part in ("train", "val", "test")})

# %% [markdown]
# ## The encoder
#
# `MessagePassing` works on the graph of the network and states its symmetry. Hidden units can be permuted without any
# effect; permuting rows of the recurrent matrix alone, which makes another network, moves the embedding.

# %%
torch.manual_seed(0)
encoder = MessagePassing(embedding_dim=32, edge_dim=12, node_dim=32)
print(f"{sum(p.numel() for p in encoder.parameters())} parameters, invariant to {set(encoder.symmetry)}")

stack = next(iter(data.zoo.stacks(max_models=16)))
spec = stack.family.spec
element = spec.random_elements(len(stack), generator(0, "notebook", "moves"))
element.gauges.update({name: torch.ones_like(signs) for name, signs in element.gauges.items()})
(recurrent, *_) = spec.recurrent()
moves = {
    "all hidden units": spec.act_stacked(element, stack.params),
    "rows of weight_hh alone": {**stack.params, recurrent: stack.params[recurrent].roll(1, dims=-2)},
}
encoder.fit_standardisation([stack])
before = embed_stacks(encoder, [stack])
change = {}
for what, params in moves.items():
    after = embed_stacks(encoder, [type(stack)(stack.family, params, stack.rows)])
    change[what] = ((after - before).abs().max() / before.std()).item()
    print(f"permuting {what} changes embeddings by {change[what]:.0e} of their spread")

# %% [markdown]
# ## The objective, and training
#
# `Supervised` predicts each label, and what is left of it within cells, by a linear head: what it learns is linearly
# readable. `Emulation`, `Reconstruction` and `Contrastive` need no labels and go in the same place. The best epoch on
# validation rows is kept.

# %%
targets = [
    Target(name="state_effective_rank"),
    Target(name="memory_decay_rate", low=-0.5, high=1.5),
    Target(name="score", trained_only=True),
]
module = EmbeddingModule(encoder, Supervised(targets), learning_rate=2e-3)
best = fit(module, data, run, max_epochs=epochs)

# %%
metrics = pd.read_csv(run / "metrics.csv").groupby("epoch").first()
figure_losses, panel = plt.subplots(figsize=(5, 3.5))
for part in ("train", "val"):
    panel.plot(metrics.index, metrics[f"{part}/loss"], marker="o", label=part)
panel.set(xlabel="epoch", ylabel="loss")
panel.legend()
plt.close(figure_losses)
figure_losses

# %% [markdown]
# ## What it makes of models it has not seen
#
# The head's predictions on test rows against the labels, clipped as in training. Colours are families: where clouds
# line up from family to family but not within one, the encoder has recognised the kind of network and not more.

# %%
trained = load(best).eval()
table, test = data.zoo.table.to_pandas(), data.rows("test")
embedding = torch.cat([embed_stacks(trained.encoder, [stack]) for stack in data.zoo.stacks(test.tolist())])
with torch.no_grad():
    # The first half of the columns are the labels, standardised by their training rows.
    standardised = trained.objective.head(embedding)[:, : len(targets)]
predicted = (standardised * trained.objective.scale[0] + trained.objective.mean[0]).numpy()

figure_test, panels = plt.subplots(1, 3, figsize=(12, 3.8))
correlation = {}
for panel, target, values in zip(panels, targets, predicted.T, strict=True):
    rows = table.iloc[test].assign(predicted=values)
    rows = rows[(rows["step"] > 0) & rows[target.name].notna()]
    rows = rows.assign(label=rows[target.name].clip(target.low, target.high))
    for family, own in rows.groupby("family"):
        panel.scatter(own["label"], own["predicted"], s=6, label=family)
    correlation[target.name] = rows["label"].corr(rows["predicted"], method="spearman")
    panel.set(xlabel=target.name, ylabel="predicted", title=f"rank correlation {correlation[target.name]:.2f}")
panels[0].legend()
figure_test.tight_layout()
plt.close(figure_test)
figure_test

# %% [markdown]
# ## Frozen embeddings
#
# `embed` writes the embeddings of every row of the zoo, in the order of its table. Whether they hold more than plain
# statistics of the weights, the record of the training, or chance: that is what `probe_a_zoo` asks.

# %%
file = embed(best, zoo, run / "embeddings.safetensors", name="mine")
print(f"{file}, {file.stat().st_size / 2**10:.0f} KiB")
