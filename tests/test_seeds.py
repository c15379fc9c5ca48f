"""Tests of seeds."""

from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.seeds import seed_for


def test_seed_for_is_the_same_on_every_machine() -> None:
    assert seed_for(0, "caption", "digits-0001") == 6878105819483179376
    assert seed_for(1, "caption", "digits-0001") != seed_for(0, "caption", "digits-0001")


@given(st.integers(0, 2**31 - 1), st.lists(st.text() | st.integers(), max_size=4))
def test_seed_for_fits_a_signed_64_bit_column(seed: int, keys: list[str | int]) -> None:
    assert 0 <= seed_for(seed, *keys) < 2**63


def test_seed_for_separates_its_keys() -> None:
    assert seed_for(0, "ab", "c") != seed_for(0, "a", "bc")
    assert len({seed_for(0, "row", i) for i in range(10_000)}) == 10_000
