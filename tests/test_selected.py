"""Attention at selected positions: which they are, alone and within models, and that it is computed there only."""

import math
from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, inputs, rotate_plainly, split_heads
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from bestiary.laws import MIXER_LAWS
from bestiary.mixers._cost import add_cost
from bestiary.mixers._mixer import Mixer, take
from bestiary.mixers._softmax import find_repeats
from bestiary.model import Model, memory
from bestiary.spec import parse
from bestiary.tasks._task import stream
from bestiary.training.recipe import clean
from bestiary.training.size import flops

LEARNED, REPEAT = "selected(heads=2)", 'selected(select="repeat", heads=2)'


def weighed(mixer: Any, x: Tensor) -> Tensor:
    """The output if every position attended."""
    q, k, v = (split_heads(z, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    q, k, y = rotate_plainly(q), rotate_plainly(k), torch.zeros_like(v)
    for i in range(x.shape[1]):
        scores = torch.einsum("bhd, bjhd -> bhj", q[:, i], k[:, : i + 1]) / math.sqrt(DIM // 2)
        y[:, i] = torch.einsum("bhj, bjhd -> bhd", scores.softmax(-1), v[:, : i + 1])
    return mixer.out(y.flatten(2))


def first(on: Tensor, most: int) -> Tensor:
    """Of what is on in each row, the first so many."""
    kept = torch.zeros_like(on)
    for row, wanted in zip(kept, on, strict=True):
        row[wanted.nonzero().flatten()[:most]] = True
    return kept


def repeated(ids: Tensor) -> Tensor:
    return torch.tensor([[row[i] in row[:i] for i in range(len(row))] for row in ids.tolist()])


def worded(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Sequences of few different vectors, one of them all zeros of either sign, and whether each occurred before."""
    words, ids = torch.randn(12, DIM, dtype=dtype), torch.randint(13, (BATCH, TIME))
    words = torch.cat([words, torch.zeros(1, DIM, dtype=dtype)])
    x = words[ids] * torch.where(torch.rand(BATCH, TIME, 1) < 0.5, -1.0, 1.0).masked_fill((ids < 12)[..., None], 1.0)
    return x.to(dtype), repeated(ids)


# By itself


def test_selected_positions_attend_as_much_as_the_router_trusts_them() -> None:
    mixer, x = build_mixer(LEARNED), inputs()
    gate = (x @ mixer.router.weight.T).sigmoid()
    assert_same(mixer(x)[0], torch.where(gate > 0.5, gate, 0) * weighed(mixer, x))


def test_the_router_learns_from_every_position() -> None:
    mixer, x = build_mixer(LEARNED), inputs()
    found, wanted = mixer(x)[0], (x @ mixer.router.weight.T).sigmoid() * weighed(mixer, x).detach()
    pull = torch.randn_like(found)
    (soft,) = torch.autograd.grad((pull * wanted).sum(), mixer.router.weight)
    (hard,) = torch.autograd.grad((pull * found).sum(), mixer.router.weight)
    assert_same(hard, soft)


@pytest.mark.parametrize("most", [5, 20])
def test_a_router_that_may_select_so_many_learns_from_those(most: int) -> None:
    mixer, x = build_mixer(f"selected(heads=2, most={most})"), inputs()
    gate = (x @ mixer.router.weight.T).sigmoid()
    on = first(gate.squeeze(-1) > 0.5, most)
    assert most == 5 or len(on.sum(1).unique()) > 1
    found, wanted = mixer(x)[0], on.unsqueeze(-1) * gate * weighed(mixer, x)
    assert_same(found, wanted)
    pull = torch.randn_like(found)
    for weight in mixer.parameters():
        (soft,) = torch.autograd.grad((pull * wanted).sum(), weight, retain_graph=True)
        (hard,) = torch.autograd.grad((pull * found).sum(), weight, retain_graph=True)
        assert_same(hard, soft)


@pytest.mark.parametrize("most", [None, 3])
def test_random_selection_is_a_share_of_positions_fixed_by_the_seed(most: int | None) -> None:
    mixer, x = build_mixer(f'selected(select="random", heads=2, share=0.4, most={most})'), inputs()
    found = mixer(x)[0]
    on = found.abs().amax((0, 2)) > 0
    assert_same(found, on.double()[:, None] * weighed(mixer, x))
    assert on.sum() == (most or 8)
    assert torch.equal(on, first(on_of('select="random", share=0.4', TIME), most or TIME)[0])


def on_of(options: str, time: int) -> Tensor:
    mixer, x, where = build_mixer(f"selected({options})"), torch.zeros(1, time, DIM).double(), torch.arange(time)
    return mixer.attends(x, where, mixer.update_cache(x, None))


def test_a_random_share_is_that_of_the_positions() -> None:
    on = on_of('select="random", share=0.4', 10_000)
    assert on.double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert not torch.equal(on, on_of('select="random", share=0.4, seed=1', 10_000))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_repeats_are_found_bit_by_bit(dtype: torch.dtype) -> None:
    mixer, (x, before) = build_mixer(REPEAT).to(dtype), worded(dtype)
    assert torch.equal(mixer.attends(x, torch.arange(TIME), mixer.update_cache(x, None)), before)


def test_repeats_of_tokens_are_found_whatever_the_features() -> None:
    mixer, x, ids = build_mixer(REPEAT), inputs(), torch.randint(9, (BATCH, TIME))
    assert_same(mixer(x, tokens=ids)[0], repeated(ids).unsqueeze(-1) * weighed(mixer, x))
    assert not mixer(x)[0].any()


@pytest.mark.parametrize("most", [None, 4])
def test_repeated_inputs_attend_and_a_cut_changes_nothing(most: int | None) -> None:
    mixer, (x, before) = build_mixer(f'selected(select="repeat", heads=2, most={most})'), worded()
    whole, state = mixer(x)
    assert_same(whole, first(before, most or TIME).unsqueeze(-1) * weighed(mixer, x))
    for cut in (1, 7, TIME - 1):
        head, state = mixer(x[:, :cut])
        assert_same(torch.cat([head, mixer(x[:, cut:], state)[0]], 1), whole)
    where = torch.tensor([[0, 5, 22, 7, 7, 7], [3, 3, 17, 18, 19, 20]])
    for asked in (where, where[:, :3]):
        assert_same(mixer.parallel(x, asked), torch.stack([y[places] for y, places in zip(whole, asked, strict=True)]))


@pytest.mark.parametrize("law", [law for law in MIXER_LAWS if law != "no dead state"])  # a yes or no has no gradient
def test_a_router_that_may_select_so_many_obeys(law: str) -> None:
    MIXER_LAWS[law](parse("mixers", "selected(most=20)")[0])


@pytest.mark.parametrize("law", [law for law in MIXER_LAWS if law not in ("no dead state", "gradients")])
def test_a_router_among_repeats_obeys(law: str) -> None:  # where nothing repeats, nothing attends and no gradient flows
    MIXER_LAWS[law](parse("mixers", 'selected(select="learned_repeat", share=0.5, open=2, ramp=2)')[0])


@pytest.mark.parametrize("options", ["", "most=6", 'select="random"', 'select="random", most=6', 'select="repeat"'])
def test_where_no_gradient_is_asked_for_the_same_comes_of_selected_positions_alone(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, (x, _), computed = build_mixer(f"selected({options})"), worded(), []
    monkeypatch.setattr(type(mixer), "computed_count", lambda *given: given[1].shape[1])
    dense = mixer(x)[0]
    monkeypatch.undo()
    queries = mixer.queries
    monkeypatch.setattr(mixer, "queries", lambda x, where: computed.append(x.shape[1]) or queries(x, where))
    with torch.no_grad():
        assert_same(mixer(x)[0], dense)
        assert_same(mixer.parallel(x), dense)
    most = int((dense.abs().amax(2) > 0).sum(1).max())
    assert computed == [most, most]
    assert 0 < most < TIME


def test_where_nothing_is_selected_the_output_is_zero() -> None:
    mixer, x = build_mixer(REPEAT), inputs()
    y, _ = mixer(x)
    assert not y.any()
    y.sum().backward()
    assert not mixer.v.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    mixer, (x, _) = build_mixer('selected(select="repeat", most=6)'), worded()
    wanted = mixer(x)[0]
    found = mixer.to(dtype)(x.to(dtype))[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0.1, atol=0.1 * wanted.abs().max().item())


# What it costs


def test_the_work_of_so_many_positions_grows_with_the_length_and_not_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bestiary.ops.attention.FUSED", math.inf)  # products of matrices, which are counted

    def growth(mixer: str) -> float:
        short, long = (
            clean(f"{mixer}, base_conv(filter='short')", train=f"mqar(length={n}, pairs=8)", dim=16, depth=2)
            for n in (256, 1024)
        )
        return 4 * flops(long) / flops(short)

    assert growth("selected(most=8)") < 4.5
    assert growth("attention(window=16)") < 4.5
    assert growth("selected") > 10


@pytest.mark.parametrize("most", ["None", "9"])
def test_a_penalty_is_that_of_the_papers_code_and_leaves_the_output(most: str) -> None:
    mixer, plain = (build_mixer(f"selected(most={most}, penalty={p})") for p in (0.5, 0))
    x, aim = inputs(), (9 if most == "9" else math.sqrt(TIME)) / TIME
    assert_same(mixer.train().parallel(x), plain.train().parallel(x))
    costs = 0.5 * ((x @ mixer.router.weight.T).sigmoid().mean() - aim)
    (extra,) = torch.autograd.grad(costs, mixer.router.weight)
    grads = [torch.autograd.grad(m.parallel(x).square().sum(), m.router.weight)[0] for m in (mixer, plain)]
    assert_same(grads[0] - grads[1], extra)
    (off,) = torch.autograd.grad(mixer.eval().parallel(x).square().sum(), mixer.router.weight)
    assert_same(off, grads[1])


@pytest.mark.parametrize(("most", "time"), [("22", 23), ("None", 3)])
def test_a_penalty_ends_where_few_are_selected(most: str, time: int) -> None:
    mixer, x = build_mixer(f"selected(most={most}, penalty=1)"), inputs(time)
    wanted = torch.autograd.grad(mixer.eval().parallel(x).square().sum(), mixer.router.weight)
    assert_same(torch.autograd.grad(mixer.train().parallel(x).square().sum(), mixer.router.weight)[0], wanted[0])


def test_a_cost_is_added_under_vmap_too() -> None:
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    vmap(lambda w: add_cost(2 * w, w.square()))(w).sum().backward()
    assert_same(w.grad, 2 + 2 * w.detach())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("penalty", [-1, 'select="random", penalty=1'])
def test_a_penalty_without_a_router_or_below_zero_is_refused(penalty: Any) -> None:
    options = penalty if isinstance(penalty, str) else f"penalty={penalty}"
    with pytest.raises(ValueError, match="only a router has one"):
        parse("mixers", f"selected({options})")[0].build(DIM)


# Within models


PATTERNS = {
    "second layer": "base_conv, selected(select='repeat')",
    "so many": "base_conv, selected(select='repeat', most=4)",
    "serial": "base_conv, serial('short_conv, selected(select=\"repeat\")')",
    "serial, first": "base_conv, serial('selected(select=\"repeat\"), short_conv')",
    "parallel": "base_conv, parallel('selected(select=\"repeat\"), short_conv')",
    "gated sum": "base_conv, gated_sum('short_conv, selected(select=\"repeat\")')",
}


def model(pattern: str, **changes: Any) -> Model:
    built = Model(20, **({"dim": 16, "depth": 3, "pattern": parse("mixers", pattern)} | changes)).double().eval()
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return built


def inner(built: Model) -> Any:
    return next(m for m in built.modules() if isinstance(m, Mixer) and hasattr(m, "attends"))


@pytest.mark.parametrize("name", PATTERNS)
def test_a_model_tells_its_tokens_at_any_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, tokens, seen = model(PATTERNS[name], positions=24), torch.randint(20, (3, 24)), []
    mixer, wanted = inner(built), first(repeated(tokens), 4 if name == "so many" else 24)
    attending = mixer.attends
    monkeypatch.setattr(mixer, "attends", lambda *given: seen.append(attending(*given)) or seen[-1])
    built(tokens)
    built.parallel(tokens)
    assert len(seen) == 2
    assert torch.equal(seen[0], wanted)
    assert torch.equal(seen[1], wanted)


@pytest.mark.parametrize("name", PATTERNS)
def test_cutting_a_text_changes_no_logit(name: str) -> None:
    built, tokens = model(PATTERNS[name], depth=4), torch.randint(20, (3, 24))
    whole, _ = built(tokens)
    where = torch.tensor([[0, 8, 23]] * 3)
    assert_same(built.parallel(tokens, where), whole[:, where[0]])
    for cuts in ((1,), (2,), (12,), (23,), (1, 2, 5, 11), tuple(range(1, 24))):
        state, parts = None, []
        for start, end in zip((0, *cuts), (*cuts, 24), strict=True):
            y, state = built(tokens[:, start:end], state)
            parts.append(y)
        assert_same(torch.cat(parts, 1), whole)


def test_models_of_vectors_have_no_tokens_to_tell() -> None:
    built, words = model(PATTERNS["second layer"], features=5), torch.randn(4, 5).double()
    assert built(words[torch.randint(4, (2, 9))])[0].isfinite().all()


def test_a_token_is_one_number_of_the_state() -> None:
    def kept(select: str) -> int:
        pattern = parse("mixers", f"selected(select={select!r})")
        return memory(lambda: Model(20, dim=16, depth=1, pattern=pattern), time=30).numbers

    assert kept("repeat") == 30 * (2 * 16 + 1)
    assert kept("learned") == kept("random") == 30 * 2 * 16


def test_more_questions_than_attend_may_be_asked_of_a_stack() -> None:
    mixer, x, where = (
        build_mixer("selected(most=4)"),
        inputs(),
        torch.tensor([[0, 1, 2, 22, 22, 22], [3, 3, 3, 3, 3, 3]]),
    )
    found = vmap(lambda x: mixer.parallel(x, where))(x.unsqueeze(0))[0]
    assert_same(found, take(mixer(x)[0], where))


@pytest.mark.parametrize("name", PATTERNS)
def test_stacked_models_compute_what_each_does(name: str) -> None:
    models, tokens = [model(PATTERNS[name]) for _ in range(3)], torch.randint(20, (3, 2, 24))
    weights, buffers = stack_module_state(models)  # pyright: ignore[reportArgumentType]
    found = vmap(lambda w, b, t: functional_call(models[0], (w, b), (t,))[0])(weights, buffers, tokens)
    assert_same(found, torch.stack([one(own)[0] for one, own in zip(models, tokens, strict=True)]))


def test_repeats_are_equal_neighbours_in_a_stable_order() -> None:
    ids = torch.randint(6, (5, 40))
    assert torch.equal(find_repeats(ids), repeated(ids))


# A router that begins with every position and ends with a share of them


OPEN = "selected(heads=2, share=0.25, open=3, ramp=4)"
OPEN_REPEATS = 'selected(select="learned_repeat", heads=2, share=0.25, open=3, ramp=4)'


def trained_for(passes: int, text: str = OPEN) -> Any:
    """The mixer after some training passes over sequences of few different vectors, in training mode."""
    mixer = build_mixer(text).train()
    with torch.no_grad():
        mixer.router.weight.copy_(0.5 * torch.randn(mixer.router.weight.shape, generator=stream("router", 0)))
        for i in range(passes):
            words = torch.randn(12, DIM, generator=stream("router", i), dtype=torch.float64)
            mixer.parallel(words[torch.randint(12, (BATCH, TIME), generator=stream("ids", i))])
    return mixer


def may_attend(text: str, before: Tensor) -> Tensor:
    return before if text == OPEN_REPEATS else torch.ones_like(before)


@pytest.mark.parametrize("text", [OPEN, OPEN_REPEATS])
def test_an_open_router_selects_all_and_then_those_above_the_cut(text: str) -> None:
    x, before = worded()
    for passes, cut in ((0, False), (3, False), (4, False), (8, True), (9, True)):
        mixer = trained_for(passes, text)
        assert bool(mixer.router.cut.isfinite()) == cut
        on = may_attend(text, before) & ((x @ mixer.router.weight.T).squeeze(-1) > mixer.router.cut)
        assert bool((on == may_attend(text, before)).all()) != cut
        expected = on.unsqueeze(-1) * weighed(mixer, x)
        for mode in (False, True):
            assert_same(mixer.train(mode)(x)[0], expected)
        assert_same(mixer.eval().parallel(x), expected)


@pytest.mark.parametrize("text", [OPEN, OPEN_REPEATS])
def test_the_share_falls_while_training_to_that_which_is_wanted(text: str) -> None:
    mixer, shares = trained_for(0, text.replace("ramp=4", "ramp=200")), []
    words = 2 * torch.randn(12, DIM, dtype=torch.float64)
    for _ in range(600):
        x = words[torch.randint(12, (BATCH, TIME))] + 0.0
        where = torch.arange(TIME)
        shares.append(float(mixer.attends(x, where, mixer.update_cache(x, None)).double().mean()))
        mixer.parallel(x)
    assert shares[2] == pytest.approx(0.6 if text == OPEN_REPEATS else 1.0, abs=0.1)
    assert sum(shares[95:105]) / 10 == pytest.approx(0.58 if text == OPEN_REPEATS else 0.64, abs=0.08)
    assert sum(shares[300:]) / 300 == pytest.approx(0.25, abs=0.03)
    before = mixer.router.cut.clone(), mixer.router.passes.clone()
    mixer.eval().parallel(inputs())
    assert (mixer.router.cut, mixer.router.passes) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("passes", [0, 5, 9])
@pytest.mark.parametrize("text", [OPEN, OPEN_REPEATS])
def test_an_open_router_never_looks_ahead(text: str, passes: int, training: bool) -> None:
    x, _ = worded()
    whole = trained_for(passes, text).train(training).parallel(x)
    for time in (1, TIME // 2, TIME - 1):
        changed = x.clone()
        changed[:, time:] = x[:, :1]
        assert_same(trained_for(passes, text).train(training).parallel(changed)[:, :time], whole[:, :time])


@pytest.mark.parametrize("passes", [0, 5, 9])
@pytest.mark.parametrize("text", [OPEN, OPEN_REPEATS])
def test_the_gradient_of_an_open_router_is_that_of_its_gate_wherever_it_may_select(text: str, passes: int) -> None:
    mixer, (x, before) = trained_for(passes, text), worded()
    pull = torch.randn(BATCH, TIME, DIM, dtype=torch.float64)
    (mixer.forward(x)[0] * pull).sum().backward()
    found = mixer.router.weight.grad.clone()
    mixer.zero_grad()
    gate = (x @ mixer.router.weight.T).sigmoid() * may_attend(text, before).unsqueeze(-1)
    (gate * weighed(mixer, x).detach() * pull).sum().backward()
    assert_same(found, mixer.router.weight.grad)


def test_only_what_is_selected_is_computed() -> None:
    x = inputs()
    for passes, few in ((2, False), (9, True)):
        mixer = trained_for(passes).eval()
        with torch.no_grad():
            on = mixer.attends(x, torch.arange(TIME), mixer.update_cache(x, None))
            assert (mixer.computed_count(on) < TIME) == few


@pytest.mark.parametrize("select", ["learned", "learned_repeat"])
def test_models_with_open_routers_are_trained_together_as_alone(select: str) -> None:
    from bestiary.training.together import train_together
    from bestiary.training.train import train

    given = {"dim": 16, "depth": 1, "steps": 6, "every": 6, "batch": 4, "selection_rows": 4, "test_rows": 4}
    task, pattern = "mqar(vocab=32, length=26, pairs=4)", f"selected(select={select!r}, open=2, ramp=2)"
    recipes = [clean(pattern, train=task, rate=rate, **given) for rate in (1e-3, 1e-2)]
    alone = [list(train(recipe)) for recipe in recipes]
    found: dict[int, list[Any]] = {0: [], 1: []}
    for place, progress in train_together(recipes):
        found[place].append(progress)
    for wanted, got in zip(alone, found.values(), strict=True):
        assert got[0].loss == pytest.approx(wanted[0].loss, rel=1e-4)
        assert got[-2].loss == pytest.approx(wanted[-1].loss, rel=1e-3)


def test_open_is_of_a_router_alone() -> None:
    for given in ('select="random", open=3', "open=3, most=4", "open=-1", 'select="learned_repeat", most=4'):
        with pytest.raises(ValueError, match=r"open=|most="):
            build_mixer(f"selected({given})")
