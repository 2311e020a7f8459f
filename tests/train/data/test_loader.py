"""Batches: every row once an epoch, any part of any batch by its number alone, and the same rows on the devices."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.data.loader import Loader, evaluation_batches, prefetch


def arrays(n, length=4, segments=2):
    """Rows that tell who they are, in types narrower than those of a batch."""
    tokens = np.arange(n * length).reshape(n, length)
    return {
        "tokens": tokens.astype(np.uint16),
        "segments": np.ones((n, length), np.uint8),
        "example": np.arange(n * segments * 2).reshape(n, segments, 2),
        "labels": tokens[:, :segments].astype(np.float64),
    }


def sharding(*shape, spec):
    if len(jax.devices()) < int(np.prod(shape)):
        pytest.skip(f"{len(jax.devices())} devices; needs JAX_NUM_CPU_DEVICES=8")
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
    return NamedSharding(mesh, PartitionSpec(spec))


SHARDINGS = {
    "data": ((8,), "data"),
    "data, fsdp": ((2, 2, 2), ("data", "fsdp")),
    "data, others alike": ((2, 2, 2), "data"),
    "order of axes": ((2, 4), ("fsdp", "data")),
    "replicated": ((8,), None),
    "one device": ((1,), "data"),
}


@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 99), st.booleans())
def test_every_row_comes_once_an_epoch(n, batch, seed, shuffle):
    loader = Loader(arrays(n), batch, seed, shuffle)
    assert len(loader.table) == n
    assert loader.steps_per_epoch == n / batch
    stream = np.concatenate([loader.index(i) for i in range(-(-3 * n // batch))])
    assert loader.index(2).dtype == np.int64
    epochs = stream[: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))
    if not shuffle:
        assert (epochs == np.arange(n)).all()
    if shuffle and n > 20:
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[0] != Loader(arrays(n), n, seed + 1).index(0)).any()


@given(st.integers(1, 30), st.integers(1, 25), st.integers(0, 10**6), st.lists(st.integers(0, 25), max_size=3))
def test_slices_make_the_whole(n, batch, at, cuts):
    loader = Loader(arrays(n), batch, seed=5)
    whole = loader.read(at)
    bounds = sorted({0, batch, *(cut for cut in cuts if cut < batch)})
    parts = [loader.read(at, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    assert all(len(part["tokens"]) == b - a for part, a, b in zip(parts, bounds[:-1], bounds[1:], strict=True))
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_read_gives_the_rows_in_the_dtypes_of_a_batch():
    data = arrays(10)
    batch = Loader(data, 4, seed=1).read(7)
    rows = Loader(data, 4, seed=1).index(7)
    for name, dtype in {"tokens": "int32", "segments": "int32", "example": "uint32", "labels": "float32"}.items():
        np.testing.assert_array_equal(batch[name], data[name][rows].astype(dtype), strict=True)


def test_batches_do_not_depend_on_where_the_stream_began():
    loader = Loader(arrays(23), 5, seed=2)
    mesh = sharding(1, spec="data")
    stream = {n: jax.device_get(batch) for n, batch in prefetch(loader, 0, 12, mesh)}
    assert list(stream) == list(range(12))
    for n, batch in prefetch(Loader(arrays(23), 5, seed=2), 7, 12, mesh):
        np.testing.assert_equal(jax.device_get(batch), stream[n])


@pytest.mark.parametrize("name", SHARDINGS)
def test_device(name):
    shape, spec = SHARDINGS[name]
    placed = sharding(*shape, spec=spec)
    loader = Loader(arrays(50), 16, seed=3)
    batch, expected = loader.device(9, placed), loader.read(9)
    assert batch.keys() == expected.keys()
    for key, array in batch.items():
        assert array.sharding == placed
        np.testing.assert_array_equal(array, expected[key], strict=True)
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[key][shard.index])


class Spy(np.ndarray):
    """Counts the rows read from it."""

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            self.counts.append(len(index))
        return super().__getitem__(index)


@pytest.mark.parametrize("name", SHARDINGS)
def test_each_row_is_read_once(name):
    shape, spec = SHARDINGS[name]
    spy = arrays(50)["tokens"].view(Spy)
    spy.counts = []
    Loader({"tokens": spy}, 16).device(0, sharding(*shape, spec=spec))
    assert spy.counts == [16]


@pytest.mark.parametrize(("n", "batch"), [(5, 8), (8, 8), (9, 8), (16, 8), (20, 8)])
def test_evaluation_batches(n, batch):
    data = arrays(n)
    batches = [jax.device_get(b) for b in evaluation_batches(data, batch, sharding(8, spec="data"))]
    assert len(batches) == -(-n // batch)
    for name, array in data.items():
        found = np.concatenate([b[name] for b in batches])
        np.testing.assert_array_equal(found[:n], array)
        assert not found[n:].any()
        assert found.dtype == batches[0][name].dtype
        assert len(found) == len(batches) * batch


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class Slow(Loader):
    """Fails at batch 3, and remembers what it was asked for."""

    asked: list = []  # noqa: RUF012

    def device(self, n, sharding):
        self.asked.append(n)
        if n == 3:
            raise OSError("disk gone")
        return super().device(n, sharding)


def test_prefetch_reads_ahead_raises_in_place_and_stops():
    loader = Slow(arrays(10), 2)
    loader.asked.clear()
    stream = prefetch(loader, 0, 100, sharding(1, spec="data"), depth=2)
    assert next(stream)[0] == 0
    for _ in range(100):
        if len(loader.asked) == 3:
            break
        time.sleep(0.02)
    assert loader.asked == [0, 1, 2], "two batches ahead, no more"
    assert [next(stream)[0], next(stream)[0]] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(stream)
    assert not prefetch_threads()


def test_prefetch_stops_its_thread_when_closed():
    stream = prefetch(Loader(arrays(10), 2), 5, 10**9, sharding(1, spec="data"))
    assert next(stream)[0] == 5
    assert prefetch_threads()
    stream.close()
    assert not prefetch_threads()


def test_an_id_outside_of_the_vocabulary():
    data = arrays(6)
    assert Loader(data, 6, ids=24).read(0)["tokens"].max() == 23
    with pytest.raises(
        ValueError, match=r"rows \[5\] hold ids from 0 to 23, and the vocabulary has 23: they were made"
    ):
        Loader(data, 6, shuffle=False, ids=23).read(0)
    with pytest.raises(ValueError, match="ids from -1 to"):
        Loader(data | {"tokens": data["tokens"].astype(np.int32) - 1}, 6, ids=24).read(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loader({}, 2), "no rows to load; expected at least 1"),
        (lambda: Loader(arrays(0), 2), "no rows to load; expected at least 1"),
        (lambda: Loader({"a": np.ones(2), "b": np.ones(3)}, 2), r"rows of each array: {'a': 2, 'b': 3}"),
        (lambda: Loader(arrays(3), 0), "batch=0: expected at least 1 row"),
        (lambda: Loader(arrays(3), 1, seed=-1), "seed=-1: expected 0 <= seed"),
        (
            lambda: Loader(arrays(9), 6).device(0, sharding(8, spec="data")),
            "batch=6 does not divide evenly by .*'data': 8",
        ),
        (lambda: next(evaluation_batches(arrays(9), 6, sharding(8, spec="data"))), "batch=6 does not divide evenly"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
