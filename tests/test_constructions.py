"""Constructions: never wrong at their size, wrong below it just as the theorem says, and as large as they claim."""

import math
from functools import partial

import pytest
import torch
from mixer_helpers import assert_same
from torch import Tensor

from bestiary.constructions import bounds
from bestiary.constructions._construction import Construction, code_width, measure_size, score
from bestiary.constructions._triplets import draw_triplets, solve_triplets
from bestiary.constructions.all_distances import all_distances
from bestiary.constructions.catalogue import CATALOGUE
from bestiary.constructions.memories import Rule, memory_of
from bestiary.constructions.reflections import (
    S3,
    draw_words,
    parity,
    permutation_matrix,
    permutations,
    products,
    reflection,
    swaps,
)
from bestiary.constructions.softmax_attention import PATTERN, softmax_attention
from bestiary.constructions.some_distances import some_distances
from bestiary.constructions.sorting import sorting
from bestiary.constructions.triplet_attention import triplet_attention
from bestiary.constructions.two_passes import error, least_prime, read_again, two_passes
from bestiary.model import Model, memory
from bestiary.spec import parse, spec
from bestiary.tasks._task import SILENT, Batch, stream


def rng(seed: int = 0) -> torch.Generator:
    return stream("tests of constructions", seed)


def right(made: Construction, batch: Batch) -> Tensor:
    """Whether each answer is right, question by question, row by row."""
    with torch.no_grad():
        logits, targets = made.answer(batch)
    return logits.argmax(-1) == targets


def asked_back(batch: Batch) -> Tensor:
    """How many rows before each answered query of triplets its key stands."""
    key, _, query = batch.tokens.unflatten(1, (-1, 3)).unbind(2)
    rows = torch.arange(key.shape[1])
    there = (query.unsqueeze(2) == key.unsqueeze(1)).double().argmax(2)
    return (rows - there)[batch.targets[:, 2::3] != SILENT]


SIZES = [(name, *size) for name, entry in CATALOGUE.items() for size in [*entry.tiny, entry.sizes[0]]]


@pytest.mark.parametrize(("name", "vocab", "length"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_construction_is_never_wrong(name: str, vocab: int, length: int, dtype: torch.dtype) -> None:
    entry = CATALOGUE[name]
    batch = entry.draw(vocab, length)
    found, asked = score(entry.build(vocab, length).to(dtype), batch)
    assert found == asked > 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["delta", "squares", "linear"])
def test_a_memory_is_never_wrong_at_a_vocabulary_of_8192(rule: Rule) -> None:
    """One sequence of 64 tokens: of 1,024, the states between chunks would be some 20 GB."""
    batch = spec("tasks", "mqar", vocab=8192, length=64, pairs=16).build().draw(1, "test", 0)
    made = memory_of(rule, 8192)
    for dtype in (torch.float64, torch.float32):
        assert right(made.to(dtype), batch).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_construction_reads_on_after_any_cut_or_says_that_it_cannot(name: str) -> None:
    entry = CATALOGUE[name]
    size = entry.tiny[0]
    made, tokens = entry.build(*size), entry.draw(*size).tokens
    with torch.no_grad():
        whole, state = made(tokens)
        if not made.causal:
            assert state is None
            with pytest.raises(ValueError, match=r"whole sequences"):
                made(tokens, 1)
            return
        for cut in (made.stride, tokens.shape[1] // 2 // made.stride * made.stride):
            head, state = made(tokens[:, :cut])
            assert_same(torch.cat([head, made(tokens[:, cut:], state)[0]], dim=1), whole)


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if "state" not in entry.proved])
def test_what_needs_the_whole_sequence_has_no_state_to_count(name: str) -> None:
    entry = CATALOGUE[name]
    assert measure_size(entry.build(*entry.tiny[0]), entry.draw(*entry.tiny[0]).tokens).state is None


