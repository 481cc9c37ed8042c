"""eegvision.processes: nothing to do alone, and what a BatchNorm over all processes computes.

That two processes equal one is held by `test_train.py`, on whole training runs.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from eegvision import processes
from eegvision.processes import GlobalBatchNorm

CPU = torch.device("cpu")


def test_alone_there_is_nothing_to_exchange():
    rows = torch.tensor([[1.0], [2.0]], requires_grad=True)
    assert (processes.world(), processes.rank()) == (1, 0)
    assert processes.gather(rows) is rows
    assert [processes.is_any(flag, CPU) for flag in (True, False)] == [True, False]
    assert processes.from_first({"a": 0.1, "b": 2.0}, CPU) == {"a": 0.1, "b": 2.0}


def test_rows_come_back_sorted_by_key():
    keys, rows = processes.gather_by_key(torch.tensor([7, 2, 5]), torch.tensor([[70.0], [20.0], [50.0]]))
    assert keys.tolist() == [2, 5, 7]
    assert rows.tolist() == [[20.0], [50.0], [70.0]]


def test_every_batch_norm_is_replaced_and_keeps_its_names():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    names = list(model.state_dict())
    processes.share_batch_norm(model, CPU)
    assert [type(module) for module in model.modules() if "Norm" in type(module).__name__] == [GlobalBatchNorm] * 2
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("plain", "shape"),
    [
        (nn.BatchNorm1d(3), (6, 3)),
        (nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 2)),
        (nn.BatchNorm1d(3, affine=False, eps=0.1), (4, 3, 5)),
    ],
)
def test_the_global_norm_of_one_process_is_batch_norm(tmp_path, plain, shape):
    torch.manual_seed(0)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    ours = GlobalBatchNorm(copy.deepcopy(plain))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for offset in (0, 100):  # a mean of 33 standard deviations: no cancellation
            x = (offset + 3 * torch.randn(shape)).requires_grad_()
            left, right = ours(x), plain(x)
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
            weights = torch.randn(shape)
            (grad_left,), (grad_right,) = (torch.autograd.grad((y * weights).sum(), x) for y in (left, right))
            torch.testing.assert_close(grad_left, grad_right, rtol=1e-3, atol=1e-5)
    finally:
        dist.destroy_process_group()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
