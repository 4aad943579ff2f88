"""A graph as an ONNX file.

`exporter` evaluates the graph on the names of values in a `file`, by the `rules` of its operations; `fusions` finds several
operations that are one, `packed` writes packed leaves.
"""

__all__: list[str] = []
