"""Which matrix deserves which bits: scores, sizes, and the plan that loses least within a budget.

A `Space` is all that can be decided about a model; a `ScoreTable` says what each option would cost each matrix in
quality; a `Budget` says how large a plan may be; the knapsack between them is solved exactly. Scores are estimates,
so a plan can be refined and held against true KL. `Search` does all of it in order.
"""

from razor.allocate.automatic import Automatic
from razor.allocate.budget import Budget
from razor.allocate.search import Search, Text
from razor.allocate.solving import Answer
from razor.allocate.space import Held, Space
from razor.allocate.table import ScoreTable

__all__ = ["Answer", "Automatic", "Budget", "Held", "ScoreTable", "Search", "Space", "Text"]
