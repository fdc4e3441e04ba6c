import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from viewalign.views import affines, alignment, feature_grids


def test_sampling_agrees_with_grid_sample_inside():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 6, 7)
    where = torch.rand(2, 50, 3).double() * (torch.tensor([5, 6, 7]) - 1)
    grid = (2 * where / (torch.tensor([5, 6, 7]) - 1) - 1).flip(-1).float()
    expected = F.grid_sample(maps, grid[:, :, None, None], align_corners=True)[..., 0, 0].transpose(1, 2)
    assert torch.allclose(alignment.sample(maps, where), expected, atol=1e-5)


def test_sampling_extrapolates_linearly_past_the_border():
    line = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    where = torch.tensor([[[-0.5, 0.2, 0.7], [3.5, 0.0, 1.0]]]).double()
    assert torch.allclose(alignment.sample(line, where)[0, :, 0], torch.tensor([-0.5, 3.5]))


def test_gradients_of_sampling_and_roi_align():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    where = torch.rand(1, 6, 3).double() * 2
    assert torch.autograd.gradcheck(lambda m: alignment.sample(m, where), (maps,))
    boxes = torch.tensor([[[0.5, 1.0, -0.5], [9.5, 11.0, 8.5]]]).double()
    assert torch.autograd.gradcheck(lambda m: alignment.roi_align_3d(m, boxes, (12, 12, 12), (2, 2, 2)), (maps,))


def plain_roi_align(maps, box, size, cells, samples):
    """Average trilinear reads over each cell, one point at a time."""
    c, *grid = maps.shape
    out = torch.zeros(c, *cells)
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in cells)).tolist():
        total = torch.zeros(c)
        for point in torch.cartesian_prod(*[torch.arange(samples)] * 3).tolist():
            f = []
            for axis in range(3):
                step = (cell[axis] + (point[axis] + 0.5) / samples) / cells[axis]
                voxel = box[0][axis] + (box[1][axis] - box[0][axis]) * step
                f.append((voxel + 0.5) * grid[axis] / size[axis] - 0.5)
            base = [min(max(int(torch.tensor(x).floor()), 0), n - 2) for x, n in zip(f, grid, strict=True)]
            for corner in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
                fraction = 1.0
                for axis in range(3):
                    part = f[axis] - base[axis]
                    fraction *= part if corner[axis] else 1 - part
                total += fraction * maps[:, base[0] + corner[0], base[1] + corner[1], base[2] + corner[2]]
        out[(slice(None), *cell)] = total / samples**3
    return out


def test_roi_align_agrees_with_a_plain_loop():
    torch.manual_seed(1)
    maps = torch.randn(2, 3, 4, 5, 6)
    boxes = torch.tensor([[[0.0, 2, 3], [12, 14, 20]], [[-0.5, -0.5, -0.5], [15.5, 19.5, 23.5]]]).double()
    out = alignment.roi_align_3d(maps, boxes, (16, 20, 24), (3, 2, 4))
    for one, box, got in zip(maps, boxes.tolist(), out, strict=True):
        assert torch.allclose(got, plain_roi_align(one, box, (16, 20, 24), (3, 2, 4), 2), atol=1e-5)


def test_roi_align_of_the_whole_image_on_its_own_grid_is_the_identity():
    maps = torch.randn(1, 2, 4, 4, 4)
    whole = torch.tensor([[[-0.5] * 3, [15.5] * 3]]).double()
    out = alignment.roi_align_3d(maps, whole, (16, 16, 16), (4, 4, 4), samples=1)
    assert torch.allclose(out, maps, atol=1e-6)


def test_points_on_padding_have_weight_0():
    """A view whose far half is padded: the cells there have weight 0, and padding never enters a mean."""
    eye = affines.identity(1)
    valid = torch.ones(2, 1, 1, 16, 16, 16, dtype=torch.bool)
    valid[0, :, :, 8:] = False
    found = alignment.find_correspondences(eye, eye, (16, 16, 16), [(16, 16, 16)], valid, cells=4)
    weight = found.weight.view(4, 4, 4)
    assert (weight[:2] == 1).all()
    assert (weight[3] == 0).all()
    maps = torch.where(valid.flatten(0, 1), 1.0, 1e6)
    a, _ = found.read([maps])
    assert torch.allclose(a[found.weight == 1], torch.ones(()))


