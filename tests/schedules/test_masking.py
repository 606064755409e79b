import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.schedules import masking

SCHEDULES = {
  "linear": masking.linear(),
  "polynomial": masking.polynomial(2.5),
  "cosine": masking.cosine(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
  schedule = SCHEDULES[name]
  with jax.enable_x64(True):
    t = jnp.linspace(0.05, 0.95, 19)
    prob = schedule.mask_prob(t)
    np.testing.assert_allclose(
      schedule.mask_prob(jnp.array([0.0, 1.0])), [0, 1]
    )
    assert (jnp.diff(prob) > 0).all()
    np.testing.assert_allclose(schedule.time(prob), t, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha(t), 1 - prob, rtol=1e-9)
    step = 1e-6
    slope = schedule.mask_prob(t + step) - schedule.mask_prob(t - step)
    np.testing.assert_allclose(
      schedule.dmask_prob(t), slope / (2 * step), rtol=1e-6
    )
    np.testing.assert_allclose(
      schedule.elbo_weight(t), slope / (2 * step) / prob, rtol=1e-6
    )


def test_time_grid_runs_from_noise_to_data():
  np.testing.assert_allclose(masking.time_grid(4), [1, 0.75, 0.5, 0.25, 0])
  with pytest.raises(ValueError, match="num_steps must be >= 1"):
    masking.time_grid(0)
  with pytest.raises(ValueError, match="power must be positive"):
    masking.polynomial(0.0)
