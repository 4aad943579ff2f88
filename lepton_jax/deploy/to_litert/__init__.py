"""A function as a file of LiteRT, once TensorFlow Lite.

`write` gives StableHLO to LiteRT's converter, `points` marks in it what is rounded, `rounded` evaluates a graph with the
values of its sites marked; `rewritten` and `bounded` put in other words what the converter or the engine would get wrong.
"""

__all__: list[str] = []
