"""Real-time recurrent learning against backpropagation through time: gradients, training, memory, refusals."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.members import EXAMPLES
from tests.zoo_builder.linear_family import Linear
from weightspace.families.elstm import ELSTM
from weightspace.families.gru import GRU
from weightspace.families.para_lstm import ParaLSTM
from weightspace.families.stable_reparam import StableReparam
from weightspace.rollout import generator
from weightspace.rollout.criterion import Criterion
from weightspace.rollout.gradients import losses_and_gradients
from weightspace.rollout.sensitivities import Sensitivity, memory_of, why_not
from zoo_builder.learning.base import Run
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.rtrl import RTRL, online_gradients
from zoo_builder.members import Members
from zoo_builder.tasks.base import Task
from zoo_builder.tasks.delayed_recall import DelayedRecall

DIAGONAL = [example for example in EXAMPLES if example.spec.recurrence == "diagonal"]
IDS = ["a", "b", "c", "d"]


def drawn(family, num_steps, scored, batch_size=3):
    """Random params, inputs and squared errors at the last steps of sequences, weighed at random."""
    source = generator(0, "m", "online")
    params = [family.spec.random_params(generator(0, name, "params")) for name in IDS]
    stacked = {name: torch.stack([one[name] for one in params]) for name in family.spec.tensors}
    size = (len(IDS), num_steps, batch_size)
    x = torch.randn(*size, family.input_size, dtype=torch.float64, generator=source)
    target = torch.randn(len(IDS), scored, batch_size, family.output_size, dtype=torch.float64, generator=source)
    weight = torch.rand(len(IDS), scored, dtype=torch.float64, generator=source)
    return stacked, x, x.new_zeros(len(IDS), batch_size, 0), Criterion("squared_error", target, weight)


def test_the_four_families_of_the_literature_are_among_those_declared_diagonal():
    assert {type(family).__name__ for family in DIAGONAL} >= {"ELSTM", "LRU", "ParaGRU", "ParaLSTM"}


@pytest.mark.parametrize("scored", [60, 1])
@pytest.mark.parametrize("family", DIAGONAL, ids=str)
def test_gradients_of_all_tensors_are_those_of_backpropagation(family, scored):
    params, x, start, criterion = drawn(family, 60, scored)
    losses, found = online_gradients(family, params, x, start, criterion, {})
    expected, reference = losses_and_gradients(family, params, family.spec.trained, x, start, criterion)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    assert set(found) == set(reference) == set(family.spec.trained)
    for name, gradient in reference.items():
        assert gradient.abs().max() > 0
        assert (found[name] - gradient).abs().max() <= 1e-10 * gradient.abs().max()


def test_sensitivities_are_what_the_papers_equations_give():
    family = ELSTM(input_size=2, hidden_size=3, output_size=1)
    params, x, *_ = drawn(family, 5, 1)
    sensitivity, step = Sensitivity(family), torch.func.vmap(family.step)
    state = {name: x.new_zeros(len(IDS), 3, 3) for name in family.spec.states}
    found, of_f, of_wf = sensitivity.at_start(params, 3), x.new_zeros(len(IDS), 3, 3, 2), x.new_zeros(len(IDS), 3, 3)
    for t in range(5):
        c, now = state["c"], x[:, t]
        f_x, z_x = (
            torch.einsum("mhi,mbi->mbh", params["weight_ih"][:, gate], now) + params["bias"][:, gate, None]
            for gate in (0, 1)
        )
        w_f, w_z = (params["weight_hh"][:, gate, None] for gate in (0, 1))
        f, z = torch.sigmoid(w_f * c + f_x), torch.tanh(w_z * c + z_x)
        by_f, by_z = (c - z) * f * (1 - f), (1 - f) * (1 - z**2)
        decay = f + w_f * by_f + w_z * by_z
        of_f = decay[..., None] * of_f + by_f[..., None] * now[:, :, None]
        of_wf = decay * of_wf + by_f * c
        found = sensitivity.after(found, params, state, now, {})
        torch.testing.assert_close(sensitivity.step(params, state, now, {})[1][:, :, 0, 0], decay)
        state = step(params, state, now, {})
    torch.testing.assert_close(found["weight_ih"][:, :, 0, 0], of_f, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["weight_hh"][:, :, 0, 0], of_wf, rtol=1e-11, atol=1e-12)


def test_only_what_reaches_later_steps_is_carried():
    family = ELSTM.examples()[0]
    memory = memory_of(family)
    assert memory.states == ("c",)
    assert memory.tensors == ("weight_ih", "weight_hh", "bias")
    assert memory_of(ParaLSTM.examples()[0]).states == ("h", "c")
    carried = Sensitivity(family).at_start(drawn(family, 1, 1)[0], 7)
    shapes = {name: tuple(value.shape) for name, value in carried.items()}
    # N (2 D + 4) numbers for each sequence, as in the paper.
    assert shapes == {"weight_ih": (4, 7, 1, 2, 5, 3), "weight_hh": (4, 7, 1, 2, 5), "bias": (4, 7, 1, 2, 5)}


def test_training_online_is_training_by_backpropagation():
    family, task = ELSTM(input_size=1, hidden_size=4, output_size=2), DelayedRecall(num_steps=8, delay=3)
    settings = {"num_updates": 20, "batch_size": 4, "learning_rate": 1e-2}
    online, back = (
        kind(**settings).learn(family, task, Members(0, IDS), [0, 20], Run(method="stacked")) for kind in (RTRL, BPTT)
    )
    for name, tensor in back.params.items():
        torch.testing.assert_close(online.params[name], tensor, rtol=1e-4, atol=2e-5)
    assert (back.params["weight_ih"][:, 1] - back.params["weight_ih"][:, 0]).abs().max() > 0.05


class Live(TorchDispatchMode):
    """The most bytes of tensors that were alive together, the inputs not counted."""

    def __init__(self, inputs):
        super().__init__()
        self.alive, self.peak, self._seen = 0, 0, {tensor.untyped_storage()._cdata for tensor in inputs}

    def _gone(self, key, size):
        self._seen.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return result


def peak(gradients, num_steps):
    family = ELSTM(input_size=2, hidden_size=8, output_size=1)
    params, x, start, criterion = drawn(family, num_steps, 1)
    with Live([*params.values(), x, start, criterion.target, criterion.weight]) as live:
        gradients(family, params, x, start, criterion)
    return live.peak


@pytest.mark.parametrize("steps", [(20, 200), pytest.param((100, 1000), marks=pytest.mark.slow)])
def test_memory_is_the_same_for_ten_times_as_many_steps(steps):
    online, back = (
        [peak(gradients, num_steps) for num_steps in steps]
        for gradients in (
            lambda *case: online_gradients(*case, {}),
            lambda family, params, *case: losses_and_gradients(family, params, family.spec.trained, *case),
        )
    )
    assert online[1] == online[0]
    assert back[1] > 8 * back[0]


class Undeclared(DelayedRecall):
    """A task whose loss is known as a whole alone."""

    criterion = Task.criterion


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        (
            GRU(input_size=1, hidden_size=3, output_size=2),
            DelayedRecall(),
            "^RTRL cannot train GRU on DelayedRecall: units of GRU read one another; choose a family whose recurrence",
        ),
        (StableReparam(input_size=1, hidden_size=3, output_size=2, mixed=True), DelayedRecall(), "units of Stable"),
        (ELSTM(input_size=1, hidden_size=3, output_size=2), Undeclared(), "Undeclared declares no criterion"),
        (ELSTM(input_size=2, hidden_size=3, output_size=2), DelayedRecall(), "`input_size` of ELSTM is 2"),
        (ELSTM(input_size=2, hidden_size=3, output_size=2), None, "it needs a task"),
    ],
)
def test_what_cannot_be_learned_online_is_said_before_it_is_tried(family, task, message):
    with pytest.raises(ValueError, match=message):
        RTRL().check(family, task)


def test_a_family_that_is_not_diagonal_has_no_sensitivities():
    family = Linear(input_size=2, hidden_size=4, output_size=1)
    assert "BPTT" in why_not(family)
    with pytest.raises(ValueError, match="Linear has no sensitivities within units: units of Linear read one another"):
        Sensitivity(family)


def test_estimated_memory_does_not_know_the_number_of_steps():
    family = ELSTM(input_size=1, hidden_size=4, output_size=2)
    said = {RTRL().bytes_per_model(family, DelayedRecall(num_steps=steps)) for steps in (10, 1000)}
    assert len(said) == 1
