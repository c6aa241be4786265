"""Objectives: what a step minimises.

An objective is a dataclass whose fields are its hyper-parameters. Its `step` runs the forward passes of one batch and
hands losses to a `Gradients`; what it must remember from step to step, plain data or tensors, goes into the checkpoint.
A new one is a class in one of these files, a line in OBJECTIVES and a YAML file that names it. Read `objective` first,
then `distillation`; `ranking`, `complexity`, `conflict` (gradients that oppose each other) and `forgetting` (what new
subnets do to others) stand on both; `contrast` needs no labels.
"""

from .complexity import ComplexityAware
from .conflict import ConflictAware
from .contrast import MomentumContrast
from .distillation import AlphaDivergence, FixedTeacher, InPlaceDistillation, alpha_divergence, soft_cross_entropy
from .forgetting import LookBack, NoveltyArchive
from .objective import CrossEntropy, Gradients, Objective, Standalone
from .ranking import PROXIES, Ranking

__all__ = ("OBJECTIVES", "PROXIES", "AlphaDivergence", "ComplexityAware", "ConflictAware", "CrossEntropy",
           "FixedTeacher", "Gradients", "InPlaceDistillation", "LookBack", "MomentumContrast", "NoveltyArchive",
           "Objective", "Ranking", "Standalone", "alpha_divergence", "soft_cross_entropy")

OBJECTIVES = {
    "cross_entropy": CrossEntropy,
    "in_place_distillation": InPlaceDistillation,
    "fixed_teacher": FixedTeacher,
    "alpha_divergence": AlphaDivergence,
    "ranking": Ranking,
    "complexity_aware": ComplexityAware,
    "conflict_aware": ConflictAware,
    "nsas": NoveltyArchive,
    "look_back": LookBack,
    "momentum_contrast": MomentumContrast,
}
