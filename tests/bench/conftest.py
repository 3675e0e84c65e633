"""What rows of the bench share."""

import pytest
import torch


@pytest.fixture
def two_threads():
    """Torch with two threads, and as many as before when the row is done."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
