"""The parts of the released step against stored numbers, in float64 and from inputs that a formula makes.

The numbers were computed in NumPy, and with torch's `grid_sample` for the alignment, from the description of
LatentCampus (267c976), by a program that shares nothing with this package. With the released code itself one whole step
agreed: loss 4.9654716 on both sides (see docs/methods.md).
"""

import numpy as np
import pytest
import torch

from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import dense_nt_xent, global_nt_xent, view_nt_xent
from viewalign.losses.reconstruction import masked_huber
from viewalign.networks.teacher import update_ema
from viewalign.training.optimizers import learning_rate
from viewalign.views.latentcampus import read_boxes


def wave(*shape, phase):
    count = int(np.prod(shape))
    k = np.arange(count, dtype=np.float64)
    return torch.from_numpy((np.sin(0.7 * k + phase) + np.cos(1.3 * k * k / count + 2 * phase)).reshape(shape))


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (cosine_consistency, 1.4955623895417174),
        (gram_consistency, 1.382504587293223),
        (lambda *rows: dense_nt_xent(*rows, 0.5, over_batch=True), 4.610950797707729),
    ],
)
def test_consistency(loss, value):
    rows = wave(2, 27, 6, phase=0.1), wave(2, 27, 6, phase=0.9)
    assert float(loss(*rows, torch.ones(2, 27, dtype=torch.float64))) == close(value)


def test_nt_xent_with_and_without_a_teacher():
    student, teacher, subject = wave(2, 4, 8, phase=0.3), wave(2, 4, 8, phase=1.7), torch.arange(4)
    assert float(global_nt_xent(student, teacher, subject, 0.5).loss) == close(3.382369426359364)
    assert float(view_nt_xent(student, subject, 0.5).loss) == close(2.9234193676890152)


def test_huber_over_masked_voxels():
    shape = (1, 1, 4, 5, 6)
    masked = (torch.arange(120) % 3 == 0).view(shape)
    assert float(masked_huber(3 * wave(*shape, phase=0.2), wave(*shape, phase=1.1), masked)) == close(
        2.0305155886493376
    )


def test_the_teacher_after_three_steps():
    teacher = wave(5, phase=0.4)
    for phase in (1.0, 2.0, 3.0):
        update_ema([wave(5, phase=phase)], [teacher], 0.995)
    values = [1.0787982363518431, 1.3635435921218426, 0.6949441992608446, -0.40319756008525776, 0.17332537547856133]
    assert teacher.tolist() == [close(value) for value in values]


@pytest.mark.parametrize(
    ("cells", "total", "squares", "some"),
    [
        (
            (7, 7, 7),
            -56.013593025021514,
            512.5298929043962,
            [-0.680724467463358, 0.05187865879790503, -0.2700939875339197],
        ),
        (
            (2, 7, 7),
            2.471642695248902,
            109.16993033146068,
            [-0.49867873105702315, -0.031092538120990085, -0.015151711508368169],
        ),
    ],
)
def test_the_released_alignment(cells, total, squares, some):
    boxes = torch.tensor([[[0.2, 0.3, 0.1], [1, 1, 1]], [[0, 0, 0], [0.8, 0.7, 0.9]]], dtype=torch.float64)
    read = read_boxes(wave(2, 3, 6, 5, 4, phase=0.6), boxes, cells)
    assert read.shape == (2, 3, *cells[::-1])
    assert float(read.sum()) == pytest.approx(total, abs=1e-10)
    assert float(read.square().sum()) == pytest.approx(squares, rel=1e-12)
    picked = [read[0, 0, 0, 0, 0], read[1, 2, -1, -1, -1], read[0, 1, 3, 2, 1]]
    assert [float(value) for value in picked] == [pytest.approx(value, abs=1e-12) for value in some]


def test_the_rate_meets_the_released_one_where_an_epoch_of_its_warm_up_ends_and_where_one_of_its_decay_begins():
    """150 epochs of 250 steps, 10 of them warm-up: the released rate changes by epoch, ours by step."""
    rate = [learning_rate(step, 150 * 250, 3e-4, 10 * 250, 0.9) for step in range(150 * 250)]
    assert [rate[250 * epoch - 1] for epoch in (1, 10)] == [close(3e-05), close(3e-4)]
    decayed = [0.0003, 0.00016076601938044396, 3.5124166130032806e-06]
    assert [rate[250 * epoch] for epoch in (10, 80, 149)] == [close(value) for value in decayed]
    assert rate[0] == close(3e-4 / 2500)
