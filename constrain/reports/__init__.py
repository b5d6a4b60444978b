"""Views of a solution beyond the terminal: the HTML page, the notebook's card, plots.

`Solution.report` ends here. Nothing is computed: what a view shows is in the records.
"""

from constrain.reports.views import report

__all__ = ["report"]
