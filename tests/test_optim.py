"""The optimiser is torch's, number by number, without what torch brings along."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from eegvision.config import OptimConfig
from eegvision.optim import build_optimiser

KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_torch_also_after_a_reload(name):
    config = OptimConfig(name=name, lr=1e-2, weight_decay=0.1)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    ours = build_optimiser(config, one, torch.device("cpu"))
    betas = (config.beta1, config.beta2)
    theirs = KINDS[name](other.parameters(), lr=1e-2, betas=betas, weight_decay=0.1, fused=True)
    for number in range(6):
        for model, optimiser in ((one, ours), (other, theirs)):
            optimiser.zero_grad(set_to_none=True)
            model(torch.arange(3.0) - number).square().sum().backward()
            optimiser.step()
        if number == 2:  # goes on from what a checkpoint holds, torch's own as well
            state = copy.deepcopy(theirs.state_dict())
            assert str(ours.state_dict()) == str(state)
            ours = build_optimiser(config, one, torch.device("cpu"))
            ours.load_state_dict(state)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


SCRIPT = """
import sys
import torch
from eegvision.config import OptimConfig
from eegvision.optim import build_optimiser

model = torch.nn.Linear(3, 2)
optimiser = build_optimiser(OptimConfig(), model, torch.device("cpu"))
optimiser.zero_grad()
model(torch.ones(3)).sum().backward()
optimiser.step()
optimiser.load_state_dict(optimiser.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""


def test_a_process_that_trains_does_not_import_a_compiler():
    assert subprocess.run([sys.executable, "-c", SCRIPT], check=False).returncode == 0
