"""A loss on the order of subnets, which a proxy of their size guides."""

import functools
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from ...nets.zen_score import zen_score
from ...space.arch import ArchConfig
from ...system.errors import UserError, quoted
from .distillation import InPlaceDistillation

#: What an arch's size can be told by, for a ranking loss.
PROXIES = {"macs": ArchConfig.macs, "parameters": ArchConfig.params, "depth": lambda arch: sum(arch.depths),
           "zen_score": functools.lru_cache(maxsize=4096)(zen_score)}
RANKED_ARCHS = 1000  # drawn from a space to tell which part of it is smaller than an arch
RANKED_SLOWLY = {"zen_score": 100}  # the same for a proxy that takes long


@dataclass
class Ranking(InPlaceDistillation):
    """In-place distillation, and for pairs of the step's subnets: the larger one's loss is to be smaller.

    With z the part of the candidates that a proxy puts below an arch, a pair with z_a > z_b costs
    max(0, l_a - sg(l_b) + m), l the cross-entropy to the labels on the same batch and m = margin (z_a - z_b); nothing
    flows to the smaller one (PGONAS, arXiv 2206.13329; RD-NAS, arXiv 2301.09850). Pairs closer than min_gap are left
    out. Weight: nothing while the learning rate rises, then min(weight, epoch / 10). The graphs of all subnets of the
    step are alive at once.
    """

    margin: float = 0.1
    min_gap: float = 0.02
    weight: float = 2.0
    proxy: str = "macs"

    roles = ("ranking",)

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        if self.proxy not in PROXIES:
            raise UserError(f"--objective ranking: proxy takes {', '.join(PROXIES)}; got {quoted(self.proxy)}")
        rng = np.random.default_rng(0)
        self._sizes = np.sort([PROXIES[self.proxy](candidates.sample(rng))
                               for _ in range(RANKED_SLOWLY.get(self.proxy, RANKED_ARCHS))])

    def step(self, net, archs, images, labels, gradients, moment):
        weight = 0.0 if moment.warming_up else min(self.weight, moment.epoch / 10)
        if weight == 0:
            return super().step(net, archs, images, labels, gradients, moment)
        logits = [self.first_logits(net, images, archs[0][1], moment), *(net(images, arch) for _, arch in archs[1:])]
        losses = [F.cross_entropy(each, labels) for each in logits]
        ranking = self.ranking_loss(losses, [arch for _, arch in archs])
        own = [self.cross_entropy(logits[0], labels), *(self.distillation(each, logits[0].detach())
                                                        for each in logits[1:])]
        for (role, _), loss in zip(archs, own):
            gradients.note(role, loss)
        gradients.add("ranking", weight * ranking, others=sum(own))

    def ranking_loss(self, losses: list[paddle.Tensor], archs: list[ArchConfig]) -> paddle.Tensor:
        """The sum over the pairs of scalar losses, in any order."""
        part = [np.searchsorted(self._sizes, PROXIES[self.proxy](arch)) / len(self._sizes) for arch in archs]
        costs = [F.relu(losses[a] - losses[b].detach() + self.margin * (part[a] - part[b]))
                 for a in range(len(archs)) for b in range(len(archs)) if part[a] - part[b] >= self.min_gap]
        return sum(costs) if costs else paddle.zeros([])
