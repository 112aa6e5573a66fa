"""Write texts token by token: the likeliest one, the best of several, or drawn ones.

    ids = generate(next_of, start, most=40, end=end)                               greedy
    ids = generate(next_of, start, most=40, end=end, beams=4)                      beam search
    ids = generate(next_of, start, most=40, end=end, share=0.9, generator=g)       nucleus sampling

Nucleus: Holtzman et al. 2019, arXiv:1904.09751: of the likeliest tokens as few as hold `share` of the probability.
Beams are ranked by the mean log probability of their tokens, ends included: the sum would favour short texts.

`next_of(ids, past)` returns the logits behind the last token of `ids`, the tokens that `past` has not read yet.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.errors import InputError
from negah.nn.text import Past

NextOf = Callable[[Int[Tensor, "row new"], Past], Float[Tensor, "row vocabulary"]]
Ids = Int[Tensor, "row _"]  # row, token


@torch.no_grad()
def generate(
    next_of: NextOf, start: Ids, *, most: int, end: int, beams: int = 1, share: float | None = None,
    temperature: float = 1.0, generator: torch.Generator | None = None,
) -> Ids:  # fmt: skip
    """At most `most` tokens behind `start` for each row, `start` left out; `end` fills up what is behind an end.

    Args:
        beams: texts that are followed at a time for each row.
        share: draw instead, from the nucleus of that share, by `generator`; `temperature` divides the logits.

    Raises InputError for numbers out of range, and for drawing with beams.
    """
    if most < 1 or beams < 1 or not temperature > 0 or (share is not None and not 0 < share <= 1):
        raise InputError("most and beams are 1 or more, temperature above 0, and share above 0 and at most 1")
    if share is not None and beams > 1:
        raise InputError("drawn texts have no beams: give share or beams")
    if beams > 1:
        return _beams(next_of, start, most, end, beams)
    past, new, written = Past(), start, []
    done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for _ in range(most):
        logits = next_of(new, past).float()
        token = logits.argmax(1) if share is None else _draw(logits / temperature, share, generator)
        token = token.masked_fill(done, end)
        done = done | (token == end)
        written.append(token)
        if done.all():
            break
        new = token[:, None]
    return torch.stack(written, 1)


def _draw(
    logits: Float[Tensor, "row vocabulary"], share: float, generator: torch.Generator | None
) -> Int[Tensor, " row"]:
    ordered, order = logits.softmax(1).sort(dim=1, descending=True)
    outside = ordered.cumsum(1) - ordered >= share  # the first one is always inside
    drawn = torch.multinomial(ordered.masked_fill(outside, 0), 1, generator=generator)
    return order.gather(1, drawn).squeeze(1)


def _beams(next_of: NextOf, start: Ids, most: int, end: int, beams: int) -> Ids:
    rows = len(start)
    past, new = Past(), start.repeat_interleave(beams, 0)
    written = start.new_empty(rows * beams, 0)
    total = torch.full((rows, beams), -torch.inf, device=start.device)  # log probability
    total[:, 0] = 0  # all beams of a row begin as one
    length = torch.zeros(rows, beams, device=start.device)
    done = torch.zeros(rows, beams, dtype=torch.bool, device=start.device)
    first = torch.arange(rows, device=start.device)[:, None] * beams
    for _ in range(most):
        each = next_of(new, past).float().log_softmax(1).unflatten(0, (rows, beams))
        ended = torch.full_like(each, -torch.inf)
        ended[..., end] = 0  # a beam that has ended goes on as it is
        each = torch.where(done[..., None], ended, each)
        longer = length + (~done)
        sums = total[..., None] + each
        best = (sums / longer[..., None].clamp(min=1)).flatten(1).topk(beams, dim=1).indices
        beam, token = best // each.shape[2], best % each.shape[2]
        total = sums.flatten(1).gather(1, best)
        length = longer.gather(1, beam)
        done = done.gather(1, beam) | (token == end)
        picked = (first + beam).flatten()
        past.pick(picked)
        written = torch.cat([written[picked], token.flatten()[:, None]], 1)
        if done.all():
            break
        new = token.flatten()[:, None]
    best = (total / length.clamp(min=1)).argmax(1)
    return written.unflatten(0, (rows, beams))[torch.arange(rows, device=start.device), best]
