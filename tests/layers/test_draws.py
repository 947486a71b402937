import numpy as np
import tensorflow as tf

from tfvidgen.layers.draws import add_noise, random_frames, replica_integers, replica_normal, replica_uniform, split_key
from tfvidgen.layers.gradients import clip_to_norm

KEY = tf.constant([1, 2], tf.int64)


def test_replicas_share_one_global_draw(two_replicas):
    def draw():
        return replica_normal(KEY, (2, 3)), replica_uniform(KEY, (2, 3), 1.0, 2.0), replica_integers(KEY, (2,), 100)

    halves = two_replicas.run(draw)
    whole = replica_normal(KEY, (4, 3)), replica_uniform(KEY, (4, 3), 1.0, 2.0), replica_integers(KEY, (4,), 100)
    for half, expected in zip(halves, whole, strict=True):
        parts = two_replicas.experimental_local_results(half)
        np.testing.assert_array_equal(tf.concat(parts, 0), expected)
        assert np.abs(parts[0] - parts[1]).max() > 0  # and each replica has its own part


def test_noise_differs_per_replica_and_has_its_spread(two_replicas):
    parts = two_replicas.experimental_local_results(two_replicas.run(lambda: add_noise(tf.zeros((1, 900)), 0.5, KEY)))
    assert np.abs(parts[0] - parts[1]).max() > 0.1
    assert abs(np.std(parts) - 0.5) < 0.03
    x = tf.ones((1, 2))
    assert add_noise(x, 0.0, KEY) is x and add_noise(x, 0.5, None) is x


def test_keys_are_independent():
    draws = [replica_normal(key, (1000,)).numpy() for key in split_key(KEY, 3)]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.15


def test_random_frames_show_every_frame_of_their_own_clip():
    video = tf.reshape(tf.range(3 * 4), (3, 4, 1, 1, 1)) * tf.ones((1, 1, 2, 2, 1), tf.int32)
    seen = random_frames(KEY, video, 64).numpy()[:, 0, 0, 0].reshape(3, 64)
    for clip in range(3):
        assert set(seen[clip]) == set(range(4 * clip, 4 * clip + 4))  # the last one too


def test_clipping_keeps_short_gradients_and_shortens_long_ones():
    gradients = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    assert clip_to_norm(gradients, 0.0) is gradients
    np.testing.assert_allclose(clip_to_norm(gradients, 6.0)[0], [3.0, 0.0])
    np.testing.assert_allclose(clip_to_norm(gradients, 1.0)[1], [[0.8]], rtol=1e-6)


def test_clipping_measures_the_sum_over_replicas(two_replicas):
    def clip():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return clip_to_norm([tf.where(replica == 0, [3.0, 0.0], [0.0, 4.0])], 1.0)[0]

    parts = two_replicas.experimental_local_results(two_replicas.run(clip))
    np.testing.assert_allclose(sum(parts), [0.6, 0.8], rtol=1e-6)
