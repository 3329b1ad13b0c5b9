"""The encoders that others are compared with: symmetry, mixed families, training and checkpoints of each."""

from collections import Counter

import pytest
import torch
import yaml

from tests.members import ONE_OF_EACH
from tests.weightspace.encoders.models import TRIALS, fitted, permuted, stack_of
from tests.weightspace.zoos import write_zoo
from weightspace import checks, encoders
from weightspace.components.construction import Constructed
from weightspace.data.augment import GroupMoves
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.flat import Flat
from weightspace.encoders.parameter_transformer import ParameterTransformer
from weightspace.encoders.relational_transformer import RelationalTransformer
from weightspace.encoders.sign_equivariant import SignEquivariant
from weightspace.encoders.spectra import Spectra
from weightspace.encoders.statistics import Statistics
from weightspace.objectives.supervised import Supervised
from weightspace.recipes import recipe
from weightspace.store import open_zoo
from weightspace.training.embed import embed_rows, load
from weightspace.training.module import EmbeddingModule, fit

INVARIANT = {
    "Statistics": lambda: Statistics(embedding_dim=8, width=16),
    "Spectra": lambda: Spectra(embedding_dim=8, width=16, points=5),
    "RelationalTransformer": lambda: RelationalTransformer(embedding_dim=8, node_dim=16, edge_dim=8, num_layers=2),
}
BY_PLACE = {
    "Flat": lambda: Flat(embedding_dim=8, width=16),
    "ParameterTransformer": lambda: ParameterTransformer(embedding_dim=8, dim=16, num_layers=2),
}
SIGNED = {
    "SignEquivariant": lambda: SignEquivariant(embedding_dim=8, edge_dim=6, node_dim=12, product_dim=4, num_layers=2),
}
ALL = {**INVARIANT, **BY_PLACE, **SIGNED}
RECIPES = ("statistics", "spectra", "flat", "parameter-transformer", "relational-transformer", "sign_equivariant")


def made(name):
    torch.manual_seed(0)
    return ALL[name]()


@pytest.mark.parametrize("name", INVARIANT)
def test_permutations_leave_embeddings_alone_to_rounding_in_float64(name):
    assert made(name).symmetry == {"permutation"}
    for family in ONE_OF_EACH + TRIALS:
        stack = stack_of(family)
        encoder = fitted(made(name), stack)
        with torch.no_grad():
            reference = encoder([stack])
            change = (encoder([permuted(stack)]) - reference).abs().max() / reference.std()
        assert change < 1e-10, family


@pytest.mark.parametrize("name", BY_PLACE)
def test_an_encoder_that_states_no_symmetry_has_rows_that_it_sees_permutations(name):
    assert made(name).symmetry == frozenset()
    rows = list(checks._encoder_rows(made(name), ONE_OF_EACH[0]))
    (row,) = (row for row in rows if row["move"].startswith("unstated permutations"))
    assert row["error"] > 0.01
    assert not row["declared"]
    assert all(row["passed"] for row in rows)


@pytest.mark.parametrize("name", ALL)
def test_families_of_other_kinds_are_read_or_refused_by_their_sizes(name):
    refused = Counter()
    for family in TRIALS:
        rows = list(checks._encoder_rows(made(name), family))
        assert [row for row in rows if not row["passed"]] == []
        refused[type(family).__name__] += rows[0]["move"].startswith("refused by declared sizes")
    assert +refused == ({"Delays": 1} if name in BY_PLACE else {})


@pytest.mark.parametrize("name", ALL)
def test_mixed_families_and_sizes_are_embedded_as_each_alone(name):
    stacks = [stack_of(family, models=3) for family in ONE_OF_EACH]
    encoder = fitted(made(name), *stacks)
    alone = torch.cat([encoder([stack]) for stack in stacks])
    torch.testing.assert_close(encoder(stacks), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_shapes_of_parameters_and_buffers_follow_from_the_constructor_alone(name):
    before = {key: value.shape for key, value in made(name).state_dict().items()}
    encoder = fitted(made(name), *(stack_of(family) for family in ONE_OF_EACH))
    assert {key: value.shape for key, value in encoder.state_dict().items()} == before


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("simple") / "zoo", models=10, rollouts=False)


@pytest.mark.parametrize("name", ALL)
def test_training_on_a_zoo_lowers_the_loss(name, zoo):
    """The trace of the recurrent weights, which each can express: half of its variance is learned."""
    stacks = list(open_zoo(zoo).stacks(max_models=8))[::3]
    wanted = torch.cat([stack.params[stack.family.spec.recurrent()[0]].diagonal(dim1=-2, dim2=-1).flatten(1).sum(1)
                        for stack in stacks])  # fmt: skip
    wanted = (wanted - wanted.mean()) / wanted.std()
    encoder = made(name).train()
    encoder.fit_standardisation(iter(stacks))
    head = torch.nn.Linear(encoder.embedding_dim, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (head(encoder(stacks))[:, 0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0] / 2
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_brings_an_encoder_back_with_its_scales(name, zoo, tmp_path):
    module = EmbeddingModule(made(name), Supervised(["trace"]))
    data = ZooDataModule(zoo, batch_size=64, augment=[GroupMoves(permutations=True)])
    best = fit(module, data, tmp_path, max_epochs=1)
    loaded = load(best).encoder.eval()
    fresh = made(name).state_dict()
    changed = {key for key, value in loaded.state_dict().items() if not torch.equal(value, fresh[key])}
    assert any("scale" in key for key in changed)
    assert loaded.construction == module.encoder.construction
    torch.testing.assert_close(embed_rows(loaded, data), embed_rows(module.encoder.eval(), data), rtol=0, atol=0)


@pytest.mark.parametrize("file", RECIPES)
def test_recipes_are_of_about_200k_parameters_and_move_units_where_the_encoder_sees_their_order(file):
    found = yaml.safe_load(recipe(f"encoder/{file}.yaml").read_text())
    said = found["model"]["encoder"]
    encoder = encoders.available()[said["class_path"]](**said["init_args"])
    assert isinstance(encoder, Constructed)
    assert 190_000 < sum(p.numel() for p in encoder.parameters()) < 210_000
    (moves,) = found["data"]["augment"]
    assert moves.get("init_args", {}).get("permutations", False) == ("permutation" not in encoder.symmetry)
