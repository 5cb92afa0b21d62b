"""Scores: what an option would cost a matrix in quality, before anything is trained.

Each is one file here with one class, and one in conf/score that names it (`score=`).

weight_error      squared error of the weights; looks at no text
activation_error  squared error of a layer's outputs, by the mean square of each of its inputs
fisher            second-order estimate of the KL, from gradients at the 16-bit model
kl                the KL itself, one matrix switched at a time
"""

from razor.allocate.scores.activation_error import ActivationError
from razor.allocate.scores.base import Score
from razor.allocate.scores.fisher import Fisher
from razor.allocate.scores.kl import TrueKL
from razor.allocate.scores.weight_error import WeightError

__all__ = ["ActivationError", "Fisher", "Score", "TrueKL", "WeightError"]
