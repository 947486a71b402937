"""Triplet losses by hand arithmetic, plain loops and golden numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.losses.triplet import temporal_triplet_loss, triplet_hard_loss, triplet_semihard_loss


def random_codes(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_temporal_loss(codes, positive_radius, negative_radius, margin, squared, mining):
    losses = []
    num_frames = len(codes)
    distance = np.square(codes[:, None].astype(np.float64) - codes[None]).sum(-1)
    distance = distance if squared else np.sqrt(distance)
    for i in range(num_frames):
        negatives = [distance[i, k] for k in range(num_frames) if abs(i - k) > negative_radius]
        for j in range(num_frames):
            if not negatives or not 0 < abs(i - j) <= positive_radius:
                continue
            if mining == "all":
                chosen = negatives
            else:
                farther = [d for d in negatives if d > distance[i, j]]
                chosen = [min(farther) if farther else max(negatives)]
            losses += [max(distance[i, j] - d + margin, 0.0) for d in chosen]
    return np.mean(losses)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", ["semi_hard", "all"])
@pytest.mark.parametrize(("num_frames", "positive_radius", "negative_radius"), [(16, 2, 5), (8, 2, 5), (5, 1, 1)])
def test_temporal_loss_equals_plain_loops(num_frames, positive_radius, negative_radius, mining, squared):
    codes = random_codes(3, num_frames, 4)
    options = (positive_radius, negative_radius, 2.0, squared, mining)
    expected = [plain_temporal_loss(video, *options) for video in codes]
    loss = temporal_triplet_loss(codes, *options)
    assert tuple(loss.shape) == (3,)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_temporal_loss_by_hand():
    # Pairs (0,1) (1,0) (1,2) (2,1) lie 1 apart; with negative radius 1 only frames 0 and 2 have a negative: each other.
    codes = np.array([[[0.0], [1.0], [3.0]]], np.float32)
    # d(0,1) = 1, d(2,1) = 4, d(0,2) = 9 squared: max(1 - 9 + 6, 0) = 0 and max(4 - 9 + 6, 0) = 1.
    loss = temporal_triplet_loss(codes, positive_radius=1, negative_radius=1, margin=6.0)
    np.testing.assert_allclose(loss, [0.5])
    # Unsquared: max(1 - 3 + 6, 0) = 4 and max(2 - 3 + 6, 0) = 5.
    loss = temporal_triplet_loss(codes, positive_radius=1, negative_radius=1, margin=6.0, squared=False)
    np.testing.assert_allclose(loss, [4.5])


def test_mining_takes_the_nearest_farther_negative_else_the_farthest():
    # Anchor 0 at the origin; positive 1 at distance 2; negatives 2, 3, 4 at 1, 3, 5: the one at 3 is chosen.
    codes = np.array([[[0.0], [2.0], [1.0], [3.0], [5.0]]], np.float32)
    options = dict(positive_radius=1, negative_radius=1, margin=4.0, squared=False)
    total = plain_temporal_loss(codes[0], 1, 1, 4.0, False, "semi_hard")
    np.testing.assert_allclose(temporal_triplet_loss(codes, **options), [total], rtol=1e-6)
    # All negatives of anchor 0 nearer than its positive: the farthest of them is chosen.
    codes = np.array([[[0.0], [9.0], [1.0], [3.0], [5.0]]], np.float32)
    total = plain_temporal_loss(codes[0], 1, 1, 4.0, False, "semi_hard")
    np.testing.assert_allclose(temporal_triplet_loss(codes, **options), [total], rtol=1e-6)


def test_equal_codes_cost_the_margin():
    codes = np.ones((2, 16, 4), np.float32)
    np.testing.assert_allclose(temporal_triplet_loss(codes, margin=2.0), [2.0, 2.0])


@pytest.mark.parametrize("squared", [True, False])
def test_gradient_is_finite_for_equal_codes(squared):
    codes = tf.constant(np.ones((1, 8, 3), np.float32))
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(codes)
        losses = [
            tf.reduce_sum(temporal_triplet_loss(codes, squared=squared)),
            triplet_semihard_loss(labels, codes[0]),
            triplet_hard_loss(labels, codes[0]),
        ]
    for loss in losses:
        assert np.all(np.isfinite(tape.gradient(loss, codes)))


def test_gradient_descent_separates_far_frames():
    codes = tf.Variable(random_codes(1, 12, 2))
    before = float(temporal_triplet_loss(codes)[0])
    for _ in range(30):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(temporal_triplet_loss(codes))
        codes.assign_sub(0.5 * tape.gradient(loss, codes))
    assert float(temporal_triplet_loss(codes)[0]) < 0.5 * before


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="6 frames.*negative_radius=5.*at least 7 frames.*at most 4"):
        temporal_triplet_loss(random_codes(1, 6, 2))
    assert temporal_triplet_loss(random_codes(1, 7, 2)).shape == (1,)


def test_wrong_arguments_are_refused():
    codes = random_codes(1, 16, 2)
    with pytest.raises(ValueError, match="positive_radius=0"):
        temporal_triplet_loss(codes, positive_radius=0)
    with pytest.raises(ValueError, match="positive_radius=6, negative_radius=5"):
        temporal_triplet_loss(codes, positive_radius=6)
    with pytest.raises(ValueError, match="'semi_hard' or 'all'.*'hard'"):
        temporal_triplet_loss(codes, mining="hard")
    with pytest.raises(ValueError, match=r"\(B, T, D\).*\(16, 2\)"):
        temporal_triplet_loss(codes[0])
    with pytest.raises(ValueError, match=r"\(N, D\).*\(1, 16, 2\)"):
        triplet_hard_loss(np.zeros(16, np.int32), codes)


def plain_label_losses(labels, embeddings, margin):
    distance = np.sqrt(np.square(embeddings[:, None].astype(np.float64) - embeddings[None]).sum(-1))
    semi_hard, hard = [], []
    for i, label in enumerate(labels):
        negatives = distance[i][labels != label]
        positives = [distance[i, j] for j in range(len(labels)) if j != i and labels[j] == label]
        if len(negatives) == 0 or not positives:
            continue
        for positive in positives:
            farther = negatives[negatives > positive]
            negative = farther.min() if len(farther) else negatives.max()
            semi_hard.append(max(positive - negative + margin, 0.0))
        hard.append(max(max(positives) - negatives.min() + margin, 0.0))
    return np.mean(semi_hard), np.mean(hard)


def test_label_losses_equal_plain_loops():
    labels = np.array([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have no positive
    embeddings = random_codes(7, 3)
    semi_hard, hard = plain_label_losses(labels, embeddings, 0.7)
    assert float(triplet_semihard_loss(labels, embeddings, 0.7)) == pytest.approx(semi_hard, rel=1e-5)
    assert float(triplet_hard_loss(labels, embeddings, 0.7)) == pytest.approx(hard, rel=1e-5)


def test_label_losses_use_embeddings_as_they_are():
    labels = np.array([0, 0, 1, 1])
    embeddings = random_codes(4, 3)
    normalised = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert float(triplet_hard_loss(labels, embeddings)) != pytest.approx(
        float(triplet_hard_loss(labels, normalised)), abs=1e-3
    )


def test_label_losses_without_any_triplet_are_zero():
    embeddings = random_codes(4, 3)
    for labels in (np.zeros(4, np.int32), np.arange(4)):
        assert float(triplet_semihard_loss(labels, embeddings)) == 0
        assert float(triplet_hard_loss(labels, embeddings)) == 0


def test_label_losses_golden(shared):
    golden = np.load(shared / "golden" / "golden_card_packages.npz")
    labels, embeddings = golden["lab"], keras.ops.convert_to_tensor(golden["emb"])
    semi_hard = float(triplet_semihard_loss(labels, embeddings, margin=0.5))
    assert semi_hard == pytest.approx(float(golden["tfa_triplet_semihard"]), abs=1e-5)
    hard = float(triplet_hard_loss(labels, embeddings, margin=0.5))
    assert hard == pytest.approx(float(golden["tfa_triplet_hard"]), abs=1e-5)
