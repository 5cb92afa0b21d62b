"""A model for lm-eval that is none: of several answers it takes the first."""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import LM


class FirstChoice(LM):
    """Answers without reading."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-float(request.idx), request.idx == 0) for request in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return ["" for _ in requests]
