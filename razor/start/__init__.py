"""Where training starts from: better codes than plain rounding gives, found on a little text without training."""

from razor.start.gptq import GPTQ, Started
from razor.start.holding import holding

__all__ = ["GPTQ", "Started", "holding"]
