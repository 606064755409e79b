"""Fixed nodes and weights for averages over time, `int_0^1 g(t) dt`."""

import numpy as np

from jdiff.core import checks

RULES = ("gauss", "midpoint", "simpson")


def quadrature(rule: str, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights of a rule on `[0, 1]`.

  Args:
    rule: `"gauss"` (Gauss-Legendre, exact for polynomials of degree
      `2 num_nodes - 1`, no node at the ends), `"midpoint"` (equal weights) or
      `"simpson"` (composite, odd `num_nodes >= 3`, with both ends as nodes).
    num_nodes: Nodes `N`.

  Returns:
    `(t, weight)`, `[N]` float64 NumPy arrays, `t` ascending, the weights with
    sum one.

  Raises:
    ValueError: If the rule is not known or has no such number of nodes.
  """
  num_nodes = checks.check_int("num_nodes", num_nodes)
  if rule == "gauss":
    x, weight = np.polynomial.legendre.leggauss(num_nodes)
    return (x + 1) / 2, weight / 2
  if rule == "midpoint":
    t = (np.arange(num_nodes) + 0.5) / num_nodes
    return t, np.full(num_nodes, 1 / num_nodes)
  if rule == "simpson":
    if num_nodes < 3 or num_nodes % 2 == 0:
      raise ValueError(
        f"num_nodes must be odd and >= 3 for rule='simpson', got {num_nodes}."
      )
    weight = np.full(num_nodes, 2.0)
    weight[1::2] = 4.0
    weight[[0, -1]] = 1.0
    return np.linspace(0, 1, num_nodes), weight / weight.sum()
  raise ValueError(f"rule must be one of {RULES}, got {rule!r}.")
