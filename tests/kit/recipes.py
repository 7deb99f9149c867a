"""The shipped recipes."""

from abscot.recipe.load import ROOT

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
