"""LaDa: federated reasoning distillation with learnability-aware data allocation (arXiv 2602.18749)."""

__version__ = "0.1.0"