@pytest.mark.parametrize("vocab", [16, 40, 100])
@pytest.mark.parametrize("make", [triplet_attention, lambda vocab: all_distances(vocab, 10), lambda v: sorting(v, 10)])
def test_triplets_without_an_answer_get_none(vocab: int, make: object) -> None:
    batch = draw_triplets(3, 10, vocab, rng())
    silent = batch.targets[:, 2::3] == SILENT
    assert not make(vocab)(batch.tokens)[0][silent].any()  # pyright: ignore[reportCallIssue]


# one step below


def test_one_channel_less_mistakes_the_two_tokens_that_share_one() -> None:
    vocab, batch = 12, draw_triplets(40, 12, 12, rng())
    found = right(triplet_attention(vocab, width=vocab - 1), batch)
    key, _, query = batch.tokens.unflatten(1, (-1, 3)).unbind(2)
    answered = batch.targets[:, 2::3] != SILENT
    shared = torch.tensor([vocab - 2, vocab - 1])
    sees_both = (torch.isin(key, shared).cumsum(1) - torch.isin(key, shared).long() == 2) & torch.isin(query, shared)
    exposed = (sees_both | torch.isin(batch.targets[:, 2::3], shared))[answered]
    assert found[~exposed].all()
    assert not found[batch.targets[:, 2::3][answered] == vocab - 1].any()  # its code is that of the token before it
    assert not found.all()


def test_one_sign_less_leaves_the_first_of_two_values() -> None:
    task = spec("tasks", "mqar", vocab=8192, length=64, pairs=8, filler="zero").build()
    batch = task.draw(16, "test", 0)
    least = code_width(8192)
    _, targets = batch.tokens, batch.targets[batch.targets != SILENT]
    assert right(softmax_attention(8192, 64), batch).all()
    found = right(softmax_attention(8192, 64, bits=least - 1), batch)
    assert torch.equal(found, targets % 2 == 0)


def test_one_distance_less_leaves_the_farthest_unanswered() -> None:
    batch = draw_triplets(60, 8, 16, rng())
    back, found = asked_back(batch), right(all_distances(16, 8, distances=6), batch)
    assert (back == 7).any()
    assert found[back < 7].all()
    assert not all_distances(16, 8, distances=6)(batch.tokens)[0][batch.targets[:, 2::3] != SILENT][back == 7].any()


