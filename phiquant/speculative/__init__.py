"""A model that drafts for itself: a shallower tier writes ahead, its deeper tier verifies."""

from phiquant.speculative.draft import draft as draft
from phiquant.speculative.generate import generate as generate
from phiquant.speculative.statistics import Statistics as Statistics
