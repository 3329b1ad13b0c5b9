"""What one call leaves behind does not spoil the next: nothing that is kept was made in inference mode."""

import gc
import warnings

import pytest
import torch

from tests.weightspace.test_limits import OBJECTIVES, small_encoder, stack_of, trainer
from tests.weightspace.zoos import write_zoo
from weightspace import families
from weightspace.data.datamodule import ZooDataModule
from weightspace.families.elman import Elman
from weightspace.graph import _layout
from weightspace.training.embed import embed_stacks
from weightspace.training.module import EmbeddingModule
from weightspace.training.trainer import quiet


@pytest.fixture(autouse=True)
def forgetful():
    """What other tests have left must not help."""
    _layout.cache_clear()


def kept_from_inference():
    """Tensors that are still there and were made in inference mode."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [item for item in gc.get_objects() if isinstance(item, torch.Tensor) and item.is_inference()]


def test_an_encoder_is_trained_after_it_has_embedded():
    encoder, stack = small_encoder(), stack_of(Elman(input_size=1, hidden_size=5, output_size=1))
    embed_stacks(encoder, [stack])
    encoder([stack]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_no_family_leaves_anything_behind_that_was_made_in_inference_mode():
    encoder = small_encoder()
    for family in families.available().values():
        for example in family.examples():
            embed_stacks(encoder, [stack_of(example)])
    assert not kept_from_inference()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_a_module_is_trained_after_any_other_stage_with_the_same_data(objective, stage, tmp_path):
    data = ZooDataModule(write_zoo(tmp_path / "zoo", models=10), batch_size=8)
    module = EmbeddingModule(small_encoder(), OBJECTIVES[objective]())
    with quiet():
        getattr(trainer(), stage)(module, datamodule=data)
        trainer().fit(module, datamodule=data)
