r"""Answers in MATH's way: what stands in `\boxed{...}`, and when two are equal.

Equality is of strings after a fixed list of clean-ups, those of the MATH data
set's own evaluation; no algebra is done, so `x+1` and `1+x` differ.

Source:
  Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH
  Dataset" (NeurIPS 2021), evaluation rules as used by d1, GDPO and DMPO.
  Differs: where those rules fail on a malformed string they compare the raw
  strings, and here that rule alone is passed over.
"""

import re

BOX = "\\boxed"
_REMOVED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
_WHOLE = "(?:0|-?[1-9][0-9]*)"


def extract(text: str) -> str:
  r"""What the last `\boxed{...}` holds, its braces matched.

  `\boxed 5` ends at the next dollar sign. Text without a box, or with one that
  is left open, is returned as it stands.
  """
  spaced = text.rfind(BOX + " ")
  if spaced >= 0:
    return text[spaced + len(BOX) + 1 :].split("$")[0]
  start = text.rfind(BOX)
  brace = text.find("{", start) if start >= 0 else -1
  if brace < 0:
    return text
  depth = 0
  for i in range(brace, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0)
    if depth == 0:
      return text[brace + 1 : i]
  return text


def normalise(text: str) -> str:
  """The form in which answers are compared."""
  for old in _REMOVED[:2]:
    text = text.replace(old, "")
  text = text.replace("\\\\", "\\")
  text = text.replace("tfrac", "frac").replace("dfrac", "frac")
  for old in _REMOVED[2:]:
    text = text.replace(old, "")
  # Units stand to the right, and in "\text{ " alone.
  if text.count("\\text{ ") == 1:
    text = text.split("\\text{ ")[0]
  text = text.replace("\\%", "")
  text = text.replace(" .", " 0.").replace("{.", "{0.")
  if text.startswith("."):
    text = "0" + text
  # A short name before the only equals sign: "x = 5".
  left, *right = text.split("=")
  if len(right) == 1 and len(left) <= 2:
    text = right[0]
  text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
  text = _fractions(text.replace(" ", ""))
  if text == "0.5":
    return "\\frac{1}{2}"
  # Whole numbers as Python writes them: 3/4, and neither 03/4 nor -0/4.
  return re.sub(rf"\A({_WHOLE})/({_WHOLE})\Z", r"\\frac{\1}{\2}", text)


def equal(first: str, second: str) -> bool:
  """Whether two answers are the same once normalised."""
  return normalise(first) == normalise(second)


def _fractions(text: str) -> str:
  r"""`\frac12` and `\frac1{72}` with all their braces."""
  head, *parts = text.split("\\frac")
  done = [head]
  for part in parts:
    if part and part[0] != "{":
      if len(part) < 2:
        return text
      rest = part[1:] if part[1] == "{" else "{" + part[1] + "}" + part[2:]
      part = "{" + part[0] + "}" + rest
    done.append(part)
  return "\\frac".join(done)
