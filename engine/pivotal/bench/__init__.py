"""Measuring: cases, one harness that times them, rows of results, comparisons, reports."""
