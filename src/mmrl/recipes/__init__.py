"""The authors' hyper-parameters as data, and how a run's values follow from them: each value knows where it came from."""

from mmrl.recipes.resolve import Resolved, Setting, beta_at_test, resolve
from mmrl.recipes.rules import PROTOCOLS, Rule, rules

__all__ = ["PROTOCOLS", "Resolved", "Rule", "Setting", "beta_at_test", "resolve", "rules"]