def test_one_layer_less_compares_fewer_bits_and_mistakes_keys_that_agree_in_them() -> None:
    vocab, rows, compared = 256, 12, 7  # ceil(log2(8)) levels instead of ceil(log2(9))
    batch = draw_triplets(60, rows, vocab, rng())
    full, less = all_distances(vocab, rows), all_distances(vocab, rows, compared=compared)
    assert measure_size(less, batch.tokens).layers == measure_size(full, batch.tokens).layers - 1
    key, _, query = batch.tokens.unflatten(1, (-1, 3)).unbind(2)
    alike = (query.unsqueeze(2) // 2 == key.unsqueeze(1) // 2).tril(-1).sum(2)[batch.targets[:, 2::3] != SILENT]
    found = right(less, batch)
    assert found[alike == 1].all()
    assert 0 < (~found).sum() <= (alike > 1).sum()


def test_a_scan_one_doubling_short_forgets_those_who_ask_last() -> None:
    rows = 16
    tokens = torch.stack([torch.arange(rows) + 1, torch.arange(rows) + 20, torch.ones(rows).long()], dim=1)
    batch = Batch(tokens.flatten().unsqueeze(0), solve_triplets(tokens.flatten().unsqueeze(0)), {})
    assert right(sorting(40, rows), batch).all()
    found = right(sorting(40, rows, reach=rows // 4), batch)
    assert found.tolist() == [asker <= 2 * (rows // 4) - 1 for asker in range(1, rows)]


@pytest.mark.parametrize("kernel", ["programmatic", "autocorrelation"])
def test_filters_with_fewer_spikes_than_distances_answer_those_that_they_have(kernel: str) -> None:
    batch = draw_triplets(1, 40, 64, rng(), distances=(1, 1, 1, 4, 4, 9))
    made = some_distances(64, 2, kernel=kernel)  # pyright: ignore[reportArgumentType]
    back, found = asked_back(batch), right(made, batch)
    assert torch.equal(found, back != 9)
    assert right(some_distances(64, 3, kernel=kernel), batch).all()  # pyright: ignore[reportArgumentType]


def every_key(vocab: int) -> Batch:
    """All keys with different values, then all keys again."""
    keys = torch.arange(1, vocab // 2)
    values = vocab // 2 + torch.arange(len(keys))
    pairs = torch.stack([keys, values], dim=1).flatten()
    targets = torch.cat([torch.full_like(pairs, SILENT), values])
    return Batch(torch.cat([pairs, keys]).unsqueeze(0), targets.unsqueeze(0), {})


@pytest.mark.parametrize("rule", ["linear", "delta", "squares"])
def test_one_key_more_than_orthogonal_codes_loses_a_pair(rule: Rule) -> None:
    batch, keys = every_key(32), 15
    assert right(memory_of(rule, 32), batch).all()
    found = right(memory_of(rule, 32, width=keys - 1), batch)
    assert found[: keys - 2].all()
    assert found[-2:].sum() <= 1
    if rule == "delta":  # the later value has replaced the earlier
        assert found[-2:].tolist() == [False, True]


@pytest.mark.parametrize(("first", "second"), [(12, 4), (20, 1), (4, 12)])
def test_lists_are_compared_in_one_pass_only_if_the_shorter_comes_first(first: int, second: int) -> None:
    batch = spec("tasks", "set_disjointness", vocab=64, first=first, second=second).build().draw(16, "test", 0)
    once, twice = (right(two_passes(64, first, second, passes=n), read_again(batch, n)) for n in (1, 2))
    assert twice.all()
    assert once.all() if first <= second else not once.any()


def test_codes_too_much_alike_are_refused_with_the_condition() -> None:
    with pytest.raises(ValueError, match=r"kernel error of 0\.0928; .* at most 1 / \(3 4\)"):
        two_passes(64, 4, 16, prime=11)
    assert error(least_prime(64, 4)) <= 1 / 12 < error(11)


def test_without_negative_eigenvalues_the_first_one_wipes_parity() -> None:
    batch = draw_words(4, 40, 2, rng())
    made = parity(negative=False)
    seen = (batch.tokens == 1).cumsum(1) > 0
    logits, _ = made(batch.tokens)
    assert right(made, batch)[(~seen)[:, 1:].flatten()].all()
    # what is left is the epsilon of the keys' norm, 1e-6, at each position that wipes
    assert logits[seen].abs().max() < 1e-4 < 0.1 < logits[~seen].abs().max()


def test_one_reflection_a_token_follows_swaps_but_no_cycle() -> None:
    swapping = torch.tensor([token for token in range(len(S3)) if len(swaps(S3[token])) < 2])
    assert len(swapping) == 4
    tokens = swapping[torch.randint(4, (4, 50), generator=rng())]
    tokens[:, 0] = len(S3)
    assert right(permutations(reflections=1), Batch(tokens, products(tokens, len(S3)), {})).all()
    mixed = draw_words(8, 50, len(S3), rng())
    assert right(permutations(), mixed).all()
    cycles = (~torch.isin(mixed.tokens[:, 1:], swapping)).cumsum(1)
    found = right(permutations(reflections=1), mixed).unflatten(0, (8, -1))
    assert found[cycles == 0].all()
    first = (cycles == 1) & ~torch.isin(mixed.tokens[:, 1:], swapping)
    assert not found[first].any()


# sizes


@pytest.mark.parametrize(("vocab", "rows"), [(16, 12), (32, 20), (100, 6)])
def test_every_distance_has_the_layers_and_the_width_that_it_claims(vocab: int, rows: int) -> None:
    bits = code_width(vocab)
    size = measure_size(all_distances(vocab, rows), draw_triplets(1, rows, vocab, rng()).tokens)
    assert size.layers == 4 + math.ceil(math.log2(bits + 1)) >= bounds.least_depth(vocab)
    assert size.width <= (rows - 1) * (2 * bits + 2) + bits


def test_softmax_attention_is_the_model_that_is_trained_at_a_width_of_the_logarithm() -> None:
    task = spec("tasks", "mqar", vocab=256, length=64, pairs=8).build()
    batch, made = task.draw(8, "test", 0), softmax_attention(256, 64)
    logits, targets = made.model.answer(batch)
    assert (logits.argmax(-1) == targets).all()
    assert measure_size(made, batch.tokens).width == 4 * math.ceil(math.log2(256)) + 2
    untrained = partial(Model, 256, dim=34, depth=2, pattern=parse("mixers", PATTERN), channel="none")
    size = memory(untrained, time=64)
    assert measure_size(made, batch.tokens).state == size.numbers


def test_both_layers_of_softmax_attention_are_as_sharp_as_their_sum_of_codes() -> None:
    batch = spec("tasks", "mqar", vocab=64, length=32, pairs=4).build().draw(4, "test", 0)
    made, asked = softmax_attention(64, 32), batch.targets != SILENT
    table = made.model.embed.weight.detach()
    key, value, before = table[batch.tokens[asked]], table[batch.targets[asked]], table[batch.tokens.roll(1, 1)[asked]]
    wanted = key.clone()
    wanted[:, :12] += 4 * value[:, :12]
    wanted[:, 14:] = before[:, :12]
    with torch.no_grad():
        found = made.hidden(batch.tokens)[0][asked]
        torch.testing.assert_close(found, made.model.norm(wanted), rtol=1e-4, atol=1e-4)


def test_weights_are_counted_if_they_are_not_zero() -> None:
    size = measure_size(triplet_attention(9), draw_triplets(1, 4, 9, rng()).tokens)
    assert size == (1, 28, 27, 72)  # three selections of nine channels; four keys and values of nine
    dense = measure_size(parity(), draw_words(1, 5, 2, rng()).tokens)
    assert dense.parameters == 7 + 9 + 2 + 3 + 1  # maps, taps of one, beta (one is zero), the norm, the output
    assert dense.state == 3 * 3


def test_a_layer_made_of_mixers_is_one_layer() -> None:
    batch = spec("tasks", "set_disjointness", vocab=64, first=4, second=4).build().draw(1, "test", 0)
    assert measure_size(two_passes(64, 4, 4), read_again(batch, 2).tokens).layers == 2


def test_the_delta_memory_keeps_the_last_value_of_a_key_and_nothing_of_the_one_before() -> None:
    made = memory_of("delta", 32)
    hidden, _ = made.hidden(torch.tensor([[3, 17, 3, 29, 5, 20, 3]]))
    bits = hidden[0, -1, :4]
    assert_same(bits / bits.abs().max(), made.answers[29, :4])


@pytest.mark.parametrize("name", ["BaseConv, every distance", "attention, two layers", "delta rule"])
def test_counts_grow_as_proved(name: str) -> None:
    entry = CATALOGUE[name]
    (vocab, short), long = entry.sizes[1], 4 * entry.sizes[1][1]
    if name == "delta rule":
        vocab = 512
    one, two = (measure_size(entry.build(vocab, n), entry.draw(vocab, n).tokens)._asdict() for n in (short, long))
    for count, law in entry.proved.items():
        assert two[count] / one[count] == pytest.approx(law.at(long) / law.at(short), rel=0.12)


# what they are made of


def test_sorting_answers_do_not_depend_on_later_triplets_and_the_latest_key_wins() -> None:
    tokens = torch.randint(5, (30, 3 * 8), generator=rng())  # keys repeat
    batch, made = Batch(tokens, solve_triplets(tokens), {}), sorting(5, 8)
    assert right(made, batch).all()
    changed = tokens.clone()
    changed[:, 15:] = torch.randint(5, (30, 9), generator=rng(1))
    assert_same(made(changed)[0][:, :5], made(tokens)[0][:, :5])


def test_a_shorter_sequence_than_sorting_was_built_for_is_padded() -> None:
    batch = draw_triplets(5, 6, 16, rng())
    assert right(sorting(16, 11), batch).all()


def test_triplets_are_solved_from_the_left() -> None:
    tokens = torch.tensor([[1, 7, 1, 2, 8, 1, 3, 9, 3, 4, 5, 2]])
    silent = [SILENT, SILENT]
    assert solve_triplets(tokens).tolist() == [[*silent, SILENT, *silent, 7, *silent, SILENT, *silent, 8]]


def test_every_permutation_is_the_product_of_its_reflections() -> None:
    for order in S3:
        product = torch.eye(3, dtype=torch.float64)
        for axis in swaps(order):
            product = reflection(axis) @ product
        assert_same(product, permutation_matrix(order))


def test_the_product_of_a_word_is_that_of_its_matrices() -> None:
    tokens = draw_words(1, 20, len(S3), rng()).tokens
    product = torch.eye(3, dtype=torch.float64)
    for token, answer in zip(tokens[0, 1:].tolist(), products(tokens, len(S3))[0, 1:].tolist(), strict=True):
        product = permutation_matrix(S3[token]) @ product
        assert_same(product, permutation_matrix(S3[answer]))


def test_the_delta_memory_is_the_mixer_that_is_trained() -> None:
    made = memory_of("delta", 32)
    (layer,) = made.layers
    assert type(layer) is type(parse("mixers", "delta_net")[0].build(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: triplet_attention(8, width=9), "one-hot codes of 8 tokens have a width of 1 to 8, not 9"),
        (lambda: triplet_attention(8)(torch.zeros(1, 4).long()), "4 tokens are not triplets"),
        (lambda: softmax_attention(8, 1), "codes of 1 to 3 signs and sequences 2 tokens, not 3, 1"),
        (lambda: softmax_attention(8, 4)(torch.zeros(1, 5).long()), "sharp enough for 4 positions, the input needs 5"),
        (lambda: all_distances(8, 4, distances=4), "4 rows have distances from 1 to 3, not 4"),
        (lambda: all_distances(8, 4, compared=4), "codes of 8 tokens have 3 bits to compare, not 4"),
        (lambda: sorting(8, 0), "there are no 0 triplets to sort"),
        (lambda: sorting(8, 8, reach=3), "doubling takes steps of 1, 2, 4 ... 4 records, not 3"),
        (lambda: sorting(8, 2)(torch.zeros(1, 9).long()), "whole sequences of at most 2 triplets"),
        (lambda: some_distances(8, 0), "there are no codes of 8 tokens or filters of 0 spikes"),
        (lambda: memory_of("delta", 3), "a vocabulary of 3 has no key beside its values"),
        (lambda: memory_of("delta", 16, width=8), "7 keys have orthogonal codes in 7 channels"),
        (lambda: two_passes(64, 0, 4), "lists of 0 and 4 read 2 times leave nothing to compare"),
        (lambda: two_passes(64, 1, 1)(torch.zeros(1, 11).long()), "the lists are 10 tokens in all, the input is 11"),
        (lambda: permutations(reflections=3), "a token of S3 is one reflection or two, not 3"),
        (lambda: draw_triplets(1, 9, 8, rng()), "9 different keys need a vocabulary of 9, not 8"),
    ],
)
def test_sizes_that_a_theorem_does_not_cover_are_refused_with_its_condition(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # pyright: ignore[reportCallIssue]
