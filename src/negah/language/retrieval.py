"""Find pictures by words and words by pictures: cosines with everything in an index, best first.

    index = Index.of(names, model.images(pictures))
    found = index.search(model.texts(tokens(["houses with solar panels"])), best=10)

Nothing is approximate: all vectors are compared, a block at a time, so an index may be larger than memory allows to
compare at once (a million vectors of 512 numbers are 1 GB).  `recall` scores it where several answers are right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from negah.errors import InputError
from negah.weights.save import write_tensors

BLOCK = 65_536  # vectors that are compared at a time


class Found(NamedTuple):
    """The best of an index for each query, best first; equal ones in the order of the index."""

    scores: Float[Tensor, "query best"]  # cosines
    numbers: Int[Tensor, "query best"]


@dataclass(frozen=True)
class Index:
    """Unit vectors with a name each.  about: what they are of, which `load` gives back."""

    names: list[str]
    vectors: Float[Tensor, "entry dim"]
    about: Mapping[str, str]

    @classmethod
    def of(
        cls, names: Sequence[str], vectors: Float[Tensor, "entry dim"], about: Mapping[str, str] | None = None
    ) -> "Index":
        """Vectors of any length but 0.  Raises InputError where names and vectors do not fit, or one is not finite."""
        if len(names) != len(vectors):
            raise InputError(f"{len(names)} names for {len(vectors)} vectors: each has one")
        if not vectors.isfinite().all():
            at = int((~vectors.isfinite().all(1)).int().argmax())
            raise InputError(f"the vector of {names[at]} is not finite: the model is broken, or the picture is")
        return cls(list(names), F.normalize(vectors.float(), dim=1), about or {})

    def __len__(self) -> int:
        return len(self.names)

    def search(self, queries: Float[Tensor, "query dim"], *, best: int) -> Found:
        """The `best` nearest of each query, or all where there are fewer.  Raises InputError on another dimension."""
        if queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries of {queries.shape[1]} numbers for an index of {self.vectors.shape[1]}: another model made it"
            )
        queries = F.normalize(queries.float(), dim=1)
        scores, numbers = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for first in range(0, len(self), BLOCK):
            here = queries @ self.vectors[first : first + BLOCK].T
            scores = torch.cat([scores, here], 1)
            numbers = torch.cat([numbers, first + torch.arange(here.shape[1]).expand(len(queries), -1)], 1)
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, :best]
            scores, numbers = scores.gather(1, order), numbers.gather(1, order)
        return Found(scores, numbers)

    def save(self, path: Path) -> Path:
        """A .safetensors file, in half precision; returns its path.  Raises OutputError when it cannot be written."""
        meta = {"format": "pt", "index": json.dumps({"names": self.names, "about": dict(self.about)})}
        write_tensors({"vectors": self.vectors.half()}, path, meta)
        return path

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Raises InputError for what is no index."""
        try:
            with safe_open(str(path), framework="pt") as file:
                content = json.loads((file.metadata() or {})["index"])
                return cls.of(content["names"], file.get_tensor("vectors"), content["about"])
        except (KeyError, ValueError, OSError) as error:
            raise InputError(f"{path} is not an index of `negah search`: remove it, or give another") from error
        except Exception as error:  # safetensors raises its own, undocumented kinds
            raise InputError(f"{path} cannot be read ({error}): remove it, or give another --index") from error


def recall(
    queries: Float[Tensor, "query dim"], index: Index, right: Bool[Tensor, "query entry"], *, best: Sequence[int]
) -> dict[int, float]:
    """R@k: the share of queries with a right answer among the first k, for each k in `best`.

    right: which entries answer a query.  Captions that several pictures share answer all of them: counting only the
    pair that a text was written for would punish what is right.

    Raises InputError for a query without a right answer.
    """
    if not right.any(1).all():
        raise InputError(f"query {int(right.any(1).int().argmin())} has no right answer in the index")
    numbers = index.search(queries, best=max(best)).numbers
    hits = right.gather(1, numbers)
    return {k: hits[:, :k].any(1).double().mean().item() for k in best}
