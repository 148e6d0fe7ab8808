"""pivotal's kernels: fused attention with Prompt-to-Prompt routes.

Nothing here knows the engine.
"""
