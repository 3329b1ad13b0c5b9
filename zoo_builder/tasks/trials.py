"""Trials of environments with the interface of neurogym: drawn once, aligned at their decision, kept in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weightspace import store
from weightspace.components import plugins
from weightspace.components.discovery import refuse_unknown_name

OWN = "zoo_builder.tasks."
"""Modules whose environments need no permission."""
MOST_NUMBERS = 2**28
"""Most numbers of the inputs of all trials together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Everything that the trials depend on, but for the version of the environment's package."""

    env: str
    options: str
    """The environment's options as JSON."""
    period: str
    num_trials: int
    seed: int

    @property
    def name(self) -> str:
        """A name for these fields and no others."""
        return store.digest(dataclasses.asdict(self))[:16]


class Trials(NamedTuple):
    """Trials that all end with the last step that is asked for; what is before a trial's begin is silence."""

    x: Tensor
    """Inputs (trial, time, input), float32."""
    target: Tensor
    """Right actions (trial, scored) at the last steps, int64."""
    num_actions: int


@lru_cache(maxsize=4)
def trials_of(drawing: Drawing, file: str | None, sha256: str | None) -> Trials:
    """The trials of a file, which is written first where it is missing; drawn and not kept without one."""
    if file is None:
        return drawn(drawing)
    path = Path(file)
    if not path.exists():
        if not path.parent.is_dir():
            raise ValueError(f"`file` (={file!r}): there is no folder {path.parent}; make it, or name another.")
        store.write_durably(path, _bytes(drawing, drawn(drawing)))
    return _read(path, drawing, sha256)


def drawn(drawing: Drawing) -> Trials:
    """Trials drawn from the environment, one after another from one seed."""
    env = _environment(drawing.env, json.loads(drawing.options))
    # Wrappers have neither trials nor periods.
    env = getattr(env, "unwrapped", env)
    _refuse_odd(drawing.env, env)
    env.seed(drawing.seed)
    pairs = [_trial(drawing, env) for _ in range(drawing.num_trials)]
    longest = max(len(ob) for ob, _ in pairs)
    scored = min(len(answers) for _, answers in pairs)
    numbers = len(pairs) * longest * pairs[0][0].shape[1]
    if numbers > MOST_NUMBERS:
        raise ValueError(
            f"{drawing.num_trials} trials of '{drawing.env}' have {numbers:,} inputs, at most {MOST_NUMBERS:,} are "
            "kept; draw fewer, or choose a larger `dt` among the `options`."
        )
    x = np.zeros((len(pairs), longest, pairs[0][0].shape[1]), dtype=np.float32)
    for own, (ob, _) in zip(x, pairs, strict=True):
        own[longest - len(ob) :] = ob
    target = np.stack([answers[len(answers) - scored :] for _, answers in pairs])
    return Trials(torch.from_numpy(x), torch.from_numpy(target.astype(np.int64)), int(env.action_space.n))


def _environment(name: str, options: Mapping[str, Any]) -> Any:
    """The environment of this name in neurogym, or MODULE:CLASS of a package that is allowed."""
    module, colon, attribute = name.partition(":")
    make = partial(_neurogym(name).make, name) if not colon else _of_package(name, module, attribute)
    try:
        return make(**options)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"The environment '{name}' cannot be made with the `options` {options}: {error}.") from None


def _neurogym(name: str) -> Any:
    """The package, where it has an environment of this name."""
    try:
        import neurogym
        from neurogym.envs.registration import all_envs
    except ImportError:
        raise ValueError(
            f"The environment '{name}' is one of neurogym, which is not installed; `pip install "
            f"'weightspace[neurogym]'`, or name one of your own as MODULE:CLASS."
        ) from None
    refuse_unknown_name("environment of neurogym", name, all_envs(psychopy=True, contrib=True, collections=True))
    return neurogym


def _of_package(name: str, module: str, attribute: str) -> Any:
    """What makes an environment in a module of a package that is allowed."""
    if not (module.startswith(OWN) or plugins.covers(module)):
        raise ValueError(
            f"The environment '{name}' would run code of '{module}'; allow its package with `{plugins.OPTION}`."
        )
    try:
        make = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"The environment '{name}' cannot be imported: {error}.") from None
    if not callable(make):
        raise ValueError(f"The module '{module}' has no environment '{attribute}'.")
    return make


