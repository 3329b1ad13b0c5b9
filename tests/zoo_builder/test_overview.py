"""The overview of a zoo as text: a table of labels under its headings."""

from tests.weightspace.zoos import write_zoo
from weightspace import store
from zoo_builder.overview import info, info_text


def test_labels_stand_under_headings_in_line_with_their_numbers(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", models=5)
    head = {k: v for k, v in store.open_zoo(zoo).manifest.items() if k not in ("files", "shards", "digest")}
    labels = {name: {"unit": "units", "definition": "A number."} for name in ("score", "trace")}
    store.finish(zoo, {**head, "labels": labels}, 3, "A zoo")
    lines = info_text(info(zoo)).splitlines()
    headings, *rows = lines[-3:]
    assert headings.split() == ["label", "values", "low", "mean", "high", "unit"]
    assert [row.split()[0] for row in rows] == ["score", "trace"]
    for name in ("low", "mean", "high", "unit"):
        end = headings.index(name) + len(name)
        # Numbers end where their heading does; units begin where theirs does.
        edge = headings.index(name) if name == "unit" else end - 1
        assert all(row[edge] != " " for row in rows), name


def test_a_zoo_without_labels_has_no_table(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", models=5)
    assert "label " not in info_text(info(zoo)).splitlines()[-1]
