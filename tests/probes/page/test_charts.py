"""Ticks and places of line charts."""

import pytest

from probes.curves import Curve
from probes.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, at, charts, ticks


def curve(name, values, minutes=None, **changes):
    fields = {"name": name, "seed": 0, "objective": "O", "part": "in_distribution", "metric": "loss"}
    updates = [10 * (i + 1) for i in range(len(values))]
    return Curve(**fields | changes, updates=updates, cpu_minutes=minutes, values=values)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.13, 0.42, [-0.1, 0, 0.1, 0.2, 0.3, 0.4]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_between_the_ends(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_places_are_linear_between_the_ends():
    assert [at(value, 0, 4, 100, 20) for value in (0, 1, 4)] == [100, 80, 20]
    assert at(1, 1, 1, 0, 10) == 5


def test_lines_stay_inside_the_axes_and_objectives_have_charts_of_their_own():
    curves = [curve("A", [3.0, 1.0, 0.5], [0.1, 0.2, 0.3]), curve("B", [2.0, 1.5], [0.2, 0.4])]
    first, second = charts([*curves, curve("A", [1.0], objective="P")])
    assert [panel["title"] for panel in first["panels"]] == ["updates", "CPU minutes"]
    assert [panel["title"] for panel in second["panels"]] == ["updates"]
    assert [entry["name"] for entry in first["legend"]] == ["A", "B"]
    assert first["legend"][0]["last"] == 0.5
    for panel in first["panels"]:
        for line in panel["lines"]:
            for point in line["points"].split():
                x, y = map(float, point.split(","))
                assert LEFT <= x <= WIDTH - RIGHT
                assert TOP <= y <= HEIGHT - BOTTOM
    # The lowest loss is drawn lowest.
    points = [tuple(map(float, point.split(","))) for point in first["panels"][0]["lines"][0]["points"].split()]
    assert points[0][1] < points[1][1] < points[2][1]
