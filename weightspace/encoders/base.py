"""The contract of an encoder: stacks of models in, one embedding per model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from weightspace.components.construction import Constructed
from weightspace.components.discovery import concrete_subclasses, load_from, refuse_unknown_name
from weightspace.encoders.fitting import UNFIT, filled, refuse_misfit
from weightspace.families import Family
from weightspace.spec import WeightSpec
from weightspace.store import Stack

_WORDS = {
    "ends": "inputs or outputs",
    "hidden": "hidden units",
    "input": "inputs",
    "output": "outputs",
    "factor": "factors",
    "pairs": "pairs of units whose products a tensor weighs",
}


MAX_SIZE = 2**16


class Encoder(Constructed, nn.Module, ABC):
    """Reads whole weight spaces. Subclasses state their symmetry, which `weightspace check encoders` verifies."""

    symmetry: ClassVar[frozenset[str]] = frozenset()
    """What leaves embeddings unchanged: "permutation" (of hidden units and factors), "sign", "scale"."""
    queries: ClassVar[bool] = False
    """Whether it runs the models, and so stands beside the baseline `responses` and not beside readings of weights."""
    max_sizes: Mapping[str, tuple[int, str]] = {}
    """Largest sizes an encoder can read, each with the option that raises it ("" if none does): by node kind, of
    `ends` (ordered axes: inputs, outputs), in `layers`, of `pairs` (of the units that a tensor with three node axes
    reads). What is not named may have any size. Models beyond are refused wherever the encoder meets them."""
    provenance: Mapping[str, Any] | None = None
    """How it was trained, as read from a checkpoint or a saved encoder; None where that is not known."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` (={embedding_dim}) must be at least 1.")
        self.embedding_dim = embedding_dim
        self.register_forward_pre_hook(_refuse_too_large)

    def refuse_too_large(self, family: Family) -> None:
        """Raise ValueError where models of this family and size are beyond `max_sizes`."""
        sizes = sizes_of(family.effective_spec) if self.max_sizes else {}
        for name, (most, option) in self.max_sizes.items():
            if sizes.get(name, 0) > most:
                way_out = f"train with `{option}` {sizes[name]} or more" if option else "use another encoder"
                raise ValueError(
                    f"{type(family).__name__} has {sizes[name]} {_WORDS.get(name, name)}, but this "
                    f"{type(self).__name__} reads {most} at most; {way_out}, or leave such models out."
                )

    def bytes_of(self, family: Family) -> int:
        """About the bytes that reading one model takes, by what grows with the pairs of its nodes; 0 if nothing does.

        Without gradients; those of training take several times as much.
        """
        return 0

    @abstractmethod
    def forward(self, stacks: Sequence[Stack]) -> Tensor:
        """Embeddings (models, embedding_dim) of all models of the stacks, one stack after another."""

    @abstractmethod
    def fit_standardisation(self, stacks: Iterable[Stack]) -> None:
        """Learn input scales from training models; they are buffers, and so part of the checkpoint."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        license: str = "apache-2.0",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> Path:
        """Write model.safetensors, config.json and a card README.md; with `push_to_hub` also upload them to `repo_id`.

        The files of an encoder that was there are replaced. ValueError if `from_pretrained` could not read them.
        """
        # The client of the Hub takes a second to import, and few need it.
        from weightspace.exchange import pretrained

        if push_to_hub and repo_id is None:
            raise ValueError("`push_to_hub` needs a `repo_id`, OWNER/NAME.")
        name, arguments, tensors = type(self).__name__, self.construction["init_args"], self.state_dict()
        if _kinds().get(name) is not type(self):
            raise ValueError(
                f"{name} is not among the encoders {sorted(_kinds())}, by whose names encoders are read; put it into "
                "a file of a package that `--allow_import` enables."
            )
        try:
            refuse_misfit(lambda: load_from(_kinds(), "encoder", name, arguments), tensors)
        except UNFIT as error:
            raise ValueError(f"This {name} cannot be saved, as its config would not make it: {error}.") from None
        config = pretrained.Config(
            encoder=name,
            arguments=arguments,
            symmetry=sorted(self.symmetry),
            provenance=self.provenance,
            license=license,
        )
        folder = pretrained.write(save_directory, config, tensors)
        if repo_id is not None and push_to_hub:
            self.push_to_hub(repo_id, license=license, **push_to_hub_kwargs)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "apache-2.0",
        commit_message: str = "Push encoder using weightspace.",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload the encoder to the model repository `repo_id` (OWNER/NAME), made if missing; returns its address."""
        from weightspace.exchange import pretrained

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license)
            return pretrained.push(
                Path(folder),
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """The encoder of a folder, of a name that comes with the package, or of a repository OWNER/NAME of the Hub.

        It is in evaluation mode. Its class is found among the encoders by name; nothing is imported. ValueError if it
        is unknown or no `cls`, if its tensors are damaged or not finite, or if they are not those of its arguments.
        """
        from weightspace.exchange import pretrained

        source, hub = pretrained_model_name_or_path, {"revision": revision, "token": token, "cache_dir": cache_dir}
        options = {**hub, "force_download": force_download, "local_files_only": local_files_only}
        config = pretrained.read_config(source, **options)
        kinds = _kinds()
        try:
            refuse_unknown_name("encoder", config.encoder, sorted(kinds))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if not issubclass(kinds[config.encoder], cls):
            raise ValueError(f"{source} holds a {config.encoder}, not a {cls.__name__}; use Encoder.from_pretrained.")
        tensors = pretrained.read_tensors(source, **{**options, "force_download": False})
        try:
            encoder = filled(lambda: load_from(kinds, "encoder", config.encoder, config.arguments), tensors)
        except UNFIT as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{source} does not fit the encoder that its config.json describes: {reason}.") from None
        assert isinstance(encoder, cls)
        encoder.provenance = config.provenance
        return encoder.eval()


def _kinds() -> dict[str, type[Encoder]]:
    """Every encoder by name, as `encoders.available()`, which cannot be imported from here."""
    return concrete_subclasses(__package__, Encoder)


def refuse_outside(sizes: Mapping[str, int], least: int = 1, most: int = MAX_SIZE) -> None:
    """Raise ValueError for the first size, by the name of its option, that is not from `least` to `most`."""
    for name, size in sizes.items():
        if not least <= size <= most:
            raise ValueError(f"`{name}` (={size}) must be from {least} to {most}.")


def sizes_of(spec: WeightSpec) -> dict[str, int]:
    """Units of each node kind (of `hidden`, in the largest layer), of the largest ordered axis (`ends`), and so on.

    Axes of one kind, and of one layer where they are hidden, count together. Names are those of `max_sizes`.
    """
    sizes: dict[str, int] = {}
    hidden: dict[int, int] = {}
    for axis in spec.axes.values():
        if axis.kind == "channel":
            continue
        if axis.kind == "hidden":
            hidden[axis.layer] = hidden.get(axis.layer, 0) + axis.size
        else:
            sizes[axis.kind] = sizes.get(axis.kind, 0) + axis.size
        if not axis.permutable:
            sizes["ends"] = max(sizes.get("ends", 0), axis.size)
        sizes["layers"] = max(sizes.get("layers", 0), axis.layer + 1)
    sizes["hidden"] = max(hidden.values(), default=0)
    pairs = {sources: spec.axes[sources[0]].size * spec.axes[sources[1]].size for _, _, sources in spec.products()}
    sizes["pairs"] = sum(pairs.values())
    return sizes


def _refuse_too_large(encoder: nn.Module, arguments: tuple[Any, ...]) -> None:
    assert isinstance(encoder, Encoder)
    for stack in arguments[0] if arguments else ():
        encoder.refuse_too_large(stack.family)
