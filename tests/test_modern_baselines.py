"""The baselines of other papers: against plain references, and in what is their own."""

import itertools

import pytest
import torch
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.trainer.data import Clips, Dataset, Runs, RunSpec
from mlemiss.trainer.experiments.grid import Grid, plan_grid
from mlemiss.trainer.methods import load, method_names
from mlemiss.trainer.settings import Settings
from torch import nn

from .feature_stores import write_store

torch.set_num_threads(1)
SETTINGS = Settings(dropout=0.0, epochs=2, batch_size=32, hidden=16, dim=5)
BASELINES = ("transformer", "embracenet", "shaspec", "simmlm", "momke", "flex-moe")
WIDTHS = {1: {"audio": 9}, 2: {"visual": 12, "audio": 10}, 4: {"visual": 7, "audio": 5, "text": 6, "pulse": 3}}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Clips of one, two and four modalities, all of them there."""
    folder, whole = tmp_path_factory.mktemp("stores"), {"failed": (), "without_audio": ()}
    return {
        n: Dataset(Clips(write_store(folder, dataset=f"toy{n}", widths=w, **whole))) for n, w in WIDTHS.items() if n > 1
    } | {1: Dataset(Clips(write_store(folder, dataset="toy1", widths={"visual": 9, "audio": 4}, **whole)))}


def build(name, dataset, missing="none", seeds=(0, 1)):
    kind, spec = load(name), parse_missing(missing, None)
    runs = Runs(dataset, [dataset.clips.run(RunSpec(s, spec)) for s in seeds], kind.stages[-1])
    return kind(runs, SETTINGS, "addition"), runs


def every_pattern(widths, runs=2, seed=0):
    """Rows [R, 2^M] of every pattern, and of as many complete ones."""
    g = torch.Generator().manual_seed(seed)
    observed = torch.tensor(list(itertools.product([True, False], repeat=len(widths)))).expand(runs, -1, -1)
    return [torch.randn(runs, observed.shape[1], width, generator=g) for width in widths], observed


def batch_of(runs, size=24):
    rows = runs.rows_of(runs.padded_clips(runs.trained_on)[0])[:, ::3][:, :size]
    return runs.batch(rows, torch.ones(rows.shape))


class Reference(nn.Module):
    """One run's transformer of torch's own layers, in float64, with the keys to be left out as an explicit mask."""

    def __init__(self, method, r):
        super().__init__()
        self.d, self.held, self.r = method.width, [method], r  # held: its parameters stay as they are
        self.parts = nn.ModuleList()
        for block in method.blocks:
            attention = nn.MultiheadAttention(self.d, 4, batch_first=True)
            norms = [nn.LayerNorm(self.d), nn.LayerNorm(self.d)]
            with torch.no_grad():
                attention.in_proj_weight.copy_(block.attention.inputs.weight[r].T)
                attention.in_proj_bias.copy_(block.attention.inputs.bias[r, 0])
                attention.out_proj.weight.copy_(block.attention.output.weight[r].T)
                attention.out_proj.bias.copy_(block.attention.output.bias[r, 0])
                for norm, own in zip(norms, block.norms, strict=True):
                    norm.weight.copy_(own.weight[r, 0])
                    norm.bias.copy_(own.bias[r, 0])
            self.parts.append(nn.ModuleList([attention, *norms]))
        self.double()

    @property
    def method(self):
        return self.held[0]

    def linear(self, layer, x):
        return x @ layer.weight[self.r].double() + layer.bias[self.r].double()

    def forward(self, x, observed):
        """Map M tensors [B, D] and observed [B, M] to log-probabilities [B, C], row by row."""
        rows = []
        for b in range(len(observed)):
            tokens = [self.method.class_token[self.r].double()]
            for m, part in enumerate(self.method.maps):
                mean, std = (moment[self.r].double() for moment in self.method.runs.moments[m])
                z = (x[m][b].double() - mean) / std if observed[b, m] else torch.zeros_like(mean)
                z = z.clamp(-bound, bound) if (bound := self.method.settings.clamp) else z
                tokens.append(self.linear(part.linear, z[None]))
            t = torch.cat(tokens)[None]
            left_out = torch.cat([torch.zeros(1, dtype=torch.bool), ~observed[b]])
            mask = left_out.expand(len(left_out), -1)
            for (attention, first, second), block in zip(self.parts, self.method.blocks, strict=True):
                t = first(t + attention(t, t, t, attn_mask=mask, need_weights=False)[0])
                t = second(t + self.linear(block.feed.output, self.linear(block.feed.hidden, t).relu()))
            rows.append(self.linear(self.method.head, t[:, 0]).log_softmax(-1))
        return torch.cat(rows)


@pytest.mark.parametrize("modalities", [2, 4])
def test_transformer_equals_torchs_own_attention_with_explicit_masks(datasets, modalities):
    method, runs = build("transformer", datasets[modalities], missing="visual:0.2+audio:0.2")
    with torch.no_grad():  # normalisation and biases that matter
        g = torch.Generator().manual_seed(1)
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=g)
    x, observed = every_pattern(WIDTHS[modalities].values())
    seen = [part.masked_fill(~observed[..., m, None], torch.nan) for m, part in enumerate(x)]
    found = method.predict(seen, observed)
    for r in range(2):
        expected = Reference(method, r)(seen_row := [part[r] for part in seen], observed[r])
        assert len(seen_row) == modalities
        torch.testing.assert_close(found[r, :-1].double(), expected[:-1], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found[r, -1], runs.log_prior[r])  # nothing observed
        loss = found[r, :-1, 0].sum()
        parameters = [method.class_token, method.head.weight, method.blocks[0].attention.inputs.weight]
        ours = torch.autograd.grad(loss, parameters, retain_graph=True)
        theirs = torch.autograd.grad(expected[:-1, 0].sum(), [parameters[0], parameters[1]])
        for one, other in zip(ours[:2], theirs, strict=True):
            torch.testing.assert_close(one[r], other[r], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "loss", "own"),
    [
        ("shaspec", "loss", ("maps", "specific", "residual")),
        ("simmlm", "experts_loss", ("experts", "heads")),
        ("momke", "experts_loss", ("maps", "experts", "heads")),
        ("flex-moe", "loss", ("maps",)),
    ],
)
def test_rows_that_lack_a_modality_train_nothing_of_its_own(datasets, name, loss, own):
    """What stands for the missing features is no feature: not to classify, not to align, not to tell apart."""
    method, runs = build(name, datasets[4])
    batch = batch_of(runs)
    batch.observed = batch.observed.clone()
    batch.observed[..., 1] = False
    batch.patterns = {(True, False, True, True): batch.observed.shape[1]}
    getattr(method, loss)(batch).sum().backward()
    for part in own:
        parameters = [list(getattr(method, part)[m].parameters()) for m in (0, 1)]
        assert all(p.grad is None or not p.grad.any() for p in parameters[1]), part
        assert any(p.grad is not None and p.grad.any() for p in parameters[0]), part


def test_flex_moes_gate_is_the_papers(datasets):
    """Row by row in float64: complete rows balance the experts, incomplete ones go to the expert of their pattern."""
    method, runs = build("flex-moe", datasets[2], missing="visual:0.3+audio:0.3")
    batch = batch_of(runs)
    found = method.loss(batch)
    log_probability = method.finished(method.logits(batch.x, batch.observed), batch.observed).double().detach()
    scores = method.block.feed.scores.unflatten(1, batch.observed.shape[1:]).double().detach()
    for r in range(2):
        classified, shares, wrong = [], [], []
        for b, observed in enumerate(batch.observed[r].tolist()):
            classified.append(-log_probability[r, b, batch.label[r, b]])
            if all(observed):
                shares.append(scores[r, b].softmax(-1).mean(0))
            else:
                expert = sum(2**m for m, seen in enumerate(observed) if seen)
                wrong.append(-scores[r, b].log_softmax(-1)[:, expert].mean())
        share = torch.stack(shares).mean(0)
        uneven = share.var(unbiased=False) / share.mean() ** 2
        expected = torch.stack(classified).mean() + 0.01 * (uneven + torch.stack(wrong).mean())
        torch.testing.assert_close(found[r].double(), expected, atol=1e-4, rtol=1e-4)
    assert shares and wrong


@pytest.mark.parametrize("name", BASELINES)
def test_any_number_of_modalities_and_any_pattern(datasets, name):
    for dataset in datasets.values():
        widths = [dataset.features[m].shape[-1] for m in range(len(dataset.clips.modalities))]
        method, runs = build(name, dataset, "visual:0.4+audio:0.3")
        x, observed = every_pattern(widths)
        found = []
        for garbage in (torch.nan, 1e30):
            seen = [torch.where(observed[..., m, None], part, garbage) for m, part in enumerate(x)]
            found.append(method.predict(seen, observed))
        assert torch.equal(*found) and found[0].isfinite().all()
        torch.testing.assert_close(found[0][:, -1], runs.log_prior)
        for stage in method.stages:
            loss = getattr(method, stage.loss)(batch_of(runs))
            assert loss.shape == (2,) and loss.isfinite().all()
            loss.sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_one_modality(datasets, name):
    dataset = datasets[1]
    runs = Runs(dataset, [dataset.clips.run(RunSpec(s)) for s in (0, 1)], load(name).stages[-1])
    x, observed, batch = [torch.randn(2, 5, 9)], torch.ones(2, 5, 1, dtype=torch.bool), batch_of(runs)
    runs.modalities, runs.moments = runs.modalities[:1], runs.moments[:1]
    batch.x, batch.observed = batch.x[:1], batch.observed[..., :1]
    method = load(name)(runs, SETTINGS, "addition")
    assert method.predict(x, observed).shape == (2, 5, 3)
    assert all(getattr(method, stage.loss)(batch).isfinite().all() for stage in method.stages)


def test_they_run_once_whatever_fusions_are_asked_for_and_are_no_references(datasets):
    store = datasets[2].clips.store
    plan = plan_grid([store], Grid(["transformer", "mle", "audio-only"], fusions=["outer", "concatenation"], seeds=1))
    assert [c.method for c in plan.cells].count("transformer") == 1
    assert [load(n).reference for n in ("transformer", "mle", "audio-only")] == [False, False, True]
    assert set(BASELINES) <= set(method_names())


def test_embracenet_draws_what_its_predictions_expect(datasets):
    """The mean of many drawn embeddings is the prediction's: here of scores, which are linear in them."""
    method, runs = build("embracenet", datasets[4], "visual:0.5+audio:0.5+text:0.5")
    batch, taken = batch_of(runs), []
    method.head.register_forward_pre_hook(lambda _, args: taken.append(args[0].detach()))
    for _ in range(400):
        method.loss(batch)
    drawn = torch.stack(taken).double().mean(0)
    taken.clear()
    method.predict(batch.x, batch.observed)
    spread = taken[0].abs().max()
    torch.testing.assert_close(drawn, taken[0].double(), atol=float(spread) * 0.15, rtol=0.1)


