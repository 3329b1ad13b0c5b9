"""Features that are probed: files of embeddings, each for the split it was made for, and baselines for any split."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from weightspace import features
from weightspace.components.discovery import refuse_unknown_name
from weightspace.features import Features
from weightspace.markov import markov_of
from weightspace.responses import ADJACENT, responses_of
from weightspace.spec import Params, WeightSpec
from weightspace.store import Division, Zoo, folds, recorded_split, split_title
from weightspace.store.checksum import refuse_damaged_embeddings

DTYPES = ("F16", "BF16", "F32", "F64")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+=,@:()/#-]{0,99}")


Reads = Literal["weights", "queries", "records"]
BAR = "statistics+spectra"
"""The reading of weights that embeddings are put beside, to see what they add."""


@dataclass(frozen=True, kw_only=True)
class FeatureSet(ABC):
    """Features called `embedding:NAME`, `statistics`, `spectra` or the like.

    learned_with: `labels`, `no_labels`, or None if not learned. reads: what they are made from; an embedding has to
    beat the strongest baseline of its kind. label_adjacent: labels whose ingredients they were made from or trained on.
    """

    name: str
    learned_with: str | None = None
    reads: Reads = "weights"
    label_adjacent: tuple[str, ...] = ()

    boosted: ClassVar[bool]
    """Whether they are probed by gradient boosting, too."""

    @property
    @abstractmethod
    def learned(self) -> bool:
        """Whether training made them."""

    @abstractmethod
    def on(self, division: Division) -> Features:
        """Features (rows of the zoo) that no held-out row of the division has shaped."""

    def unavailable(self, divisions: Sequence[Division]) -> str | None:
        """Why there are no such features for all of these divisions, or None if there are."""
        return None


@dataclass(frozen=True, kw_only=True)
class Embedding(FeatureSet):
    """Embeddings (rows, embedding_dim) by the split and fold that their encoder was trained for.

    Those of an encoder that was not trained, with learned_with None, are called `untrained:NAME`; no row has shaped
    them but by the scale of the weights, so that they stand on the splits that they were made for, like others.
    """

    made_for: Mapping[tuple[str, int | None], np.ndarray]
    encoder: str = ""
    encoder_digest: str = ""
    """sha256 of the weights of the encoder, "" in files of older versions."""

    boosted: ClassVar[bool] = False

    @property
    def learned(self) -> bool:
        """Whether training made them."""
        return not self.name.startswith("untrained:")

    def on(self, division: Division) -> Features:
        """The embeddings of the encoder that was trained for the division."""
        values = self.made_for[division.split, division.fold]
        return Features(values, [f"embedding[{column}]" for column in range(values.shape[1])])

    def unavailable(self, divisions: Sequence[Division]) -> str | None:
        """Which encoders are missing: any other than that trained for a division may have seen its held-out rows."""
        missing = [division.name for division in divisions if (division.split, division.fold) not in self.made_for]
        there = "; ".join(split_title(*key) for key in self.made_for)
        return f"no encoder was trained for {'; '.join(missing)}, only for {there}" if missing else None


@dataclass(frozen=True, kw_only=True)
class Baseline(FeatureSet):
    """Features that are measured; `choose` takes the mask (rows) of those by which columns are chosen."""

    choose: Callable[[np.ndarray], Features]

    boosted: ClassVar[bool] = True

    @property
    def learned(self) -> bool:
        """False: they are measured."""
        return False

    def on(self, division: Division) -> Features:
        """The features in columns that the training rows have chosen."""
        return self.choose(division.train)


@dataclass(frozen=True, kw_only=True)
class Beside(FeatureSet):
    """An embedding and a baseline side by side: what one adds to the other."""

    embedding: Embedding
    baseline: Baseline

    boosted: ClassVar[bool] = True

    @property
    def learned(self) -> bool:
        """True, for the embedding's columns."""
        return True

    def on(self, division: Division) -> Features:
        """The columns of both."""
        sides = [part.on(division) for part in (self.embedding, self.baseline)]
        values = np.concatenate([side.values for side in sides], axis=1)
        return Features(values, [name for side in sides for name in side.names])


def beside(feature_sets: Sequence[FeatureSet]) -> list[FeatureSet]:
    """These features, and after them every learned embedding beside `statistics+spectra`, where that is among them."""
    bars = [features for features in feature_sets if isinstance(features, Baseline) and features.name == BAR]
    embeddings = [features for features in feature_sets if isinstance(features, Embedding) and features.learned]
    return [*feature_sets, *(_beside(embedding, bar) for bar in bars for embedding in embeddings)]


def _beside(embedding: Embedding, baseline: Baseline) -> Beside:
    return Beside(
        name=f"{embedding.name} + {baseline.name}",
        learned_with=embedding.learned_with,
        reads=embedding.reads,
        label_adjacent=embedding.label_adjacent,
        embedding=embedding,
        baseline=baseline,
    )


READINGS: Mapping[str, Callable[[WeightSpec, Params], dict[str, Tensor]]] = {
    "statistics": features.statistics_of,
    "spectra": features.spectra_of,
    "markov": markov_of,
}
BASELINES = ("statistics", "spectra", BAR, "markov", "responses", "metadata")


def baselines(zoo: Zoo, names: Sequence[str] = ()) -> list[Baseline]:
    """The features beside which embeddings stand: readings of weights, responses to queries, records of models.

    All of them, or those of `names`; what is not named is not read. ValueError for a name that does not exist.
    """
    refuse_unknown_baselines(names)
    chosen = [name for name in BASELINES if name in (names or BASELINES)]
    parts = {part for name in chosen for part in name.split("+")}
    of_weights = {name: features.columns_of(zoo, READINGS[name]) for name in READINGS if name in parts}
    return [made for name in chosen for made in _made(name, zoo, of_weights)]


