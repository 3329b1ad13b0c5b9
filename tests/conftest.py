"""The environment of all tests, set before torch is imported."""

import os

from zoo_builder.workers.worker import ENVIRONMENT

# As in a builder's worker: stacked matrix products then have the same bits at any stack size.
os.environ.update(ENVIRONMENT)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch

torch.set_num_threads(1)
