"""The environment that every worker process needs before it imports torch."""

from __future__ import annotations

# Torch's matrix products must have one summation order, whatever the size of the stack and a model's place in it; MKL
# promises that if told before torch is imported. One thread each: workers are as many as cores.
ENVIRONMENT = {
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # The same for products on CUDA, whatever the streams: cuBLAS promises it for workspaces of a fixed size.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
