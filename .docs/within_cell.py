"""Picture of the R2 within cells: one draw of labels and predictions, before and after cell means are taken off."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

MEANS, SPREAD, KNOWN = (0.0, 1.0, 2.0), 0.25, 0.2
"""Mean labels of three cells, spread within one, and how much of a deviation a prediction sees."""


def r2(label: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the variance of labels that predictions explain."""
    return float(1 - np.square(label - prediction).sum() / np.square(label - label.mean()).sum())


def main() -> None:
    """Draw both panels into pages/within_cell.png."""
    random = np.random.default_rng(0)
    deviation = random.normal(0, SPREAD, (3, 80))
    deviation -= deviation.mean(1, keepdims=True)
    guess = KNOWN * deviation + random.normal(0, SPREAD / 4, deviation.shape)
    mean = np.array(MEANS)[:, None]
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for panel, label, prediction, title in (
        (panels[0], mean + deviation, mean + guess, "labels as they are"),
        (panels[1], deviation, guess, "less the mean of the cell"),
    ):
        for i, name in enumerate(("Elman, 8 units", "Elman, 16 units", "GRU, 8 units")):
            panel.scatter(label[i], prediction[i], s=10, alpha=0.7, label=name)
        ends = [label.min(), label.max()]
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        panel.set(title=f"{title}: R2 {r2(label, prediction):.2f}", xlabel="label", ylabel="prediction")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(Path(__file__).parent / "pages" / "within_cell.png", dpi=110)


if __name__ == "__main__":
    main()
