"""Is a fine-tuned potential still sane where it was not trained? What users look at by hand.

>>> from e3sparse.robustness import PotentialModel, look_at, subjects_of
>>> subjects = subjects_of([1, 6, 8], known=potential.species.numbers)
>>> outcome = look_at(PotentialModel(potential), PotentialModel(base), subjects)
>>> print(outcome.ok, *outcome.verdicts, sep="\\n")

A look gives a `Finding` of one model; two findings, of a fine-tuned model and of its base, make a
`Verdict`. A model is anything with the three names of `Model`.
"""

from e3sparse.robustness.findings import Finding, Verdict
from e3sparse.robustness.models import Model, PotentialModel
from e3sparse.robustness.subjects import Subjects, subjects_of
from e3sparse.robustness.suite import LOOKS, Outcome, look_at

__all__ = [
    "LOOKS",
    "Finding",
    "Model",
    "Outcome",
    "PotentialModel",
    "Subjects",
    "Verdict",
    "look_at",
    "subjects_of",
]