def _refuse_odd(name: str, env: Any) -> None:
    """Raise ValueError where trials cannot be drawn, or answers are no classes."""
    missing = [part for part in ("new_trial", "seed", "action_space") if not hasattr(env, part)]
    if missing:
        raise ValueError(f"The environment '{name}' has no `{missing[0]}`; those with trials, as in neurogym, have.")
    if not hasattr(env.action_space, "n"):
        raise ValueError(f"The actions of '{name}' are no classes ({env.action_space}); only classes are read.")


def _trial(drawing: Drawing, env: Any) -> tuple[Any, Any]:
    """Inputs (time, input) of a trial up to the end of its decision, and the right actions (scored,) during it."""
    env.new_trial()
    if not hasattr(env, "ob") or not hasattr(env, "gt"):
        raise ValueError(f"Trials of '{drawing.env}' are no `ob` with a right answer `gt` at each step.")
    ob, gt = np.asarray(env.ob), np.asarray(env.gt)
    if drawing.period:
        begins = getattr(env, "start_ind", {})
        way_out = " Name the one that is answered in `period`, or leave it empty to have every step scored."
        refuse_unknown_name(f"period of '{drawing.env}'", drawing.period, sorted(begins), way_out)
        first, last = int(begins[drawing.period]), int(env.end_ind[drawing.period])
    else:
        first, last = 0, len(ob)
    if not 0 <= first < last <= len(ob) or gt.shape != ob.shape[:1]:
        raise ValueError(
            f"A trial of '{drawing.env}' has {len(ob)} steps, answers {gt.shape} and the period '{drawing.period}' "
            f"from {first} to {last}; expected an answer at each step, and a period of at least one."
        )
    return ob[:last].reshape(last, -1), gt[first:last]


def to_tensors(trials: Trials) -> dict[str, Tensor]:
    """Trials as tensors alone."""
    return {"x": trials.x, "target": trials.target, "num_actions": torch.tensor(trials.num_actions)}


def from_tensors(tensors: Mapping[str, Any], where: str) -> Trials:
    """Trials of tensors of unknown origin; ValueError, which begins with `where`, if they are none."""
    try:
        x, target, num_actions = tensors["x"], tensors["target"], tensors["num_actions"]
        fits = x.dtype is torch.float32 and target.dtype is torch.int64 and (x.dim(), target.dim()) == (3, 2)
        fits = fits and len(x) == len(target) > 0 and 0 < target.shape[1] <= x.shape[1] and x.shape[2] > 0
        fits = fits and bool(x.isfinite().all()) and 0 <= int(target.min()) <= int(target.max()) < int(num_actions)
    except (KeyError, TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(f"{where} are no inputs (trial, time, input) with right actions at their last steps.")
    return Trials(x, target, int(num_actions))


def _bytes(drawing: Drawing, trials: Trials) -> bytes:
    said = json.dumps({**dataclasses.asdict(drawing), "num_actions": trials.num_actions}, sort_keys=True)
    return safetensors.torch.save({"x": trials.x, "target": trials.target}, {"trials": said})


def _read(path: Path, drawing: Drawing, sha256: str | None) -> Trials:
    """The trials of a file; ValueError where it holds others."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ValueError(f"The trials {str(path)!r} have the sha256 {digest}, expected {sha256}: they are others.")
    try:
        with safetensors.safe_open(path, "pt") as opened:
            said = json.loads((opened.metadata() or {})["trials"])
            x, target = opened.get_tensor("x"), opened.get_tensor("target")
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of trials ({error}); remove it, or name another `file`.") from None
    num_actions = said.pop("num_actions", None)
    wanted = dataclasses.asdict(drawing)
    differing = [name for name in wanted if wanted[name] != said.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The trials {str(path)!r} were drawn with `{name}` {said.get(name)!r}, expected {wanted[name]!r}; name "
            "another `file`, or remove this one to have it drawn anew."
        )
    return from_tensors({"x": x, "target": target, "num_actions": num_actions}, f"The trials {str(path)!r}")
