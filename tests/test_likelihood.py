"""The likelihood against slow float64 loops over the paper's equations, values and gradients."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from mlemiss.trainer.likelihood import log_mean_exp_inner, log_posterior
from mlemiss.trainer.settings import FUSIONS

torch.set_num_threads(1)  # tiny tensors
B, C, K, N = 7, 4, 3, (9, 5, 4)  # batch, classes, embedding, support entries of each modality


def fuse(parts, fusion):
    """phi(f, g, ..): the paper's figure 3, first modality slowest."""
    if fusion == "addition":
        return sum(parts)
    if fusion == "concatenation":
        return torch.cat(parts)
    fused = parts[0]
    for part in parts[1:]:
        fused = torch.outer(fused, part).flatten()
    return fused


def slow_posterior(embeddings, observed, label_embedding, log_prior, support, fusion, support_mask=None):
    """Equations 3 to 5 as they are written: a double loop over samples and support entries, for one run."""
    masks = support_mask or [None] * len(embeddings)
    rows = []
    for b in range(observed.shape[0]):
        choices = []
        for m, embedding in enumerate(embeddings):
            if observed[b, m]:
                choices.append([embedding[b]])
            else:
                kept = range(len(support[m])) if masks[m] is None else masks[m].nonzero().flatten().tolist()
                choices.append([support[m][n] for n in kept])
        total, count = 0, 0
        for parts in itertools.product(*choices):
            total = total + torch.exp(label_embedding @ fuse(list(parts), fusion))
            count += 1
        weights = torch.exp(log_prior) * total / count
        rows.append(torch.log(weights / weights.sum()))
    return torch.stack(rows)


