import math

import pytest
import torch

from omr_ray.algorithm.preference import preference_loss


def test_no_margin_costs_log_2():
    torch.testing.assert_close(preference_loss(torch.ones(2), torch.ones(2)), torch.full((2,), math.log(2)))


def test_the_margin_is_taken_relative_to_the_reference():
    # beta ((2 - 1) - (0.7 - 0.2)) = 1, -log sigmoid(1) = log(1 + 1 / e)
    values = (torch.tensor([v]) for v in (2.0, 1.0, 0.7, 0.2))
    torch.testing.assert_close(preference_loss(*values, beta=2.0), torch.tensor([math.log(1 + math.exp(-1))]))


def test_one_reference_alone_is_an_error():
    with pytest.raises(ValueError, match="reference"):
        preference_loss(torch.ones(1), torch.zeros(1), reference_chosen=torch.ones(1))