def refuse_unknown_baselines(names: Sequence[str]) -> None:
    """Raise ValueError for the name of a baseline that does not exist."""
    for name in names:
        refuse_unknown_name("baseline", name, BASELINES)


def _made(name: str, zoo: Zoo, of_weights: Mapping[str, features.Columns]) -> list[Baseline]:
    """The baseline of a name; none where models have no such columns."""
    if name == "responses":
        return [Baseline(name=name, choose=responses_of(zoo).features, reads="queries", label_adjacent=ADJACENT)]
    if name == "metadata":
        return [Baseline(name=name, choose=partial(features.metadata, zoo.table), reads="records")]
    columns = reduce(features.Columns.beside, (of_weights[part] for part in name.split("+")))
    # Networks that all recur unit by unit have no spectra of matrices.
    return [Baseline(name=name, choose=columns.features)] if columns.names else []


def read_embeddings(paths: Sequence[Path | str], zoo: Zoo) -> list[Embedding]:
    """Read files of embeddings of a zoo; files of one name are one encoder trained anew for several splits or folds."""
    files: dict[tuple[str, str, int | None], Path] = {}
    embeddings: dict[str, Embedding] = {}
    for path in map(Path, paths):
        read = _read_embedding(path, zoo)
        for split, fold in read.made_for:
            earlier = files.setdefault((read.name, split, fold), path)
            if earlier != path:
                raise ValueError(
                    f"{earlier} and {path} are both named '{read.name}' and made for {split_title(split, fold)}; embed "
                    "one under another name."
                )
        same = embeddings.get(read.name, read)
        if same.learned_with != read.learned_with:
            raise ValueError(f"'{read.name}' was learned with labels and without; embed {path} under another name.")
        if (same.reads, set(same.label_adjacent)) != (read.reads, set(read.label_adjacent)):
            raise ValueError(f"'{read.name}' is of several encoders or objectives; embed {path} under another name.")
        embeddings[read.name] = replace(same, made_for={**same.made_for, **read.made_for})
    return list(embeddings.values())


def _refuse_wild(path: Path, values: np.ndarray, zoo: Zoo) -> None:
    """Raise ValueError for embeddings (rows, embedding_dim) beyond float32, but of models that had diverged."""
    usable = np.array(zoo.table.column("status").to_pylist(), dtype=object) != "diverged"
    wild = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max).all(axis=1) & usable)
    if len(wild):
        raise ValueError(
            f"{path} holds embeddings that are not finite in float32 in {len(wild)} row(s), the first being row "
            f"{wild[0]}; embed the zoo again with another checkpoint."
        )


def _refuse_not_understood(path: Path, adjacent: Any, queries: Any) -> None:
    """Raise ValueError unless the record names label columns, and says whether the encoder queries, in JSON's terms."""
    understood = isinstance(adjacent, list) and all(isinstance(column, str) for column in adjacent)
    if not understood or not isinstance(queries, bool):
        raise ValueError(
            f"{path} says label_adjacent {str(adjacent)[:80]!r} and queries {str(queries)[:80]!r}, but expected is a "
            "list of label columns and true or false; embed it again."
        )


def _read_embedding(path: Path, zoo: Zoo) -> Embedding:
    import safetensors

    if not path.is_file():
        raise ValueError(f"There is no file {path}; `weightspace embed` writes one.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["weightspace"])
            kept = file.get_slice("embedding")
            shape, dtype = tuple(kept.get_shape()), kept.get_dtype()
            embeddings = file.get_tensor("embedding") if dtype in DTYPES else None
            fingerprint, learned_with = record["zoo"], record["learned_with"]
            name, (split, fold) = str(record.get("name") or path.stem), recorded_split(record)
            adjacent, queries = record.get("label_adjacent", []), record.get("queries", False)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ValueError(f"{path} is not a file of `weightspace embed`: {reason}.") from None
    if embeddings is None:
        raise ValueError(f"{path} holds embeddings of dtype {dtype}, expected one of {DTYPES}; embed it again.")
    refuse_damaged_embeddings(path, record, embeddings)
    values = embeddings.double().numpy()
    if fingerprint != zoo.fingerprint:
        raise ValueError(
            f"{path} embeds the zoo {str(fingerprint)[:12]}, but this zoo is {zoo.fingerprint[:12]}; run "
            "`weightspace embed` on this zoo."
        )
    if len(shape) != 2 or shape[0] != zoo.num_rows or not values.size:
        raise ValueError(f"{path} holds embeddings {shape}, but the zoo has {zoo.num_rows} rows; embed it again.")
    _refuse_wild(path, values, zoo)
    if learned_with not in ("labels", "no_labels", None) or not NAME.fullmatch(name):
        raise ValueError(
            f"{path} says learned_with {str(learned_with)[:80]!r} and name {name[:80]!r}, which are not understood."
        )
    if fold not in folds(zoo.table, split):
        raise ValueError(f"{path} was made for {split_title(split, fold)}, but this zoo has no such fold.")
    _refuse_not_understood(path, adjacent, queries)
    return Embedding(
        name=f"{'untrained' if learned_with is None else 'embedding'}:{name}",
        learned_with=learned_with,
        reads="queries" if queries else "weights",
        label_adjacent=tuple(adjacent),
        encoder=str(record.get("encoder", "")),
        encoder_digest=str(record.get("encoder_sha256", "")),
        made_for={(split, fold): values},
    )
