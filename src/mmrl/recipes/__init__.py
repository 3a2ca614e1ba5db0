"""The authors' hyper-parameters, one file a method, and how a run's values follow from them: each knows where it came from."""

from mmrl.recipes.read import Source, add_recipe, packaged, recipe_of
from mmrl.recipes.resolve import Resolved, Setting, at_test, publication, resolve
from mmrl.recipes.rules import PROTOCOLS, Publication, Recipe, Rule

__all__ = [
    "PROTOCOLS",
    "Publication",
    "Recipe",
    "Resolved",
    "Rule",
    "Setting",
    "Source",
    "add_recipe",
    "at_test",
    "packaged",
    "publication",
    "recipe_of",
    "resolve",
]
