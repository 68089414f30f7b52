import torch
from torch import nn

from ipcnn_ray.train.runtime import InProcess, StopRun


def test_one_worker_is_a_group_of_one():
    runtime = InProcess()
    net = nn.Linear(1, 1)
    assert runtime.wrap(net) is net
    assert runtime.gather(torch.tensor([3.0, 4.0])).tolist() == [[3.0, 4.0]]
    runtime.report({"epoch": 1.0})
    assert runtime.reported == [{"epoch": 1.0}]


def test_a_stop_says_why_and_whether_it_is_for_good():
    assert str(StopRun("early stopping")) == "early stopping"
    assert not StopRun("early stopping").resumable
    assert StopRun("Ctrl-C", resumable=True).resumable
