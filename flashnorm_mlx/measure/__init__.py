"""Timing, statistics and reports, which ``flashnorm bench`` is made of, and the paper's timing model.

Importing this package loads nothing heavy; its modules import MLX when they need it.
"""
