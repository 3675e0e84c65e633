"""What runs in which number format: the page that says so is what the networks do."""

import pytest
import torch

from tests.precision_page import PAGE, VERSION, operators, page


def test_the_page_is_what_was_measured():
    """All tables and every figure of docs/precision.md, which names the torch that it was measured with."""
    if f"with torch {VERSION};" not in PAGE.read_text():
        pytest.skip(f"the page was measured with another torch than {VERSION}")
    assert PAGE.read_text() == page()


def test_normalisation_and_embeddings_work_in_float32():
    """In every network, whatever the device's own list says, and products work in bfloat16.

    Group normalisation takes and gives bfloat16, and works in float32 within (tests/networks/test_networks.py).
    """
    rows = operators()
    for operator, given, output, _, island, _ in rows:
        if operator == "group_norm":
            assert (given, output, island) == ("bfloat16", "bfloat16", "yes")
        if operator in ("layer_norm", "rms_norm", "embedding"):
            assert (given, output, island) == ("float32", "float32", "yes")
        if operator in ("conv2d", "scaled_dot_product_attention"):
            assert (output, island) == ("bfloat16", "no")
    assert {"layer_norm", "group_norm", "rms_norm", "embedding", "conv2d"} <= {row[0] for row in rows}


def test_half_precision_keeps_subnormals():
    """What lies above half of the smallest subnormal is kept, what lies below is 0."""
    half = torch.finfo(torch.float16)
    edge = half.smallest_normal * half.eps / 2
    assert float(torch.tensor(1.01 * edge).half()) > 0
    assert float(torch.tensor(0.99 * edge).half()) == 0
