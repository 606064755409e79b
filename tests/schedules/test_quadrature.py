import numpy as np
import pytest

from jdiff.schedules.quadrature import quadrature


@pytest.mark.parametrize(
  ("rule", "num_nodes", "degree"),
  [("gauss", 1, 1), ("gauss", 3, 5), ("gauss", 5, 9)]
  + [("midpoint", 4, 1), ("simpson", 3, 3), ("simpson", 7, 3)],
)
def test_exact_up_to_a_degree(rule, num_nodes, degree):
  t, weight = quadrature(rule, num_nodes)
  assert t.shape == weight.shape == (num_nodes,) and np.all(np.diff(t) > 0)
  for power in range(degree + 1):
    np.testing.assert_allclose(weight @ t**power, 1 / (power + 1), rtol=1e-13)
  error = weight @ t ** (degree + 1) - 1 / (degree + 2)
  assert abs(error) > 1e-9


def test_known_nodes():
  t, weight = quadrature("gauss", 4)
  np.testing.assert_allclose(t[:2], [0.0694318442, 0.3300094782], rtol=1e-9)
  np.testing.assert_allclose(weight[:2], [0.1739274226, 0.3260725774])
  np.testing.assert_allclose(t + t[::-1], 1)


def test_bad_arguments():
  with pytest.raises(ValueError, match="rule must be one of"):
    quadrature("euler", 2)
  with pytest.raises(ValueError, match="num_nodes must be >= 1, got 0"):
    quadrature("gauss", 0)
  with pytest.raises(ValueError, match="odd and >= 3"):
    quadrature("simpson", 4)
