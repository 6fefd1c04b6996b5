"""The simulator's small KV shows every error that real KV would show."""

from hypothesis import assume, given
from hypothesis import strategies as st

from pd_simulator.faults import Faults
from pd_simulator.transfer.kv_cache import ENTRY_BYTES, KvCache, next_token, noise

WORDS = range(300, 4000)
TOKENS = st.lists(st.integers(0, 31_999), min_size=2, max_size=60)


def generate(cache: KvCache, count: int = 8) -> list[int]:
    output: list[int] = []
    for _ in range(count):
        token = next_token(cache, WORDS, end=2, end_one_in=0, may_end=True)
        output.append(token)
        cache.compute([token])
    return output


def computed(tokens: list[int], model: str = "m") -> KvCache:
    cache = KvCache(model)
    cache.compute(tokens)
    return cache


def received(entries: bytes, last: int) -> KvCache:
    """As decode does it: KV of all tokens but the last, which it computes itself."""
    cache = KvCache("m")
    cache.load(entries)
    cache.compute([last])
    return cache


@given(TOKENS)
def test_received_kv_continues_like_computed_kv(tokens: list[int]) -> None:
    entries = KvCache("m").compute(tokens[:-1])

    assert len(entries) == ENTRY_BYTES * (len(tokens) - 1)
    assert generate(received(entries, tokens[-1])) == generate(computed(tokens))


@given(TOKENS, st.data())
def test_any_flipped_bit_changes_the_output(tokens: list[int], data: st.DataObject) -> None:
    entries = bytearray(KvCache("m").compute(tokens[:-1]))
    entries[data.draw(st.integers(0, len(entries) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    assert generate(received(bytes(entries), tokens[-1])) != generate(computed(tokens))


@given(TOKENS)
def test_lost_or_cut_kv_changes_the_output(tokens: list[int]) -> None:
    entries = KvCache("m").compute(tokens[:-1])

    for wrong in (b"", entries[:-1], entries[:-ENTRY_BYTES], entries[ENTRY_BYTES:]):
        assert generate(received(wrong, tokens[-1])) != generate(computed(tokens))


@given(TOKENS, TOKENS)
def test_another_requests_kv_changes_the_output(tokens: list[int], others: list[int]) -> None:
    assume(tokens[:-1] != others[:-1])
    mixed_up = KvCache("m").compute(others[:-1])

    assert generate(received(mixed_up, tokens[-1])) != generate(computed(tokens))


@given(TOKENS, st.integers(0, 31_999), st.data())
def test_every_token_of_the_prompt_matters(tokens: list[int], other: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    assume(tokens[place] != other)

    changed = [*tokens[:place], other, *tokens[place + 1 :]]

    assert generate(computed(changed)) != generate(computed(tokens))


@given(TOKENS)
def test_the_order_of_the_prompt_matters(tokens: list[int]) -> None:
    assume(tokens != tokens[::-1])

    assert generate(computed(tokens[::-1])) != generate(computed(tokens))


@given(TOKENS, st.integers(1, 7))
def test_an_output_continues_alike_when_it_is_prefilled_again(tokens: list[int], cut: int) -> None:
    output = generate(computed(tokens))

    assert generate(computed(tokens + output[:cut]), 8 - cut) == output[cut:]


@given(TOKENS, st.integers(1, 59))
def test_computing_in_chunks_is_the_same(tokens: list[int], cut: int) -> None:
    cache = KvCache("m")

    entries = cache.compute(tokens[:cut]) + cache.compute(tokens[cut:])

    assert entries == KvCache("m").compute(tokens)
    assert generate(cache) == generate(computed(tokens))


def test_another_model_answers_otherwise() -> None:
    assert generate(computed([5, 6, 7], "a")) != generate(computed([5, 6, 7], "b"))


def test_outputs_end_as_often_as_the_profile_says_and_only_where_they_may() -> None:
    caches = [computed([number]) for number in range(4000)]

    ends = sum(next_token(cache, WORDS, end=2, end_one_in=10, may_end=True) == 2 for cache in caches)

    assert 300 < ends < 500
    assert all(next_token(cache, WORDS, end=2, end_one_in=10, may_end=False) in WORDS for cache in caches)
    assert all(next_token(cache, WORDS, end=2, end_one_in=0, may_end=True) in WORDS for cache in caches)


def test_a_seed_and_a_number_change_what_is_drawn() -> None:
    cache = computed([1, 2, 3])
    drawn = {cache.draw(noise(seed, number)) for seed in (None, -(2**63), 0, 5, 2**62) for number in (1, 2)}
    assert len(drawn) == 9, "without a seed the number changes nothing"
    assert cache.draw(noise(None, 1)) == cache.draw()


def test_the_corruption_switch_flips_one_bit_and_only_when_it_is_on() -> None:
    entries = bytes(range(64))

    damaged = Faults(corrupt_kv=True).outgoing_kv(entries)

    assert Faults().outgoing_kv(entries) == entries
    assert (int.from_bytes(damaged) ^ int.from_bytes(entries)).bit_count() == 1
    assert Faults(corrupt_kv=True).outgoing_kv(b"") == b""
