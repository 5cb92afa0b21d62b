"""A side-by-side with the one open peer, `edgerazor` 1.3.5 on PyPI (Apache-2.0, arXiv 2605.04062).

It needs other versions of its libraries than Razor does, so it gets an environment of its own (`environment`)
and each side of a benchmark is a process of its own that works when it is asked to (`sides`). `step` and `loss`
are what runs in the peer's environment: they call its public API and hold none of its code.
"""
