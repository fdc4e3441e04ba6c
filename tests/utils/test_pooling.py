import pytest
import torch
from torch.nn import functional as F

from viewalign.utils.pooling import masked_mean, valid_fraction


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_masked_mean_agrees_with_float64(dtype):
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, n, n, n, dtype=torch.float64).add(0.1).to(dtype) for n in (32, 8)]
    valid = torch.rand(2, 1, 32, 32, 32) < 0.5
    valid[1] = False
    out = masked_mean(maps, valid)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    fractions = [F.avg_pool3d(valid.double(), 32 // features.shape[2]) for features in maps]
    expected = [
        (features.double() * fraction).sum((2, 3, 4)) / fraction.sum((2, 3, 4)).clamp(min=1e-6)
        for features, fraction in zip(maps, fractions, strict=True)
    ]
    # Rounding of single products to 8 bits nearly cancels in a sum over thousands of cells.
    limit = {torch.bfloat16: 2e-4, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert float((out.double() - torch.cat(expected, 1)).abs().max()) < limit
    assert not out[1].any()


def test_valid_fraction_of_cells():
    valid = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    valid[..., :3] = True
    assert valid_fraction(valid, (2, 2, 2))[0, 0, 0, 0].tolist() == [1.0, 0.5]
