"""jdiff: diffusion, flow and neural-sampling methods in JAX.

Importing the package loads jax alone; each subpackage is imported on demand:
`import jdiff.ctmc`, `from jdiff import targets`.
"""

__version__ = "0.1.0"
