"""Scanned digits read tile by tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from weightspace.rollout import Streams
from weightspace.rollout.streams import derive_key
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical

SIDE = 8
TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class TiledDigits(Categorical):
    """Which digit is it? A scanned digit, rotated, is shown tile by tile in raster order and named after the last tile.

    Images are the 1,797 scans of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak, Optical recognition of
    handwritten digits, UCI 1998), pixels 0 to 16 mapped to -1 to 1. Each is rotated counter-clockwise by `angle`
    degrees about its centre (bilinear, background outside). Every image is either a training or a test image. Those to
    train on are drawn one by one; those to test on are neighbours in a shuffled order, from a place that is drawn, so
    that none comes twice before all have come, which makes scores more exact.
    """

    tile_size: int = 2
    """Side of a tile in pixels, which divides the image's side of 8."""
    angle: float = 0.0
    """Rotation in degrees, counter-clockwise."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    varying: ClassVar[tuple[str, ...]] = ("angle",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_size not in (1, 2, 4, 8):
            raise ValueError(f"`tile_size` (={self.tile_size}) must divide the image side of {SIDE}: 1, 2, 4 or 8.")
        if not math.isfinite(self.angle):
            raise ValueError(f"`angle` (={self.angle}) must be a finite number of degrees.")

    @property
    def input_size(self) -> int:
        return self.tile_size**2

    @property
    def output_size(self) -> int:
        return 10

    @property
    def num_steps(self) -> int:
        return (SIDE // self.tile_size) ** 2

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        angles = self.value("angle", values, streams)
        images, digits = _rotated(split, streams.device, tuple(angles.tolist()), self.tile_size)
        count, num_images = len(streams), images.shape[1]
        if split == "test":
            number = torch.arange(batch_size, device=streams.device)
            chosen = (streams.integers(num_images, 1) + number) % num_images
        else:
            chosen = streams.integers(num_images, batch_size)
        # Whole rows of one table are copied several times as fast as what two indices choose.
        rows = chosen + num_images * torch.arange(count, device=streams.device)[:, None]
        drawn = images.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (count, batch_size)).transpose(1, 2)
        # A third of the time that `contiguous` takes.
        x = drawn.new_empty(drawn.shape).copy_(drawn)
        return Batch(x=x, start=x.new_zeros(count, batch_size, 0), target=digits[chosen][:, None])

    @classmethod
    def examples(cls) -> Sequence[Task]:
        return [cls(angle=30.0), cls(tile_size=4, angle=-100.0)]


def rotations(angle: Tensor) -> Tensor:
    """Matrices (models, pixel, pixel) that rotate an image by angle (models,) in degrees, counter-clockwise.

    Bilinear interpolation about the centre with zeros outside: scipy.ndimage.rotate with order=1, reshape=False,
    mode="grid-constant".
    """
    axis = torch.arange(SIDE, dtype=angle.dtype, device=angle.device) - (SIDE - 1) / 2
    down, right = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    cos, sin = torch.cos(torch.deg2rad(angle))[:, None], torch.sin(torch.deg2rad(angle))[:, None]
    source = torch.stack([cos * down + sin * right, cos * right - sin * down]) + (SIDE - 1) / 2
    corner = source.floor()
    beyond = source - corner
    matrices = angle.new_zeros(len(angle), SIDE**2, SIDE**2)
    for row_offset, column_offset in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = corner[0] + row_offset, corner[1] + column_offset
        share = (beyond[0] if row_offset else 1 - beyond[0]) * (beyond[1] if column_offset else 1 - beyond[1])
        inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
        pixel = (row.clamp(0, SIDE - 1) * SIDE + column.clamp(0, SIDE - 1)).long()
        matrices.scatter_add_(2, pixel[..., None], torch.where(inside, share, 0)[..., None])
    return matrices


@lru_cache(maxsize=2)
def _rotated(split: Split, device: torch.device, angles: tuple[float, ...], tile_size: int) -> tuple[Tensor, Tensor]:
    """All images of one part, rotated for each model, (models, image, tile, pixel) in -1 to 1, and digits (image,).

    A stack of models draws from the same images again and again, so they are rotated once.
    """
    images, digits = _images(split, device)
    rotation = rotations(torch.tensor(angles, dtype=torch.float64, device=device)).to(images.dtype)
    # Pixels come out tile by tile: what is put in order here need not be moved in every sequence.
    count = SIDE // tile_size
    order = torch.arange(SIDE**2, device=device).reshape(count, tile_size, count, tile_size).transpose(1, 2).flatten()
    turned = images @ rotation[:, order].transpose(1, 2)
    # Background is 0 while pixels move, and -1 once they are scaled.
    return turned.div_(8).sub_(1).unflatten(2, (count**2, tile_size**2)), digits


@cache
def _images(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (image, pixel) in 0 to 16, float32, and their digits (image,) of one part of the fixed split."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = sorted(range(len(pixels)), key=lambda i: derive_key(0, f"image-{i}", "TiledDigits/split"))
    num_test = round(TEST_SHARE * len(order))
    # Those to test on stay shuffled, because a model is tested on neighbours.
    chosen = order[:num_test] if split == "test" else sorted(order[num_test:])
    return (
        torch.tensor(pixels[chosen], dtype=torch.float32, device=device),
        torch.tensor(digits[chosen], dtype=torch.int64, device=device),
    )
