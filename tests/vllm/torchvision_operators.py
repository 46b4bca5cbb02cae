"""Makes torchvision importable beside a CPU build of torch, in every process of the environment that this file is put in.

The index has torchvision only with operators built for CUDA. They do not load, and its Python part, all that vLLM needs,
asks for two of them by name at import: here they are declared, without an implementation.
"""

import sys
from importlib.abc import MetaPathFinder


class _Operators(MetaPathFinder):
    """Finds nothing; what it waits for is the first import of torchvision."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Operators())
