"""A transformer of scikit-learn that embeds models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from weightspace.face import embed, load_encoder
from weightspace.models import Models

if TYPE_CHECKING:
    from weightspace.encoders.base import Encoder


class Embedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Models in, embeddings (models, embedding_dim) out, by a frozen encoder: the first step of a Pipeline.

    `encoder` is one, or what `load_encoder` takes; it was trained before, so that `fit` only loads it. Models are what
    `embed` takes, such as a list of those of a zoo, which scikit-learn can divide.
    """

    def __init__(self, encoder: Encoder | str | Path | None = None, batch_size: int = 64) -> None:
        self.encoder = encoder
        self.batch_size = batch_size

    def fit(self, models: Models, y: Any = None) -> Self:
        """Load the encoder; no model is read."""
        encoder = self.encoder
        self.encoder_ = load_encoder(encoder) if encoder is None or isinstance(encoder, str | Path) else encoder
        return self

    def transform(self, models: Models) -> np.ndarray[Any, Any]:
        """Embeddings (models, embedding_dim) float32 of the models, in their order."""
        check_is_fitted(self)
        embeddings: np.ndarray[Any, Any] = embed(models, self.encoder_, batch_size=self.batch_size).numpy()
        return np.atleast_2d(embeddings)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Names of the columns: embedding0, embedding1 and so on."""
        check_is_fitted(self)
        return np.array([f"embedding{i}" for i in range(self.encoder_.embedding_dim)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        # Models are no rows of numbers.
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.requires_fit = True
        return tags
