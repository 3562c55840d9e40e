"""log Q(z | whatever is observed): equations 3 to 5 of Ma, Xu, Huang and Zhang (2021) for any pattern of modalities.

The model is the generalised softmax of equation 3, with R the empirical distributions:

    Q(x, y, z)  proportional to  R_X(x) R_Y(y) R_Z(z) exp(phi(f(x), g(y)) . h(z))

An observed modality enters by its embedding; a missing one is averaged out over its support, the embeddings of all
values it takes in training. With addition and concatenation equation 5 factorises, and a missing modality adds one
vector over the classes, the same for every sample:

    log Q(z | x) = log R_Z(z) + f(x) . h_x(z) + c(z) + const,    c(z) = log mean over y' of exp(g(y') . h_y(z))

Only the outer product needs all pairs of samples and support entries; they are streamed, never held at once. Where a
row lacks several modalities it needs all combinations of their entries, of which there are soon too many: then a few
thousand stand for all (`_combinations`).

Shapes: R runs (any leading axes), B batch, M modalities, k embedding, C classes, N support, Q queries.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .networks import zero_
from .settings import FUSIONS

# Scores held at once, over all runs: 8 MB of float32 stay in a processor's cache, 256 MB are few launches on a GPU.
BLOCK_SCORES, BLOCK_SCORES_GPU = 1 << 21, 1 << 26
LEAST_SCORE = -80.0  # less than the largest of a sum: exp(-80) is 2e-35
MOST_COMBINATIONS = 1 << 13  # of the entries of several supports
MOST_NUMBERS = 1 << 25  # of their products, a run: 134 MB
BLOCK_SMALLEST, BLOCK_LARGEST, BLOCK_LARGEST_GPU = 16, 512, 1 << 14  # support entries a block


class _LogMeanExpInner(torch.autograd.Function):
    """log mean over n of exp(queries . keys_n), streamed over blocks of keys; backward recomputes the shares."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, mask: Tensor | None, block: int) -> Tensor:
        """Return the log mean [R, Q] of queries [R, Q, k], keys [R, N, k] and mask [R, N]; an entry at least counts."""
        largest = total = None  # of the blocks so far: [R, Q]
        for start in range(0, keys.shape[1], block):
            scores, _, _ = _scores(queries, keys, mask, start, block)  # [R, Q, n]
            peak = scores.amax(-1)
            # The first block starts the sum: a start from -inf would give (-inf) - (-inf) = NaN on the way. What blocks
            # add that have no entry that counts is lost beside one that has.
            new = peak if largest is None else torch.maximum(largest, peak)
            part = _exp_(scores.sub_(new[..., None])).sum(-1)
            total = part if total is None else part + total * (largest - new).exp()
            largest = new
        # Where no score is a number above the least, no sum is known.
        log_sum = (largest + total.log()).masked_fill(largest <= _least(largest), torch.nan)
        ctx.save_for_backward(queries, keys, mask, log_sum)
        ctx.block = block
        return log_sum - _log_count(keys, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Return the gradients of queries and keys for the gradient [R, Q] of the result."""
        queries, keys, mask, log_sum = ctx.saved_tensors
        to_queries = torch.zeros_like(queries) if ctx.needs_input_grad[0] else None
        to_keys = torch.empty_like(keys) if ctx.needs_input_grad[1] else None
        for start in range(0, keys.shape[1], ctx.block):
            scores, part, counted = _scores(queries, keys, mask, start, ctx.block)
            share = _exp_(scores.sub_(log_sum[..., None])).mul_(grad[..., None])  # of every support entry in the sum
            if to_queries is not None:
                to_queries.baddbmm_(share, part)
            if to_keys is not None:
                block = torch.bmm(share.mT, queries, out=to_keys[:, start : start + ctx.block])
                if counted is not None:
                    zero_(block, counted)
        return to_queries, to_keys, None, None


def _scores(queries: Tensor, keys: Tensor, mask: Tensor | None, start: int, block: int):
    """Return one block's scores [R, Q, n], its keys [R, n, k], and which of its entries count [R, n] (None: all).

    An entry that does not count has the least score, and a key of zeros.
    """
    part = keys[:, start : start + block]
    if mask is None:
        return torch.bmm(queries, part.mT), part, None
    counted = mask[:, start : start + block]
    part = zero_(part.clone(), counted)
    least = (1 - counted.to(part.dtype)) * _least(part)
    return torch.baddbmm(least[:, None], queries, part.mT), part, counted


def _least(scores: Tensor) -> float:
    """Return the score of what does not count: half the least number, which other types of as many bits have too."""
    return torch.finfo(scores.dtype).min / 2


def _exp_(scores: Tensor) -> Tensor:
    """Return exp(scores) in place of scores [..] that are at most about 0, and of a sum that is 1 or more.

    Below the bound, where it is far less than the sum's rounding, a processor takes ten times as long.
    """
    return scores.clamp_(min=LEAST_SCORE).exp_()


def _log_count(keys: Tensor, mask: Tensor | None) -> Tensor | float:
    """Return log N, for each run where a mask says which entries count: [R, 1]."""
    if mask is None:
        return math.log(keys.shape[1])
    return mask.sum(-1, keepdim=True).to(keys.dtype).log()


def log_mean_exp_inner(queries: Tensor, keys: Tensor, mask: Tensor | None = None, block: int | None = None) -> Tensor:
    """Return the log of the mean over n of exp(queries_q . keys_n), without ever holding all Q x N scores.

    queries: [..., Q, k]; keys: [..., N, k]; mask: bool [..., N], which keys count (the others may hold anything, NaN
    included, and get gradient 0), or None for all. Leading axes broadcast. block: keys held at a time, chosen by
    default. Returns [..., Q]. Memory is O(Q block) in both passes.
    ValueError: no key counts in some run.
    """
    _check_support(keys, mask, "keys")
    return _log_mean_exp_inner(queries, keys, mask, block)


def _log_mean_exp_inner(queries: Tensor, keys: Tensor, mask: Tensor | None, block: int | None = None) -> Tensor:
    lead = torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2], mask.shape[:-1] if mask is not None else ())
    queries, keys = _flatten(queries, lead, 2), _flatten(keys, lead, 2)
    mask = mask if mask is None else _flatten(mask, lead, 1)
    if block is None:
        on_cpu = queries.device.type == "cpu"
        scores, largest = (BLOCK_SCORES, BLOCK_LARGEST) if on_cpu else (BLOCK_SCORES_GPU, BLOCK_LARGEST_GPU)
        block = min(max(scores // max(1, queries.shape[0] * queries.shape[1]), BLOCK_SMALLEST), largest)
    result = _LogMeanExpInner.apply(queries.contiguous(), keys, mask, block)
    return result.reshape(*lead, result.shape[-1])


class _Support(NamedTuple):
    """The embeddings that one missing modality is averaged over: keys [R, N, k], mask bool [R, N] or None."""

    keys: Tensor
    mask: Tensor | None


def log_posterior(
    embeddings: Sequence[Tensor],
    observed: Tensor,
    label_embedding: Tensor,
    log_prior: Tensor,
    support: Sequence[Tensor | None],
    fusion: str,
    support_mask: Sequence[Tensor | None] | None = None,
    patterns: Mapping[tuple[bool, ...], int] | None = None,
) -> Tensor:
    """Return log Q(z | observed modalities), normalised over z: equation 4, 5, or 3 with more missing.

    embeddings: M tensors [..., B, k]; entries that are not observed may hold anything, NaN included, and get
        gradient exactly 0.
    observed: bool [..., B, M]; any pattern, a row with nothing observed included.
    label_embedding: h(z) for every class, [..., C, d]; d is k (addition), M k (concatenation, first modality first)
        or k^M (outer product, first modality slowest).
    log_prior: log R_Z, [..., C].
    support: M entries, [..., N_m, k] the embeddings of all values modality m is marginalised over (R uniform over
        them), or None where it is never missing. Several missing modalities are marginalised over the product.
    fusion: "addition", "concatenation" or "outer".
    support_mask: M entries, bool [..., N_m], which support entries count (runs of unequal N), or None for all.
    patterns: the patterns of observed modalities that rows have, each with the most rows of it in a run. By default
        they are read from ``observed``, which waits for the device; where they are given, nothing is read from it, and
        masks are not checked for an entry that counts.

    Returns [..., B, C]. Leading axes are run axes and broadcast.
    ValueError: unknown fusion, shapes that do not fit (expected and found are named), an empty support, or an entry
    that is not observed in a modality without support.
    """
    given = (embeddings, observed, label_embedding, log_prior, support, fusion, support_mask, patterns)
    return log_weights(*given).log_softmax(-1)


def log_weights(
    embeddings: Sequence[Tensor],
    observed: Tensor,
    label_embedding: Tensor,
    log_prior: Tensor,
    support: Sequence[Tensor | None],
    fusion: str,
    support_mask: Sequence[Tensor | None] | None = None,
    patterns: Mapping[tuple[bool, ...], int] | None = None,
) -> Tensor:
    """Return equation 3 of z and what is observed, less what does not depend on the model: [..., B, C].

    That is log R_Z(z) + log mean over the missing of exp(phi . h(z)): log Q(z, what is observed), less the log of R of
    what is observed, plus the log of equation 3's denominator. The denominator is its sum over z of a row with nothing
    observed, so that the same function gives it. Arguments and errors as of `log_posterior`, which normalises over z.
    """
    masks = support_mask if support_mask is not None else [None] * len(embeddings)
    _check_shapes(embeddings, observed, label_embedding, log_prior, support, masks, fusion)
    tails = [*((e, 2) for e in embeddings), (observed, 2), (label_embedding, 2), (log_prior, 1)]
    tails += [(s, 2) for s in support if s is not None] + [(m, 1) for m in masks if m is not None]
    lead = torch.broadcast_shapes(*(tensor.shape[: tensor.ndim - tail] for tensor, tail in tails))

    observed = _flatten(observed, lead, 2)
    heads, prior = _flatten(label_embedding, lead, 2), _flatten(log_prior, lead, 1)
    # NaN must be replaced before any arithmetic: masked afterwards it would still poison the gradients.
    filled = [
        torch.where(observed[..., m, None], _flatten(e, lead, 2), torch.zeros((), dtype=e.dtype, device=e.device))
        for m, e in enumerate(embeddings)
    ]
    checked = [None] * len(masks) if patterns else masks
    patterns = patterns or _count_patterns(observed)
    missing = {m for pattern in patterns for m, seen in enumerate(pattern) if not seen}
    for m in missing:
        _check_support(support[m], checked[m], f"support[{m}]")
    supports = [
        _Support(_flatten(s, lead, 2), None if mask is None else _flatten(mask, lead, 1)) if m in missing else None
        for m, (s, mask) in enumerate(zip(support, masks, strict=True))
    ]
    if fusion == "outer":
        logits = _outer_logits(filled, observed, heads, supports, patterns)
    else:
        k = filled[0].shape[-1]
        slices = [heads] * len(filled) if fusion == "addition" else list(heads.split(k, dim=-1))
        logits = _additive_logits(filled, observed, slices, supports)
    return (logits + prior[:, None]).reshape(*lead, *logits.shape[1:])


def _count_patterns(observed: Tensor) -> dict[tuple[bool, ...], int]:
    """Read the patterns of rows [R, B, M] from the device, each with the most rows of it in a run."""
    every = list(itertools.product((False, True), repeat=observed.shape[-1]))
    counts = torch.stack([matching(observed, pattern).sum(-1).amax() for pattern in every]).tolist()
    return {pattern: count for pattern, count in zip(every, counts, strict=True) if count}


def matching(observed: Tensor, pattern: Sequence[bool]) -> Tensor:
    """Return which rows [R, B, M] have a pattern: bool [R, B]."""
    matching = [observed[..., m] if seen else ~observed[..., m] for m, seen in enumerate(pattern)]
    return functools.reduce(torch.logical_and, matching)


def _additive_logits(
    embeddings: list[Tensor], observed: Tensor, heads: list[Tensor], supports: list[_Support | None]
) -> Tensor:
    """Return the sum over modalities of e . h_m(z) where observed, c_m(z) where not: [R, B, C]."""
    logits = None
    for m, (embedding, head, support) in enumerate(zip(embeddings, heads, supports, strict=True)):
        term = torch.bmm(embedding, head.mT)  # [R, B, C]
        if support is not None:
            marginal = _log_mean_exp_inner(head, *support)  # [R, C]
            term = torch.where(observed[..., m, None], term, marginal[:, None])
        logits = term if logits is None else logits + term
    return logits


def _outer_logits(
    embeddings: list[Tensor],
    observed: Tensor,
    heads: Tensor,
    supports: list[_Support | None],
    patterns: Mapping[tuple[bool, ...], int],
) -> Tensor:
    """Return the logits of the outer product [R, B, C]: the rows of each pattern of observed modalities together."""
    R, B, M = observed.shape
    C, k = heads.shape[1], embeddings[0].shape[-1]
    tensor = heads.reshape(R, C, *[k] * M)
    logits = heads.new_zeros(R, B, C)
    for pattern, most in patterns.items():
        seen = [m for m in range(M) if pattern[m]]
        missing = [supports[m] for m in range(M) if not pattern[m]]
        # Runs have unequal numbers of such rows: the first `most` rows once sorted hold them all, and strays.
        here = matching(observed, pattern)
        rows = here.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]  # [R, n]
        if seen:
            chosen = [embeddings[m].gather(1, rows[..., None].expand(-1, -1, k)) for m in seen]
            part = _contract(tensor, chosen, seen)  # [R, n, C, k, ..] with an axis for each missing modality
        else:
            part = tensor[:, None]  # nothing observed: one row stands for all
        if missing:
            part = _marginal(part.flatten(1, 2), missing).unflatten(1, (-1, C))
        part = part.expand(-1, rows.shape[1], -1)
        part = torch.where(here.gather(1, rows)[..., None], part, torch.zeros_like(part))  # strays add nothing here
        logits = logits.scatter_add(1, rows[..., None].expand(-1, -1, C), part)
    return logits


def _contract(tensor: Tensor, embeddings: list[Tensor], modalities: list[int]) -> Tensor:
    """Contract h's tensor [R, C, k, .., k] with the embeddings [R, n, k] of the modalities observed."""
    first = tensor.movedim(2 + modalities[0], 1)  # [R, k, C, k, ..]
    part = torch.bmm(embeddings[0], first.flatten(2)).unflatten(2, first.shape[2:])  # [R, n, C, k, ..]
    for done, (modality, embedding) in enumerate(zip(modalities[1:], embeddings[1:], strict=True), start=1):
        part = part.movedim(3 + modality - done, -1)
        part = (part * embedding.reshape(*embedding.shape[:2], *[1] * (part.ndim - 3), -1)).sum(-1)
    return part


def _marginal(queries: Tensor, supports: list[_Support]) -> Tensor:
    """Return the log mean of exp over the product of supports: queries [R, Q, k, .., k], an axis each, to [R, Q]."""
    support = supports[0] if len(supports) == 1 else _combinations(supports)
    return _log_mean_exp_inner(queries.flatten(2), *support)


def _combinations(supports: list[_Support]) -> _Support:
    """Return the outer products [R, n, k^q] of combinations of entries of q supports, and which count.

    All combinations, where they are no more than MOST_COMBINATIONS, and equation 3 is exact. Else that many, or as many
    as have MOST_NUMBERS, the same for all rows and steps, spread evenly (Roberts' sequence: multiples of powers of a
    generalised golden ratio). Their mean is near the mean of all; its logarithm is biased by minus half the squared
    error of that mean. Each run's entries that count alone decide which they are, so that its company changes nothing.
    """
    device, R = supports[0].keys.device, supports[0].keys.shape[0]
    counts = [_counts(support) for support in supports]  # [R, 1] each
    width = math.prod(support.keys.shape[-1] for support in supports)
    most = min(MOST_COMBINATIONS, MOST_NUMBERS // width)
    i = torch.arange(min(math.prod(support.keys.shape[1] for support in supports), most), device=device)
    every = functools.reduce(torch.mul, [count.float() for count in counts])
    ratio = 1.0  # solves x^(q + 1) = x + 1
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (len(supports) + 1))
    products, first = None, torch.arange(R, device=device)[:, None]
    for q, (support, count) in enumerate(zip(supports, counts, strict=True), start=1):
        later = functools.reduce(torch.mul, counts[q:], torch.ones_like(count)).clamp(min=1)  # overflows where unused
        spread = i * int(2**32 / ratio**q) % 2**32 * count >> 32  # in integers, which every device has
        chosen = torch.where(every <= most, i // later % count.clamp(min=1), spread)
        keys = support.keys
        if support.mask is not None:
            keys = keys.masked_fill(~support.mask[..., None], 0)
            chosen = support.mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).gather(1, chosen)
        keys = keys.flatten(0, 1)[chosen + first * keys.shape[1]]
        products = keys if products is None else (products[..., None] * keys[..., None, :]).flatten(2)
    return _Support(products, None if all(support.mask is None for support in supports) else i < every)


def _counts(support: _Support) -> Tensor:
    """Return how many entries of a support count in each run: int64 [R, 1]."""
    if support.mask is not None:
        return support.mask.sum(-1, keepdim=True)
    return torch.full((support.keys.shape[0], 1), support.keys.shape[1], device=support.keys.device)


def _flatten(tensor: Tensor, lead: torch.Size, tail: int) -> Tensor:
    """Flatten all run axes into one: [*lead, ...] to [R, ...], the last ``tail`` axes stay."""
    kept = tensor.shape[tensor.ndim - tail :]
    return tensor.expand(*lead, *kept).reshape(-1 if 0 not in kept else lead.numel(), *kept)


def _check_support(keys: Tensor | None, mask: Tensor | None, name: str) -> None:
    if keys is None:
        raise ValueError(
            f"{name} is None, and the modality is not observed in some rows: expected its support [..., N, k].\n"
            f"Pass the embeddings it is marginalised over, or mark the rows as observed."
        )
    empty = keys.shape[-2] == 0 if mask is None else not bool(mask.any(-1).all())
    if empty:
        raise ValueError(
            f"{name} is empty: expected at least one entry that counts in every run, found shape {list(keys.shape)}"
            + ("." if mask is None else f" with {mask.sum(-1).flatten().tolist()} counted.")
        )


def _check_shapes(embeddings, observed, label_embedding, log_prior, support, masks, fusion) -> None:
    """Raise a ValueError that names what was expected and what was found."""

    def expect(what: str, expected: object, found: object) -> None:
        if expected != found:
            raise ValueError(f"{what}: expected {expected}, found {found}.")

    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}: expected one of {', '.join(FUSIONS)}.")
    M = len(embeddings)
    if M == 0:
        raise ValueError("embeddings: expected at least one modality, found none.")
    for name, tensor, axes in [
        *((f"embeddings[{m}]", e, 2) for m, e in enumerate(embeddings)),
        ("observed", observed, 2),
        ("label_embedding", label_embedding, 2),
        ("log_prior", log_prior, 1),
        *((f"support[{m}]", s, 2) for m, s in enumerate(support) if s is not None),
        *((f"support_mask[{m}]", s, 1) for m, s in enumerate(masks) if s is not None),
    ]:
        if tensor.ndim < axes:
            raise ValueError(f"{name}: expected at least {axes} axes, found shape {list(tensor.shape)}.")
    B, k = embeddings[0].shape[-2:]
    for m, embedding in enumerate(embeddings):
        expect(f"last axes [B, k] of embeddings[{m}]", [B, k], list(embedding.shape[-2:]))
    expect("last axes [B, M] of observed", [B, M], list(observed.shape[-2:]))
    expect("type of observed", torch.bool, observed.dtype)
    d = {"addition": k, "concatenation": M * k, "outer": k**M}[fusion]
    expect(f"width d of label_embedding for {fusion} of {M} modalities with k = {k}", d, label_embedding.shape[-1])
    expect("classes of log_prior (C of label_embedding)", label_embedding.shape[-2], log_prior.shape[-1])
    expect("entries of support, one a modality", M, len(support))
    expect("entries of support_mask, one a modality", M, len(masks))
    for m, (keys, mask) in enumerate(zip(support, masks, strict=True)):
        if keys is not None:
            expect(f"width k of support[{m}]", k, keys.shape[-1])
        if keys is not None and mask is not None:
            expect(f"entries of support_mask[{m}] (N of support[{m}])", keys.shape[-2], mask.shape[-1])
            expect(f"type of support_mask[{m}]", torch.bool, mask.dtype)
