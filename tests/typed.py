# mypy: warn-unused-ignores
"""What a type checker must find in a user's program. Only mypy reads this: an ignore that is not needed is an error
here, so each of the mistakes below must be found, and nothing else."""

from collections.abc import Sequence

import torch
from torch import nn

import hyperclip_nb as hc
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet


class Doubled(nn.Module):
    "A generator of one's own."

    def __init__(self, net: hc.BaseNet):
        super().__init__()
        self.net, self.latent_size = net, net.size

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 2 * z


def right(w: torch.Tensor, tasks: hc.TaskSet) -> Sequence[object]:
    "Base networks of every kind, where a base network is asked for."
    module = hc.ModuleNet(nn.Linear(3, 2), trainable=("weight",))
    change = hc.LoRANet(nn.Linear(3, 3), rank=1, match=("weight",))
    return MNet(module), HNet(change), hc.HVAE(hc.AdapterNet(8)), hc.set_accuracy(w, tasks, module), Doubled(module)


def wrong(w: torch.Tensor, tasks: hc.TaskSet) -> Sequence[object]:
    "Mistakes."
    return (
        MNet(nn.Linear(3, 2)),  # type: ignore[arg-type]
        HNet("adapter"),  # type: ignore[arg-type]
        hc.set_accuracy(w, tasks, hc.AdapterNet),  # type: ignore[arg-type]
        hc.ModuleNet(hc.AdapterNet(8)),  # type: ignore[arg-type]
        hc.ModuleNet(nn.Linear(3, 2), trainable=1),  # type: ignore[arg-type]
        hc.AdaptorNet(8),  # type: ignore[attr-defined]
    )
