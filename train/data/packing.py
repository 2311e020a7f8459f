"""Packing: which row, and which slot of it, each piece goes to, so that rows of fixed length hold little padding."""

from typing import NamedTuple

import numpy as np


class Places(NamedTuple):
    """Where each of P pieces lies, int64 [P]. Rows are numbered by first piece; slots keep the order of pieces."""

    row: np.ndarray
    slot: np.ndarray
    offset: np.ndarray
    rows: int


def pack(sizes: np.ndarray, length: int, segments: int, mixed: bool = False) -> Places:
    """Packs pieces of `sizes` [P] into rows of `length`, at most `segments` to a row, by best fit in decreasing size.

    Pieces of equal size come in their order, so that neighbours share a row; `mixed`, in a fixed order without sense.
    Best-fit decreasing uses at most 11/9 of the fewest rows possible, plus 1 (Johnson 1974, doi.org/10.1137/0203025).
    """
    row = np.arange(len(sizes))
    if segments > 1:
        free: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the space left in them
        lefts = 0  # bit s is set where free[s] is not empty: the best fit is then one shift and one lowest bit
        whole = sizes == length  # most pieces of long documents: each is a row of its own
        row[whole] = np.arange(np.count_nonzero(whole))
        held = [1] * np.count_nonzero(whole)
        parts = np.flatnonzero(~whole)
        if mixed:
            parts = np.random.default_rng(0).permutation(parts)
        parts = parts[np.argsort(-sizes[parts], kind="stable")]
        for piece, size in zip(parts.tolist(), sizes[parts].tolist(), strict=True):
            if fits := lefts >> size:
                left = size + (fits & -fits).bit_length() - 1
                at = free[left].pop()
                if not free[left]:
                    lefts ^= 1 << left
            else:
                at, left = len(held), length
                held.append(0)
            row[piece] = at
            held[at] += 1
            left -= size
            if held[at] < segments and left:
                free[left].append(at)
                lefts |= 1 << left
        _, first = np.unique(row, return_index=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        row = rank[row]

    order = np.argsort(row, kind="stable")  # by row, then by piece
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    counts = np.diff(starts, append=len(row))
    before = np.cumsum(sizes[order]) - sizes[order]
    slot, offset = np.empty_like(row), np.empty_like(row)
    slot[order] = np.arange(len(row)) - np.repeat(starts, counts)
    offset[order] = before - np.repeat(before[starts], counts)
    return Places(row, slot, offset, len(starts))
