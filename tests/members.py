"""Examples of every family for tests of what all families must do: cheap ones take all, dear ones one of each."""

import pytest

from weightspace import families

EXAMPLES = [example for kind in families.available().values() for example in kind.examples()]
"""All of them: sizes, layers, wirings, nonlinearities."""


def richest(kind):
    """The example of a family with the most tensors and, of several, the most numbers."""
    return max(kind.examples(), key=lambda example: (len(example.spec.tensors), example.spec.num_parameters))


ONE_OF_EACH = [richest(kind) for kind in families.available().values()]
ONE_OF_EACH_FAST = [
    pytest.param(example, marks=() if example in ONE_OF_EACH else pytest.mark.slow) for example in EXAMPLES
]
"""Parameters of a dear test, with `ids=str`: its other examples run with `-m slow`, and cheaper tests take them all."""
