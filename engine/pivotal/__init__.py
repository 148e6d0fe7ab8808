"""pivotal: invert real images into Stable Diffusion's noise space and edit them with Prompt-to-
Prompt.
"""

__version__ = "0.1.0"
