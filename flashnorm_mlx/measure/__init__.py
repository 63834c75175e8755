"""Timing, statistics, roofline, and the paper's timing model."""
