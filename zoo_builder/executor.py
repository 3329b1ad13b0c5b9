"""Executor of a build, which decides its bytes: method, device, versions."""

from __future__ import annotations

import json
import logging
import platform
from typing import Any

import torch

import weightspace
from weightspace.components import plugins
from weightspace.components.discovery import refuse_unknown_name
from weightspace.rollout import Method, native
from zoo_builder import labels
from zoo_builder.planning.plan import Plan
from zoo_builder.workers.environment import ENVIRONMENT

logger = logging.getLogger(__name__)

# Value of `--method` -> rollout method of cohorts.
ROLLOUTS: dict[str, Method] = {"native": "native", "torch": "stacked"}


def chosen_method(device: str, method: str | None = None) -> str:
    """Method as asked for, else the best available; one warning tells where that is not the usual one."""
    if device != "cpu":
        if method == "native":
            raise ValueError(f"`method` native runs on the CPU, not on '{device}'; use torch there.")
        return method or "torch"
    if method == "torch":
        return method
    reason = native.why_not_here()
    if reason is None:
        return method or "native"
    logger.warning("Models are run by torch, not natively, which is slower: %s.", reason)
    return "torch"


def build_identity(plan: Plan, device: str, method: str) -> dict[str, Any]:
    """Identity of a build: everything that the bytes of a zoo depend on."""
    refuse_unknown_name("method", method, ROLLOUTS)
    refuse_missing_device(device)
    executor = {
        "method": method,
        "device": device,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "mkl_cbwr": ENVIRONMENT["MKL_CBWR"],
    }
    if device == "cuda":
        executor |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    if method == "native":
        executor["compiler"] = native.compiler_version()
    generator: dict[str, Any] = {"name": "zoo_builder", "version": weightspace.__version__}
    packages = plugins.digests(_kinds(plan))
    if packages:
        generator["packages"] = packages
    # Through JSON: equal to the same document read from a file.
    identity: dict[str, Any] = {"recipe": plan.recipe, "executor": executor, "generator": generator}
    return dict(json.loads(json.dumps(identity)))


def refuse_missing_device(device: str) -> None:
    """Raise ValueError unless this machine has such a device."""
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"`device` is '{device}', but torch sees no CUDA device here; build with cpu. What was built on CUDA is "
            "repaired there, and labelled there or with `--other_version`."
        )


def _kinds(plan: Plan) -> set[type]:
    """The classes that a plan is made of."""
    parts = {type(part) for cohort in plan.cohorts for part in (cohort.family, cohort.task, cohort.learner)}
    return parts | {labels.available()[name] for name in plan.recipe["labels"]}
