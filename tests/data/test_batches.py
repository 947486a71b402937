"""Which frames make up a batch: order, starts, strides and short videos, from memory, from shards and from a service."""

import numpy as np
import pytest
import tensorflow as tf

from tests.data.numbered import seen, videos
from tests.data.prepared import flip
from tests.marks import first
from tfvidgen import data
from tfvidgen.data.batches import frames_tensor
from tfvidgen.data.collection import empty_frames
from tfvidgen.data.videos import clip_span


def batches(collection, batch_size, num_batches, num_frames=3, **arguments) -> list[dict[str, np.ndarray]]:
    dataset = data.make_dataset(collection, batch_size, num_frames, **arguments)
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset.take(num_batches)]


# ---------------------------------------------------------------- order and starts
def test_a_batch_holds_what_it_says():
    collection = videos(labels=True)
    for step, batch in enumerate(batches(collection, 2, 6)):
        assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
            "video": ((2, 3, 2, 3, 3), "uint8"),
            "video_id": ((2,), "int32"),
            "step": ((2,), "int64"),
            "identity": ((2,), "int32"),
            "action": ((2,), "int32"),
        }
        np.testing.assert_array_equal(batch["step"], step)
        np.testing.assert_array_equal(batch["identity"], collection.identity[batch["video_id"]])
        np.testing.assert_array_equal(batch["action"], collection.action[batch["video_id"]])
        assert seen(batch["video"]) == [[1 + 20 * i + t for t in range(3)] for i in batch["video_id"]]


def test_shapes_are_known_before_a_batch_is_drawn():
    spec = data.make_dataset(videos(), 2, 3).element_spec
    assert tuple(spec["video"].shape) == (2, 3, 2, 3, 3)
    assert set(spec) == {"video", "video_id", "step"}


@pytest.mark.parametrize("clip_start", ["first", "random"])
@pytest.mark.parametrize("start_step", [1, 5])
def test_starting_late_equals_skipping(clip_start, start_step):
    arguments = {"seed": 3, "clip_start": clip_start}
    skipped = batches(videos(), 2, 9, **arguments)[start_step:]
    late = batches(videos(), 2, 9 - start_step, start_step=start_step, **arguments)
    for a, b in zip(skipped, late, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_seed_decides_order_and_random_starts():
    def drawn(seed):
        drawn_batches = batches(videos((9, 9, 9)), 3, 8, seed=seed, clip_start="random")
        return [seen(batch["video"]) for batch in drawn_batches]

    assert drawn(4) == drawn(4)
    assert drawn(4) != drawn(5)


def test_epochs_differ():
    orders = {tuple(batch["video_id"]) for batch in batches(videos((3,) * 6), 6, 8)}
    assert len(orders) > 4


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            1,
            [
                [(3, 4), (2, 0), (4, 3), (1, 3)],
                [(0, 1), (4, 1), (3, 2), (0, 1)],
                [(4, 0), (0, 2), (4, 2), (1, 5)],
                [(2, 0), (3, 1), (0, 1), (3, 3)],
            ],
        ),
        (
            2,
            [
                [(2, 1), (0, 0), (3, 3), (4, 1)],
                [(1, 4), (2, 0), (3, 2), (1, 3)],
                [(3, 0), (1, 5), (0, 2), (2, 1)],
                [(4, 1), (3, 1), (2, 1), (4, 2)],
            ],
        ),
    ],
)
def test_order_and_random_starts_stay_those_of_their_form(form, expected):
    """What runs were begun with: another order needs another of DATA_ORDER_FORMS."""
    collection = videos((5, 9, 4, 7, 6))
    arguments = {"clip_start": "random", "seed": 11, "order_form": form}
    begin = batches(collection, 4, 2, **arguments)
    late = batches(collection, 4, 2, start_step=123_456, **arguments)
    drawn = [
        [
            (int(i), frames[0] - 1 - 20 * int(i))
            for i, frames in zip(batch["video_id"], seen(batch["video"]), strict=True)
        ]
        for batch in begin + late
    ]
    assert drawn == expected


