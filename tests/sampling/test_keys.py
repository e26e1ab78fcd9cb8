"""The key codec."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from augsubset.sampling.keys import MAX_EPOCHS, MAX_INDEX, PADDING, pack, unpack

PARTS = st.tuples(
    st.integers(0, MAX_EPOCHS - 1), st.integers(0, PADDING), st.integers(0, MAX_INDEX)
)


@given(PARTS)
def test_unpack_undoes_pack_for_ints_arrays_and_tensors(parts):
    key = pack(*parts)
    assert 0 <= key < 2**63
    assert unpack(key) == parts
    as_array = pack(parts[0], np.array([parts[1]]), np.array([parts[2]]))
    assert as_array.dtype == np.int64
    assert as_array.tolist() == [key]
    assert [int(part) for part in unpack(torch.tensor([key]))] == list(parts)


@given(st.integers(0, MAX_INDEX))
def test_a_plain_index_is_the_key_of_an_original_in_epoch_0(index):
    assert unpack(index) == (0, 0, index)