def problem(fusion, M, pattern=None, masked=False, lead=(), seed=0, dtype=torch.float64):
    """Random inputs of log_posterior: rows of every pattern of observed modalities, or all of one pattern."""
    g = torch.Generator().manual_seed(seed)
    d = {"addition": K, "concatenation": M * K, "outer": K**M}[fusion]

    def draw(*shape):
        return torch.randn(*lead, *shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    if pattern is None:
        observed = torch.rand(*lead, B, M, generator=g) < 0.5
    else:
        observed = torch.tensor(pattern).expand(*lead, B, M)
    masks = None
    if masked:
        masks = [torch.rand(*lead, N[m], generator=g) < 0.6 for m in range(M)]
        for mask in masks:
            mask[..., 1] = True
    return {
        "embeddings": tuple(draw(B, K) for _ in range(M)),
        "observed": observed,
        "label_embedding": draw(C, d),
        "log_prior": draw(C),
        "support": tuple(draw(N[m], K) for m in range(M)),
        "fusion": fusion,
        "support_mask": masks,
    }


def leaves(inputs):
    return [*inputs["embeddings"], inputs["label_embedding"], inputs["log_prior"], *inputs["support"]]


def poisoned(inputs):
    """The same inputs with NaN in every entry that is not observed or does not count."""
    out = dict(inputs)
    out["embeddings"] = tuple(
        torch.where(inputs["observed"][..., m, None], e.detach(), torch.nan).requires_grad_()
        for m, e in enumerate(inputs["embeddings"])
    )
    if inputs["support_mask"] is not None:
        out["support"] = tuple(
            torch.where(mask[..., None], s.detach(), torch.nan).requires_grad_()
            for s, mask in zip(inputs["support"], inputs["support_mask"], strict=True)
        )
    return out


def compare(inputs, slow_value):
    """Value and gradients of the fast posterior, poisoned with NaN, against the slow one's, without."""
    weights = torch.randn(slow_value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad((slow_value * weights).sum(), leaves(inputs), allow_unused=True)
    dirty = poisoned(inputs)
    value = log_posterior(**dirty)
    found = torch.autograd.grad((value * weights).sum(), leaves(dirty), allow_unused=True)
    torch.testing.assert_close(value, slow_value, rtol=1e-12, atol=1e-12)
    for e, f, leaf in zip(expected, found, leaves(dirty), strict=True):
        f = torch.zeros_like(leaf) if f is None else f
        torch.testing.assert_close(f, torch.zeros_like(f) if e is None else e, rtol=1e-10, atol=1e-12)
    for m, e in enumerate(dirty["embeddings"]):
        grad = found[m] if found[m] is not None else torch.zeros_like(e)
        assert (grad[~dirty["observed"][..., m]] == 0).all()  # exactly


PATTERNS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_equals_double_loop_for_every_pattern(fusion, pattern, masked):
    inputs = problem(fusion, 2, pattern, masked)
    compare(inputs, slow_posterior(**inputs))


@pytest.mark.parametrize("M", [1, 2, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_equals_double_loop_for_mixed_patterns_of_m_modalities(fusion, M):
    inputs = problem(fusion, M, masked=True, seed=M)
    compare(inputs, slow_posterior(**inputs))


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_run_axes_equal_single_runs(fusion, lead):
    inputs = problem(fusion, 2, masked=True, lead=lead)
    expected = torch.empty(*lead, B, C, dtype=torch.float64)
    slow = []
    for run in itertools.product(*map(range, lead)):
        one = {name: value[run] for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        for name in ("embeddings", "support", "support_mask"):
            one[name] = [value[run] for value in inputs[name]]
        slow.append(slow_posterior(**one, fusion=fusion))
    expected = torch.stack(slow).reshape(expected.shape)
    compare(inputs, expected)


def test_shared_inputs_broadcast_over_runs():
    inputs = problem("outer", 2, lead=(3,))
    shared = dict(inputs, support=tuple(s[0] for s in inputs["support"]), log_prior=inputs["log_prior"][0])
    repeated = dict(
        inputs,
        support=tuple(s[:1].expand(3, -1, -1) for s in inputs["support"]),
        log_prior=inputs["log_prior"][:1].expand(3, -1),
    )
    torch.testing.assert_close(log_posterior(**shared), log_posterior(**repeated))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_normalised_and_finite_in_float32_at_large_scores(fusion):
    inputs = problem(fusion, 2, masked=True, dtype=torch.float32)
    inputs["label_embedding"] = (inputs["label_embedding"] * 300).detach().requires_grad_()
    value = log_posterior(**inputs)
    torch.testing.assert_close(value.exp().sum(-1), torch.ones(B))
    grads = torch.autograd.grad(value[:, 0].sum(), leaves(inputs), allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


def test_class_without_prior_is_never_predicted():
    inputs = problem("addition", 2)
    inputs["log_prior"] = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().double().requires_grad_()
    value = log_posterior(**inputs)
    assert (value[:, 1] == -torch.inf).all()
    (grad,) = torch.autograd.grad(value[:, 0].sum(), inputs["label_embedding"])
    assert grad.isfinite().all()


def test_no_tensor_over_batch_support_and_classes():
    """Watches every tensor that is made, forward and backward: none may hold B x N x C entries at once."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.entries = max(self.entries, tensor.numel())
            return out

    b, n, c, k = 64, 3000, 6, 8
    keys = torch.randn(n, k, requires_grad=True)
    for fusion, d in [("addition", k), ("concatenation", 2 * k), ("outer", k * k)]:
        observed = torch.ones(b, 2, dtype=torch.bool)
        observed[: b - 4, 1] = False
        inputs = torch.randn(b, k, requires_grad=True), torch.randn(b, k)
        with Largest() as largest:
            h = torch.randn(c, d, requires_grad=True)
            log_posterior(inputs, observed, h, torch.zeros(c), (None, keys), fusion).sum().backward()
        assert keys.numel() <= largest.entries < b * n * c / 4
        assert largest.entries <= (c * n * k if fusion != "outer" else b * c * 1024)


@pytest.mark.parametrize("block", [1, 3, 8, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_gradcheck_in_blocks(block, masked):
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(2, 8, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mask = None
    if masked:  # whole first blocks that do not count
        mask = torch.tensor([[False] * 3 + [True] * 5, [True, False] * 4])
    expected = queries @ keys.mT if mask is None else (queries @ keys.mT).masked_fill(~mask[:, None], -torch.inf)
    count = torch.tensor(8.0) if mask is None else mask.sum(-1, keepdim=True).double()
    torch.testing.assert_close(log_mean_exp_inner(queries, keys, mask, block), expected.logsumexp(-1) - count.log())
    assert torch.autograd.gradcheck(lambda q, s: log_mean_exp_inner(q, s, mask, block), (queries, keys))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_not_finite_and_counts_is_told(value, masked):
    keys = torch.full((1, 4, 2), value, requires_grad=True)
    mask = torch.tensor([[True, False, True, False]]) if masked else None
    queries = torch.ones(1, 3, 2, requires_grad=True)
    found = log_mean_exp_inner(queries, keys, mask, 2)
    assert not found.isfinite().any() and found.isnan().any() | (value > 0)
    assert torch.autograd.grad(found.sum(), queries)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_hundreds_apart(dtype):
    """What is far below the largest is not computed; what an entry holds that does not count is not looked at."""
    keys = torch.linspace(-300, 300, 61, dtype=dtype)[None, :, None].repeat(2, 1, 1)
    mask = torch.rand(2, 61, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, :40] = False  # all that is large for one query, and whole blocks
    keys[~mask] = torch.tensor([torch.nan, torch.inf, 1e30], dtype=dtype).repeat(61)[: int((~mask).sum()), None]
    queries = torch.tensor([[[1.0], [-1.0], [0.01]]] * 2, dtype=dtype)
    queries.requires_grad_(), keys.requires_grad_()
    scores = torch.where(mask[:, None], (queries @ keys.detach().where(mask[..., None], 0).mT).double(), -torch.inf)
    value = log_mean_exp_inner(queries, keys, mask, 7)
    expected = scores.logsumexp(-1) - mask.sum(-1, keepdim=True).double().log()
    torch.testing.assert_close(value.double(), expected, rtol=2e-6 if dtype == torch.float32 else 1e-12, atol=0)
    to_queries, to_keys = torch.autograd.grad(value.sum(), (queries, keys))
    share = scores.softmax(-1)
    of_queries = share @ keys.detach().where(mask[..., None], 0).double()
    torch.testing.assert_close(to_queries.double(), of_queries, rtol=1e-4, atol=1e-30)
    torch.testing.assert_close(to_keys.double(), share.mT @ queries.detach().double(), rtol=1e-4, atol=1e-30)
    assert (to_keys[~mask] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": "product"}, "unknown fusion 'product'"),
        ({"support": (None, None)}, r"support\[[01]\] is None, and the modality is not observed"),
        ({"support": (torch.zeros(0, K),) * 2}, "support.* is empty"),
        ({"support": (torch.zeros(5, K),) * 2, "support_mask": [torch.zeros(5, dtype=torch.bool)] * 2}, "is empty"),
        ({"label_embedding": torch.zeros(C, K + 1)}, f"expected {K}, found {K + 1}"),
        ({"log_prior": torch.zeros(C + 1)}, f"expected {C}, found {C + 1}"),
        ({"observed": torch.ones(B, 3, dtype=torch.bool)}, r"expected \[7, 2\], found \[7, 3\]"),
        ({"observed": torch.ones(B, 2)}, "type of observed"),
        ({"support": (torch.zeros(5, K),)}, "entries of support"),
        ({"support": (torch.zeros(5, K + 2),) * 2}, f"expected {K}, found {K + 2}"),
        ({"embeddings": (torch.zeros(B, K), torch.zeros(B, K + 1))}, "embeddings"),
        ({"embeddings": (torch.zeros(K), torch.zeros(K))}, "at least 2 axes"),
        ({"embeddings": ()}, "at least one modality"),
    ],
)
def test_wrong_input_is_named(change, message):
    inputs = problem("addition", 2)
    with pytest.raises(ValueError, match=message):
        log_posterior(**(inputs | change))


def test_support_is_not_needed_where_nothing_is_missing():
    inputs = problem("outer", 2, (True, True))
    torch.testing.assert_close(log_posterior(**inputs), log_posterior(**(inputs | {"support": (None, None)})))


# A discrete world: X, Y and Z take few values, so the exact maximum of the likelihood can be found another way.

X_VALUES, Y_VALUES, Z_VALUES, WIDTH = 4, 3, 3, 2


def discrete_world(seed):
    """Samples (x, y, z) with y known in the first 300 of 500; every combination occurs, so the maximum is finite."""
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.full(X_VALUES * Y_VALUES * Z_VALUES, 1.5))
    flat = rng.choice(len(joint), size=500 - 2 * len(joint), p=joint)
    flat = np.concatenate([np.arange(len(joint)), flat, np.arange(len(joint))])
    return np.stack(np.unravel_index(flat, (X_VALUES, Y_VALUES, Z_VALUES)), -1), 300


def numpy_loss(table, samples, known, fusion):
    """Equation 2's mean over samples, by enumeration of the joint table, in numpy alone.

    The conditional needs only the score s(x, y, z) = phi(f(x), g(y)) . h(z).
    """
    f, g, h = unpack(table, fusion)
    if fusion == "addition":
        score = (f @ h.T)[:, None] + (g @ h.T)[None]
    elif fusion == "concatenation":
        score = (f @ h[:, :WIDTH].T)[:, None] + (g @ h[:, WIDTH:].T)[None]
    else:
        score = np.einsum("xi,yj,zij->xyz", f, g, h.reshape(-1, WIDTH, WIDTH))
    prior = np.bincount(samples[:, 2], minlength=Z_VALUES) / len(samples)
    share_y = np.bincount(samples[:known, 1], minlength=Y_VALUES) / known
    joint = prior * np.exp(score)  # [x, y, z]
    given_xy = joint / joint.sum(-1, keepdims=True)
    summed = np.einsum("y,xyz->xz", share_y, joint)
    given_x = summed / summed.sum(-1, keepdims=True)
    x, y, z = samples.T
    return -(np.log(given_xy[x, y, z][:known]).sum() + np.log(given_x[x, z][known:]).sum()) / len(samples)


def unpack(table, fusion):
    d = {"addition": WIDTH, "concatenation": 2 * WIDTH, "outer": WIDTH**2}[fusion]
    sizes = [X_VALUES * WIDTH, Y_VALUES * WIDTH, Z_VALUES * d]
    f, g, h = np.split(table, np.cumsum(sizes)[:-1])
    return f.reshape(-1, WIDTH), g.reshape(-1, WIDTH), h.reshape(Z_VALUES, d)


def torch_loss(tables, samples, known, fusion):
    """The same objective through log_posterior, on one-hot inputs."""
    f, g, h = tables
    x, y, z = torch.as_tensor(samples).T
    observed = torch.ones(len(samples), 2, dtype=torch.bool)
    observed[known:, 1] = False
    embedded = torch.where(observed[:, 1:], g[y], torch.nan)
    prior = torch.bincount(z, minlength=Z_VALUES).double() / len(samples)
    value = log_posterior((f[x], embedded), observed, h, prior.log(), (None, g[y[:known]]), fusion)
    return -value.gather(1, z[:, None]).mean()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_finds_the_exact_maximum_of_a_discrete_world(fusion):
    samples, known = discrete_world(0)
    d = {"addition": WIDTH, "concatenation": 2 * WIDTH, "outer": WIDTH**2}[fusion]
    size = (X_VALUES + Y_VALUES) * WIDTH + Z_VALUES * d
    starts = [np.random.default_rng(s).normal(0, 0.7, size) for s in range(3)]

    # Both objectives are one and the same, everywhere.
    for start in starts:
        tables = [torch.tensor(part) for part in unpack(start, fusion)]
        assert torch_loss(tables, samples, known, fusion).item() == pytest.approx(
            numpy_loss(start, samples, known, fusion), rel=1e-12
        )

    exact = min(
        (scipy.optimize.minimize(numpy_loss, start, (samples, known, fusion), method="L-BFGS-B") for start in starts),
        key=lambda result: result.fun,
    )
    best = torch.inf
    for start in starts:
        tables = [torch.tensor(part, requires_grad=True) for part in unpack(start, fusion)]
        optimiser = torch.optim.LBFGS(tables, max_iter=250, line_search_fn="strong_wolfe")

        def closure(tables=tables, optimiser=optimiser):
            optimiser.zero_grad()
            loss = torch_loss(tables, samples, known, fusion)
            loss.backward()
            return loss

        optimiser.step(closure)
        loss = closure().detach()
        if loss.item() < best:
            best, trained = loss.item(), [t.detach() for t in tables]
    assert best == pytest.approx(exact.fun, abs=2e-4)
    constant = numpy_loss(np.zeros(size), samples, known, fusion)
    assert best < constant - 0.02  # there was something to find

    # The conditional itself, on every (x, y) and on every x alone.
    pairs = np.stack(np.unravel_index(np.arange(X_VALUES * Y_VALUES), (X_VALUES, Y_VALUES)), -1)
    x, y = torch.as_tensor(pairs).T
    prior = torch.bincount(torch.as_tensor(samples[:, 2]), minlength=Z_VALUES).double() / len(samples)
    keys = torch.as_tensor(samples[:known, 1])
    for seen in (True, False):
        observed = torch.ones(len(pairs), 2, dtype=torch.bool)
        observed[:, 1] = seen
        found, expected = (
            log_posterior((f[x], g[y]), observed, h, prior.log(), (None, g[keys]), fusion).exp()
            for f, g, h in (trained, [torch.tensor(part) for part in unpack(exact.x, fusion)])
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_a_few_thousand_combinations_stand_for_all():
    """Where a row lacks two modalities of many entries, the outer product's marginal is near that of all pairs."""
    generator = torch.Generator().manual_seed(0)
    R, k, N = 2, 3, (130, 140)  # 18,200 pairs
    f, g, h = (torch.randn(R, n, k, generator=generator, dtype=torch.float64) * 0.7 for n in (5, *N))
    labels = torch.randn(R, 4, k**3, generator=generator, dtype=torch.float64) * 0.15
    mask = torch.rand(R, N[1], generator=generator) < 0.8
    prior = torch.zeros(R, 4, dtype=torch.float64)
    observed = torch.tensor([True, False, False]).expand(R, 5, 3)
    supports, masks = [None, g, h], [None, None, mask]
    nothing = torch.full((R, 5, k), torch.nan, dtype=torch.float64)
    found = log_posterior([f, nothing, nothing], observed, labels, prior, supports, "outer", masks)
    scores = torch.einsum("rbi,rcijk,rmj,rnk->rbcmn", f, labels.unflatten(-1, (k, k, k)), g, h)
    scores = scores.masked_fill(~mask[:, None, None, None], -torch.inf).flatten(-2)
    exact = scores.logsumexp(-1).log_softmax(-1)
    assert 1e-6 < (found - exact).abs().max() < 0.02


def test_combinations_are_those_of_a_run_alone():
    """A run of few entries, wherever they stand, is exact beside one of so many that not all pairs count."""
    generator = torch.Generator().manual_seed(0)
    R, k, N = 3, 3, (300, 400)
    f, g, h = (torch.randn(R, n, k, generator=generator, dtype=torch.float64) for n in (5, *N))
    labels = torch.randn(R, 4, k**3, generator=generator, dtype=torch.float64) * 0.3
    masks = [None, *(torch.rand(R, n, generator=generator) < torch.tensor([[0.02], [0.1], [1.0]]) for n in N)]
    f, labels = f[:1].expand(R, -1, -1), labels[:1].expand(R, -1, -1)
    observed = torch.tensor([True, False, False]).expand(R, 5, 3)
    prior, nothing = torch.zeros(R, 4, dtype=torch.float64), torch.full((R, 5, k), torch.nan, dtype=torch.float64)
    found = log_posterior([f, nothing, nothing], observed, labels, prior, [None, g, h], "outer", masks)
    scores = torch.einsum("rbi,rcijk,rmj,rnk->rbcmn", f, labels.unflatten(-1, (k, k, k)), g, h)
    counted = masks[1][:, None, None, :, None] & masks[2][:, None, None, None]
    exact = scores.masked_fill(~counted, -torch.inf).flatten(-2).logsumexp(-1).log_softmax(-1)
    torch.testing.assert_close(found[:2], exact[:2], rtol=0, atol=1e-10)
    for r in range(R):
        supports = [None, *(s[r : r + 1, m[r]] for s, m in zip((g, h), masks[1:], strict=True))]
        one = [x[r : r + 1] for x in (f, nothing, nothing)]
        alone = log_posterior(one, observed[:1], labels[:1], prior[:1], supports, "outer")
        torch.testing.assert_close(found[r : r + 1], alone, rtol=0, atol=1e-10)