@pytest.mark.parametrize(
    ("batch_size", "form"), [*((size, 2) for size in (1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 29)), (5, 1), (13, 1)]
)
def test_every_video_is_seen_equally_often(batch_size, form):
    num_videos = 6
    drawn = batches(videos((3,) * num_videos), batch_size, num_videos, order_form=form)  # whole epochs
    ids = np.concatenate([batch["video_id"] for batch in drawn]).reshape(-1, num_videos)
    assert len(ids) == batch_size
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(num_videos), (batch_size, 1)))


def test_a_single_video_fills_every_batch():
    (batch,) = batches(videos((3,)), 4, 1)
    assert seen(batch["video"]) == [[1, 2, 3]] * 4


def test_random_starts_reach_the_first_and_the_last_and_only_valid_ones():
    lengths, num_frames, stride = (5, 8, 6), 3, 2
    span = clip_span(num_frames, stride)
    starts = {i: set() for i in range(3)}
    for batch in batches(videos(lengths), 30, 6, num_frames, stride=stride, clip_start="random"):
        for i, frames in zip(batch["video_id"], seen(batch["video"]), strict=True):
            start = frames[0] - 1 - 20 * i
            assert frames == [1 + 20 * i + start + stride * t for t in range(num_frames)]
            starts[i].add(start)
    assert starts == {i: set(range(length - span + 1)) for i, length in enumerate(lengths)}


def test_random_starts_of_a_batch_differ_from_each_other():
    (batch,) = batches(videos((60, 60)), 8, 1, clip_start="random")
    assert len({frames[0] - 20 * i for i, frames in zip(batch["video_id"], seen(batch["video"]), strict=True)}) > 3


# ---------------------------------------------------------------- fixed starts and strides
@pytest.mark.parametrize(
    ("stride", "clip_start", "expected"),
    [
        (1, "first", [[1, 2, 3], [21, 22, 23], [41, 42, 43]]),
        (1, "centre", [[2, 3, 4], [23, 24, 25], [41, 42, 43]]),
        (2, "first", [[1, 3, 5], [21, 23, 25], [41, 43, 45]]),
        (2, "centre", [[1, 3, 5], [22, 24, 26], [41, 43, 45]]),
    ],
)
def test_fixed_starts(stride, clip_start, expected):
    collection = videos((5, 7, 4 if stride == 1 else 5))
    clips = collection.clips(3, stride, clip_start)
    assert seen(clips) == expected
    for batch in batches(collection, 3, 2, stride=stride, clip_start=clip_start):  # trained and measured on the same
        np.testing.assert_array_equal(batch["video"], clips[batch["video_id"]])


# ---------------------------------------------------------------- short videos
@pytest.mark.parametrize(
    ("short_clip", "stride", "expected"),
    [
        ("loop", 1, [[1, 2, 3, 4, 5], [21, 22, 23, 21, 22], [41, 41, 41, 41, 41]]),
        ("hold", 1, [[1, 2, 3, 4, 5], [21, 22, 23, 23, 23], [41, 41, 41, 41, 41]]),
        ("loop", 2, [[1, 3, 5, 2, 4], [21, 23, 22, 21, 23], [41, 41, 41, 41, 41]]),
        ("hold", 2, [[1, 3, 5, 5, 5], [21, 23, 23, 23, 23], [41, 41, 41, 41, 41]]),
    ],
)
@pytest.mark.parametrize("clip_start", first(1, ["first", "centre", "random"]))
def test_short_videos_are_filled_from_themselves(short_clip, stride, expected, clip_start):
    collection = videos((5, 3, 1))
    if clip_start != "random":
        assert seen(collection.clips(5, stride, clip_start, short_clip)) == expected
    for batch in batches(collection, 3, 2, 5, stride=stride, clip_start=clip_start, short_clip=short_clip):
        assert seen(batch["video"]) == [expected[i] for i in batch["video_id"]]
        assert batch["video"].min() > 0


@pytest.mark.parametrize("short_clip", ["loop", "hold"])
def test_long_videos_are_not_touched_by_a_policy(short_clip):
    collection = videos((9, 3))
    assert seen(collection.clips(4, 2, "centre", short_clip))[0] == [2, 4, 6, 8]
    starts = set()
    for batch in batches(collection, 20, 3, 4, stride=2, clip_start="random", short_clip=short_clip):
        starts |= {tuple(clip) for i, clip in zip(batch["video_id"], seen(batch["video"]), strict=True) if i == 0}
    assert starts == {(1, 3, 5, 7), (2, 4, 6, 8), (3, 5, 7, 9)}


