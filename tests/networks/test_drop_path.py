import numpy as np
import pytest
import torch
from torch import nn

from viewalign.networks.primus import DropPath, add_drop_path, sample_drop_path
from viewalign.utils.rng import make_rng


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop_path1 = self.drop_path2 = nn.Identity()


def test_rates_increase_linearly_from_0():
    blocks = [Block() for _ in range(5)]
    made = add_drop_path(blocks, 0.2)
    assert [module.rate for module in made] == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2])
    assert isinstance(blocks[0].drop_path1, nn.Identity)
    assert blocks[1].drop_path1 is made[0]


def test_skipped_images_are_0_and_others_scaled():
    path = DropPath(0.25)
    branch = torch.ones(3, 4, 2)
    assert torch.equal(path(branch), branch), "no path is skipped by default"
    path.scale = torch.tensor([4 / 3, 0.0, 4 / 3])
    assert torch.allclose(path(branch)[:, 0, 0], torch.tensor([4 / 3, 0.0, 4 / 3]))


def test_random_numbers_belong_to_an_image():
    """The branches that an image skips do not depend on the rest of the batch."""
    paths = [DropPath(0.3) for _ in range(6)]
    sample_drop_path(paths, [make_rng(0, sample, "drop path") for sample in range(500)], like := torch.ones(1))
    together = torch.stack([path.scale for path in paths])
    assert sorted(set(together.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    sample_drop_path(paths, [make_rng(0, 7, "drop path")], like)
    assert torch.equal(torch.stack([path.scale for path in paths])[:, 0], together[:, 7])
    assert float((together > 0).double().mean()) == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / together.numel()))
    sample_drop_path(paths, None, like)
    assert all(path.scale is None for path in paths)