def test_half_of_the_neighbours_must_be_valid():
    eye = affines.identity(1)
    for fraction, counts in ((4, True), (3, False)):
        valid = torch.zeros(2, 1, 1, 2, 2, 2, dtype=torch.bool)
        valid.view(2, 8)[:, :fraction] = True
        found = alignment.find_correspondences(eye, eye, (2, 2, 2), [(2, 2, 2)], valid, cells=1, samples=1)
        assert bool(found.weight[0, 0] > 0) is counts


def test_points_without_eight_neighbours_count_only_on_very_coarse_grids():
    eye = affines.identity(1)
    fine = alignment.find_correspondences(eye, eye, (16, 16, 16), [(16, 16, 16)], cells=7)
    assert float(fine.point_weight.mean()) == pytest.approx(1.0)
    coarse = alignment.find_correspondences(eye, eye, (16, 16, 16), [(16, 16, 16), (8, 8, 8)], cells=7)
    inner = [i for i in range(14) if 0.5 <= (i + 0.5) / 14 * 16 - 0.5 <= 14.5]
    assert int(coarse.point_weight.sum()) == len(inner) ** 3
    coarsest = alignment.find_correspondences(eye, eye, (16, 16, 16), [(16, 16, 16), (2, 2, 2)], cells=7)
    assert float(coarsest.point_weight.mean()) == 1.0


def test_an_axis_of_one_cell_is_constant():
    """Thin views reach one cell at the bottom of a deep network: no place along that axis, exact along the others."""
    thin = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 1)
    where = torch.tensor([[[1.5, 0.0, -0.4], [2.25, 1.0, 0.0], [3.5, 2.0, 0.3]]]).double()
    assert torch.allclose(alignment.sample(thin, where)[0, :, 0], torch.tensor([1.5, 2.25, 3.5]))
    assert torch.equal(feature_grids.resize(thin, (4, 4, 6)), thin.expand(1, 1, 4, 4, 6))
    eye = affines.identity(1)
    found = alignment.find_correspondences(eye, eye, (64, 64, 16), [(16, 16, 16), (4, 4, 1)], cells=7)
    assert found.cells == (7, 7, 7)
    assert float(found.weight.mean()) > 0.3


def test_lattice_has_at_most_as_many_cells_as_the_grid():
    eye = affines.identity(1)
    found = alignment.find_correspondences(eye, eye, (16, 16, 16), [(2, 4, 8)], cells=7)
    assert found.cells == (2, 4, 7)


def test_resizing_preserves_ramps_and_agrees_with_torch_inside():
    x = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4)
    up = feature_grids.resize(x, (16, 4, 4))[0, 0, :, 0, 0]
    assert torch.allclose(up, (torch.arange(16.0) + 0.5) / 4 - 0.5)
    torch.manual_seed(0)
    y = torch.randn(2, 3, 4, 5, 6)
    ours = feature_grids.resize(y, (8, 10, 12))
    theirs = F.interpolate(y, (8, 10, 12), mode="trilinear", align_corners=False)
    assert torch.allclose(ours[..., 1:-1, 1:-1, 1:-1], theirs[..., 1:-1, 1:-1, 1:-1], atol=1e-5)
    assert torch.allclose(feature_grids.resize(y, (2, 5, 3)), F.adaptive_avg_pool3d(y, (2, 5, 3)), atol=1e-5)
    with pytest.raises(ValueError, match=r"24.*16"):
        feature_grids.resize_matrix(24, 16)


def test_resizing_bfloat16_makes_no_full_copy_in_float32():
    """Neither forward nor backward: at the resolution of the image it would be the largest tensor of a step."""

    class Largest(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                self.made = max(self.made, out.numel())
            return out

    torch.manual_seed(0)
    maps = torch.randn(2, 3, 16, 32, 8, dtype=torch.bfloat16, requires_grad=True)
    same = maps.detach().double().requires_grad_()
    with Largest() as seen:
        small = feature_grids.resize(maps, (8, 8, 8))
        small.square().sum().backward()
    assert small.dtype == torch.float32
    assert seen.made <= maps.numel() // 2
    exact = feature_grids.resize(same, (8, 8, 8))
    exact.square().sum().backward()
    assert torch.allclose(small.double(), exact, atol=1e-6)
    assert torch.equal(maps.grad, same.grad.float().bfloat16())


def test_gradients_of_resizing():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: feature_grids.resize(m, (2, 5, 4)), (maps,))
