"""Fixtures shared by all tests."""

import os

# Stacked matrix products give the same bits at any stack size only if this is set before torch is imported.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch

torch.set_num_threads(1)