def test_drop_removes_short_videos_and_renumbers():
    collection = data.apply_short_clip_policy(videos((5, 3, 4), labels=True), 4, short_clip="drop")
    assert collection.names == ("video_00000", "video_00002")
    assert seen(collection.clips(4)) == [[1, 2, 3, 4], [41, 42, 43, 44]]
    np.testing.assert_array_equal(collection.action, [0, 2])
    (batch,) = batches(collection, 2, 1, 4)
    assert sorted(batch["video_id"]) == [0, 1]


# ---------------------------------------------------------------- bad arguments
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"stride": 0}, "stride=0"),
        ({"stride": -1}, "stride=-1"),
        ({"short_clip": "pad"}, "short_clip.*'pad'"),
        ({"short_clip": "drop"}, "apply_short_clip_policy"),
        ({"clip_start": "last"}, "clip_start.*'last'"),
        ({"num_frames": 5}, "1 of 3 videos are shorter"),
        ({"order_form": 3}, r"order_form.*\(1, 2\).*3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.make_dataset(videos(), **{"batch_size": 2, "num_frames": 3, **arguments})


@pytest.mark.parametrize("batch_size", [0, -3])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match=f"batch_size.*{batch_size}"):
        data.make_dataset(videos(), batch_size, 3)


# ---------------------------------------------------------------- from shards
@pytest.mark.parametrize(
    ("batch_size", "arguments"),
    first(
        3,
        [
            (1, {}),
            (4, {"clip_start": "random", "seed": 3}),
            (4, {"clip_start": "random", "stride": 3, "start_step": 17}),
            (13, {"clip_start": "centre", "seed": 1}),
            (5, {"num_frames": 64, "short_clip": "loop"}),
            (5, {"num_frames": 64, "short_clip": "hold", "clip_start": "random"}),
            (3, {"num_frames": 30, "stride": 3, "short_clip": "loop", "clip_start": "random"}),
        ],
    ),
)
def test_batches_from_shards_are_those_from_memory(prepared, collection, batch_size, arguments):
    arguments = {"num_frames": 8, **arguments}
    sharded = data.make_dataset(data.ShardedVideos.open(prepared), batch_size, **arguments)
    memory = data.make_dataset(collection, batch_size, **arguments)
    assert sharded.element_spec == memory.element_spec
    for a, b in zip(sharded.take(7), memory.take(7), strict=True):
        assert set(a) == set(b) == {"video", "video_id", "step", "action"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_starting_late_in_shards_equals_skipping(prepared):
    arguments = {"batch_size": 3, "num_frames": 4, "clip_start": "random", "seed": 2}
    videos = data.ShardedVideos.open(prepared)
    for a, b in zip(
        data.make_dataset(videos, **arguments).skip(9).take(3),
        data.make_dataset(videos, **arguments, start_step=9).take(3),
        strict=True,
    ):
        assert int(a["step"][0]) == int(b["step"][0])
        np.testing.assert_array_equal(a["video"], b["video"])


def test_batches_of_a_subset(prepared, collection):
    chosen = [5, 0, 3]
    sharded = data.make_dataset(data.ShardedVideos.open(prepared).subset(chosen), 3, 8)
    for a, b in zip(sharded.take(3), data.make_dataset(collection.subset(chosen), 3, 8).take(3), strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
        np.testing.assert_array_equal(a["action"], b["action"])


def test_batches_of_mirror_images(prepared, collection):
    """In any order, and of subsets: every clip is that of its video, flipped where the video is."""
    chosen = [7, 2, 11, 0]
    mirrored = collection.with_mirrored(own_actions=True).subset(chosen)
    sharded = data.ShardedVideos.open(prepared).with_mirrored(own_actions=True).subset(chosen)
    assert sharded.digest == mirrored.digest
    arguments = {"batch_size": 3, "num_frames": 4, "clip_start": "centre"}
    clips = mirrored.clips(4, 1, "centre")
    np.testing.assert_array_equal(clips[0], collection.clips(4, 1, "centre")[1][:, :, ::-1])
    for a, b in zip(
        data.make_dataset(sharded, **arguments).take(3), data.make_dataset(mirrored, **arguments).take(3), strict=True
    ):
        np.testing.assert_array_equal(a["video"], b["video"])
        np.testing.assert_array_equal(b["video"], clips[b["video_id"]])


@pytest.mark.parametrize("kind", ["aligned", "unaligned", "read-only", "strided"])
def test_frames_become_a_tensor_whatever_their_memory(kind):
    frames = empty_frames((5, 4, 4, 3))
    frames[:] = np.random.default_rng(0).integers(0, 256, frames.shape)
    if kind == "unaligned":
        frames = frames.ravel()[48 * 2 + 1 : 48 * 4 + 1].reshape(2, 4, 4, 3)
        assert frames.ctypes.data % 64
    elif kind == "strided":
        frames = frames[::2]
    elif kind == "read-only":
        frames.flags.writeable = False
    tensor = frames_tensor(frames)
    np.testing.assert_array_equal(tf.gather(tensor, [1, 0]), frames[[1, 0]])
    if kind == "aligned":
        frames[0] = 7
        assert tf.reduce_all(tensor[0] == 7)  # the same memory


def test_short_videos_are_dropped_as_from_a_collection(prepared, collection):
    arguments = {"num_frames": 45, "short_clip": "drop"}
    settled = data.apply_short_clip_policy(data.ShardedVideos.open(prepared), **arguments)
    assert isinstance(settled, data.ShardedVideos)
    assert settled.digest == data.apply_short_clip_policy(collection, **arguments).digest
    with pytest.raises(ValueError, match="3 of 6 videos are shorter"):
        data.make_dataset(data.ShardedVideos.open(prepared), 2, 45)


def test_replicas_share_a_batch(prepared, two_replicas):
    dataset = data.make_dataset(data.ShardedVideos.open(prepared), 4, 3, clip_start="random")
    shared_out = iter(two_replicas.experimental_distribute_dataset(dataset))
    for batch in dataset.take(3):
        parts = [part.numpy() for part in two_replicas.experimental_local_results(next(shared_out)["video"])]
        assert [len(part) for part in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), batch["video"])


def test_a_damaged_frame_is_never_trained_on(copy):
    videos = data.ShardedVideos.open(copy)
    for shard in videos.shards:
        flip(copy / shard.file, shard.num_bytes // 2)
    with pytest.raises(tf.errors.DataLossError):
        for _ in data.make_dataset(data.ShardedVideos.open(copy), 6, 90, short_clip="hold").take(1):
            pass


# ---------------------------------------------------------------- a service
def start_worker(dispatcher):
    service = tf.data.experimental.service
    return service.WorkerServer(service.WorkerConfig(dispatcher.target.split("//")[1], heartbeat_interval_ms=100))


@pytest.fixture(scope="module")
def dispatcher():
    dispatcher = tf.data.experimental.service.DispatchServer()
    worker = start_worker(dispatcher)
    yield dispatcher
    del worker


def test_a_service_sends_equal_batches(prepared, dispatcher):
    arguments = {"batch_size": 4, "num_frames": 5, "clip_start": "random", "start_step": 6}
    dataset = data.make_dataset(data.ShardedVideos.open(prepared), **arguments)
    served = data.distribute(dataset, dispatcher.target, start_step=6)
    assert served.element_spec == dataset.element_spec
    for _ in range(2):  # a second process, or the same after a restart
        for a, b in zip(served.take(5), dataset.take(5), strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_out_of_order_are_refused(prepared, dispatcher):
    dataset = data.make_dataset(data.ShardedVideos.open(prepared), 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of order"):
        next(iter(data.distribute(dataset, dispatcher.target, start_step=1)))


def test_a_second_worker_is_noticed(prepared):
    dispatcher = tf.data.experimental.service.DispatchServer()
    workers = [start_worker(dispatcher) for _ in range(2)]
    dataset = data.make_dataset(data.ShardedVideos.open(prepared), 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have one worker"):
        for _ in data.distribute(dataset, dispatcher.target).take(200):
            pass
    del workers


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", ""])
def test_addresses(prepared, address):
    with pytest.raises(ValueError, match="grpc://host:port"):
        data.distribute(data.make_dataset(data.ShardedVideos.open(prepared), 2, 3), address)
