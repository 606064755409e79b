import ml_collections
import pytest

from experiments.common import config as config_lib


def base():
  return {"width": 8, "rate": 1e-3, "mesh": {"data": 1}, "sizes": (1, 2)}


VARIANTS = {
  "smoke": {},
  "wide": {"width": 64, "mesh": {"data": -1}, "sizes": (3,)},
  "dotted": {"mesh.data": 4, "rate": 1},
  "own": lambda: ml_collections.ConfigDict({"depth": 2}),
}


def parse(arg, variants=VARIANTS):
  return config_lib.parse_variant(arg, variants, base=base)


def test_variants_change_their_base():
  assert parse("smoke").to_dict() == base() | {"variant": "smoke"}
  wide = parse("wide")
  assert (wide.width, wide.mesh.data, wide.sizes) == (64, -1, (3,))
  assert (parse("dotted").mesh.data, parse("dotted").rate) == (4, 1.0)
  assert parse("own").to_dict() == {"depth": 2, "variant": "own"}
  assert wide.is_locked


@pytest.mark.parametrize("arg", [None, "", "smok"])
def test_unknown_variants_list_the_known(arg):
  with pytest.raises(ValueError, match="smoke, wide, dotted, own"):
    parse(arg)


@pytest.mark.parametrize(
  "variant, kind, message",
  [
    ({"depth": 1}, ValueError, "sets depth, which its base"),
    ({"mesh": {"model": 1}}, ValueError, "sets mesh.model"),
    ({"width": "x"}, TypeError, "width"),
    (lambda: {"sizes": [1]}, TypeError, "config.sizes must be a tuple"),
    (lambda: {"a": {"f": len}}, TypeError, "config.a.f must be a number"),
    (lambda: {"s": (1, [2])}, TypeError, "config.s.1 must be a tuple"),
  ],
)
def test_bad_variants_are_refused(variant, kind, message):
  with pytest.raises(kind, match=message):
    parse("bad", {"bad": variant})
