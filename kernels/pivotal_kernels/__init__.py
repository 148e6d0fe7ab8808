"""pivotal's kernels: fused attention with Prompt-to-Prompt routes, and the guided step.

Nothing here knows the engine.
"""
