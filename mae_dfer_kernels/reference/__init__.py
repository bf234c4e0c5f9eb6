"""The operators in plain PyTorch: their specification, on any device and in any floating dtype.

One module an operator: the differentiable function, and the ``forward`` and ``backward`` of the backend `eager`.
"""