@pytest.mark.parametrize("name", ["embracenet", "simmlm"])
def test_what_is_drawn_goes_on_from_a_checkpoint(datasets, name):
    method, runs = build(name, datasets[4])
    batch = batch_of(runs)
    state = method.training_state()
    first = [method.loss(batch).detach() for _ in range(3)]
    other, _ = build(name, datasets[4])
    other.load_state_dict(method.state_dict())
    other.loss(batch)
    other.load_training_state(state)
    again = [other.loss(batch).detach() for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_simmlm_ranks_and_momke_and_shaspec_have_their_parts(datasets):
    method, runs = build("simmlm", datasets[4])
    batch = batch_of(runs)
    state = method.training_state()
    with_ranking = method.loss(batch)
    method.load_training_state(state)
    method.rate = lambda name: torch.zeros(2)
    plain = method.loss(batch)
    assert (with_ranking >= plain).all() and (with_ranking > plain).any()
    expected = -method.predict(batch.x, batch.observed).gather(-1, batch.label[..., None])[..., 0].mean(-1)
    torch.testing.assert_close(plain, expected)


def test_shaspec_lets_the_mean_of_shared_features_stand_in(datasets):
    method, _ = build("shaspec", datasets[2])
    x, observed = every_pattern(WIDTHS[2].values())
    method.residual[0].weight.data.zero_()
    method.residual[0].bias.data.zero_()
    taken = []
    method.head.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    method.predict(x, observed)
    d = method.width
    joined = taken[0][:, 1]  # visual observed, audio missing: the shared visual features stand for both
    torch.testing.assert_close(joined[:, :d], joined[:, d:])


def test_flex_moe_takes_the_bank_of_the_pattern_and_the_best_experts(datasets):
    method, _ = build("flex-moe", datasets[2])
    x, observed = every_pattern(WIDTHS[2].values())
    before = method.predict(x, observed)
    with torch.no_grad():
        method.bank[:, 1, 1] += 5  # visual observed, audio missing
    changed = (method.predict(x, observed) != before).any(-1)
    assert changed.tolist() == [[False, True, False, False]] * 2
    tokens, chosen = torch.randn(2, 7, method.width), []
    experts = method.block.feed
    experts.output.register_forward_pre_hook(lambda _, args: chosen.append(args[0]))
    experts(tokens)
    used = chosen[0].unflatten(-1, (method.EXPERTS, -1)).abs().sum(-1) > 0
    assert (used.sum(-1) <= method.CHOSEN).all() and used.any()
