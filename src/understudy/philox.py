"""Random numbers by address: what was drawn for (seed, image, view) needs no state and no history.

Differs from `numpy.random.Philox` (64-bit words, one stream per object) by computing many short streams at once; the
algorithm is the 32-bit member of the same family.
"""

import numpy as np
from jaxtyping import Float64, UInt32, UInt64

from understudy.errors import ConfigError

VIEWS, ANCHORS, NEIGHBORS, SUBSET, PATCH_MASKS = 0, 1, 2, 3, 4
"""What a number is drawn for: a word of its address, so that no two uses of one seed ever meet."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]
) -> UInt32[np.ndarray, "*shape 4"]:
    """Philox4x32-10: four 32-bit counter words, which broadcast, and two key words to four random words.

    Source:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; Random123's `philox.h`.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> _SHIFT) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _SHIFT) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(
    seed: int, use: int, first: np.ndarray, second: np.ndarray | int, count: int
) -> UInt32[np.ndarray, "M count"]:
    """`count` random words at each of M addresses.

    Args:
        seed: 0 <= seed < 2^64.
        use: VIEWS, ANCHORS, NEIGHBORS, SUBSET or PATCH_MASKS.
        first: (M,) integers below 2^32, e.g. image ids.
        second: (M,) integers below 2^32 or one for all, e.g. view numbers.
        count: words per address.

    Raises:
        ConfigError: the seed is outside its range.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"A seed is a whole number from 0 to 2^64 - 1; got {seed}.")
    first, second = np.atleast_1d(np.asarray(first)), np.asarray(second)
    assert all(word.size == 0 or (word.min() >= 0 and word.max() < 2**32) for word in (first, second)), (
        "address too large"
    )
    blocks = -(-count // 4)
    second = np.broadcast_to(second, first.shape)
    counter = (np.arange(blocks), second[:, None], first[:, None], np.array(use))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return words.reshape(len(first), 4 * blocks)[:, :count]


def uniforms(words: UInt32[np.ndarray, "M count"]) -> Float64[np.ndarray, "M count"]:
    """Words as numbers in [0, 1), multiples of 2^-32."""
    return words * 2.0**-32


def permutation(seed: int, use: int, number: int, length: int) -> np.ndarray:
    """A random order of `range(length)`, (length,) int64.

    The rank of 64-bit keys: no library's shuffle, which may change from version to version, decides it. The number
    says which permutation, e.g. the epoch; the others are as in `random_words`.
    """
    blocks = -(-length // 2)
    words = random_words(seed, use, np.arange(blocks), number, 4).astype(np.uint64).reshape(-1, 2)
    keys: UInt64[np.ndarray, " length"] = (words[:length, 0] << _SHIFT) | words[:length, 1]
    return np.argsort(keys, kind="stable").astype(np.int64)
