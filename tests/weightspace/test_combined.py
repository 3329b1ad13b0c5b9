"""Combined: one reading of the models, the sum of what its parts say, and how it is made and made again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.weightspace.test_objectives import Given, batch_of, rollouts
from tests.weightspace.zoos import FAMILIES, write_zoo
from weightspace import objectives
from weightspace.data.augment import MaskEdges
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.objectives.combined import Combined
from weightspace.objectives.contrastive import Contrastive
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.objectives.state_geometry import StateGeometry
from weightspace.objectives.supervised import Supervised
from weightspace.training.embed import load
from weightspace.training.module import EmbeddingModule, fit


class Counted(Given):
    """Counts how often it reads models."""

    def forward(self, stacks):
        """Embeddings (models, embedding_dim)."""
        self.count = getattr(self, "count", 0) + 1
        return super().forward(stacks)


def built(objective):
    objective.build(3)
    return objective


def labelled_batch(**fields):
    torch.manual_seed(0)
    return batch_of(torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3), **fields)


def test_the_loss_is_the_weighted_sum_of_the_parts_on_one_reading():
    parts = [
        Supervised(["a", "b"]),
        Emulation(max_input_size=2, max_output_size=3, width=8),
        Supervised(["c"]),
        Reconstruction(share=0.2, width=8),
    ]
    objective = built(Combined(parts, weights=[1.0, 0.5, 2.0, 0.25])).eval()
    batch = labelled_batch(rollouts=[rollouts(4, 2, 3)], output_kinds=["categorical"])
    encoder = Counted(3)
    loss, metrics = objective(encoder, batch)
    # One reading for three parts, another for the one that hides connections.
    assert encoder.count == 2
    assert [target.name for target in objective.targets] == ["a", "b", "c"]
    own = [replace(batch, targets=batch.targets[:, c], cell_means=batch.cell_means[:, c]) for c in (slice(2), [2])]
    alone = [part(Given(3), one)[0] for part, one in zip(parts, (own[0], batch, own[1], batch), strict=True)]
    assert loss.item() == pytest.approx(sum(w * v.item() for w, v in zip((1, 0.5, 2, 0.25), alone, strict=True)))
    assert metrics["Supervised1.loss"][0].item() == pytest.approx(alone[0].item())
    assert {"Emulation.divergence", "Supervised2.r2.c", "Reconstruction.hidden_error"} <= set(metrics)


def test_parts_learn_their_scales_from_their_own_targets(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", FAMILIES[:1], 10)
    parts = [Supervised(["trace"]), StateGeometry(width=8, summaries=1.0), Supervised(["score"]), Reconstruction()]
    objective = built(Combined(parts))
    data = ZooDataModule(zoo)
    data.serve(objective.targets, with_rollouts=True)
    objective.fit_scales(data.training())
    for name, part in (("trace", parts[0]), ("score", parts[2])):
        data.serve(Supervised([name]).targets)
        alone = built(Supervised([name]))
        alone.fit_scales(data.training())
        assert torch.equal(part.mean, alone.mean)
    # Both that learn from weights have gone through all of them.
    assert (parts[3].scale > 0).any()
    torch.testing.assert_close(parts[1].scale[: len(parts[3].scale)], parts[3].scale)


def test_what_parts_need_and_say_of_labels_is_what_the_whole_needs_and_says():
    plain = Combined([Contrastive(), StateGeometry(), StateGeometry(kicks=1.0)])
    assert (plain.learned_with, plain.needs_rollouts, plain.needs_neighbours) == ("no_labels", True, True)
    assert plain.label_adjacent == StateGeometry(kicks=1.0).label_adjacent
    assert Combined([StateGeometry(), Supervised(["a"])]).learned_with == "labels"
    assert Combined([StateGeometry(), Supervised(["a"])], weights=[1.0, 0.0]).learned_with == "no_labels"
    assert not Combined([Reconstruction()]).needs_rollouts
    assert Combined([Contrastive(neighbours=False, views=[MaskEdges()])]).needs_neighbours is False


def test_a_checkpoint_rebuilds_parts_with_their_own_settings(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", FAMILIES[:1], 10)
    torch.manual_seed(0)
    encoder = MessagePassing(embedding_dim=5, edge_dim=4, node_dim=4, product_dim=2, num_layers=1)
    objective = Combined([StateGeometry(width=8), Emulation(width=6)], weights=[1.0, 0.5])
    best = fit(EmbeddingModule(encoder, objective), ZooDataModule(zoo), tmp_path / "run", max_epochs=1)
    again = load(best).objective
    assert again.weights == (1.0, 0.5)
    assert [type(part).__name__ for part in again.parts] == ["StateGeometry", "Emulation"]
    assert again.parts[1].width == 6
    said = torch.load(best, weights_only=True)["weightspace"]
    assert said["objective"] == "Combined"
    assert said["label_adjacent"] == list(StateGeometry().label_adjacent)


def test_impossible_combinations_are_refused():
    for parts, weights, message in (
        ([], [], "`parts` is empty"),
        ([StateGeometry()], [1.0, 2.0], "`weights` has 2 numbers, but there are 1 `parts`"),
        ([StateGeometry()], [-1.0], r"`weights` \(=-1.0\) must be at least 0"),
        ([StateGeometry()], [0.0], "are all 0, which teaches nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            Combined(parts, weights)


def test_every_recipe_names_objectives_and_options_that_there_are():
    def made(described):
        options = dict(described.get("init_args", {}))
        if "parts" in options:
            options["parts"] = [made(part) for part in options["parts"]]
        if "views" in options:
            options["views"] = [MaskEdges()]
        return objectives.available()[described["class_path"]](**options)

    recipes = sorted((Path(__file__).parents[2] / "configs" / "encoder").glob("*.yaml"))
    found = {path.stem: made(yaml.safe_load(path.read_text())["model"]["objective"]) for path in recipes}
    assert {"state_geometry", "state_geometry-tiny", "combined"} <= set(found)
    assert [type(part).__name__ for part in found["combined"].parts] == ["StateGeometry", "Matching", "Reconstruction"]
