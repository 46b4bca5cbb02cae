"""The mutual-information reward (OMR eq. 8) from the scores of a preference model.

By default a sample's own score stands for I(X; Y), as in the paper, which also calls it the preference score. The
functions here are the alternative: a lower bound on I(X; Y) that compares every prompt of a batch with every image.
"""

from __future__ import annotations

import math

import numpy as np


def infonce(scores: np.ndarray) -> float:
    """I(X; Y) >= log N + mean over i of log softmax_j(s_ij)[i] (OMR eq. 8; InfoNCE, arXiv:1807.03748, section 2.3).

    scores [N, N]: image j under prompt i, so that the diagonal holds the pairs that belong together. At most log N.
    """
    return float(np.mean(infonce_credits(scores)))


def infonce_credits(scores: np.ndarray) -> np.ndarray:
    """What each sample adds to `infonce`: log N + log softmax_j(s_ij)[i], float64 [N]. Their mean is the bound."""
    scores = np.asarray(scores, dtype=np.float64)
    highest = scores.max(1)
    log_normaliser = highest + np.log(np.exp(scores - highest[:, None]).sum(1))
    return math.log(len(scores)) + np.diag(scores) - log_normaliser
