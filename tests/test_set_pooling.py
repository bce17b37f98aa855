import equinox as eqx
import jax.random as jr
import numpy as np
import pytest

import flowkit.nn as nn
from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_invariant,
    perturbed,
)

from .helpers import call, cloud, KEY


POOLINGS = {
    "attention": lambda key: nn.AttentionPool(4, key_size=3, key=key),
    "set2set": lambda key: nn.Set2Set(4, key=key),
    "seeds": lambda key: nn.PMA(4, num_seeds=2, num_heads=2, key=key),
}
FEATURES = np.asarray(cloud(4)) - 1
MASK = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_symmetry_and_masks(name):
    pooling = perturbed(POOLINGS[name](KEY), key=jr.key(1))
    assert_permutation_invariant(pooling, FEATURES, MASK, key=KEY)
    assert_mask_independent(pooling, FEATURES, MASK, key=KEY)


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


def test_attention_pool_is_its_formula():
    pooling = eqx.tree_at(
        lambda p: p.query,
        POOLINGS["attention"](KEY),
        np.array([1.0, -2.0, 0.5], np.float32),
    )
    rows = FEATURES[MASK]
    weights = softmax(
        rows @ np.asarray(pooling.keys.weight) @ np.asarray(pooling.query) / np.sqrt(3)
    )
    np.testing.assert_allclose(call(pooling, FEATURES, MASK), weights @ rows, atol=1e-5)
    flat = eqx.tree_at(lambda p: p.query, pooling, np.zeros(3, np.float32))
    np.testing.assert_allclose(call(flat, FEATURES, MASK), rows.mean(0), atol=1e-5)
    assert not np.any(call(pooling, FEATURES, np.zeros(6, bool)))


def test_set2set_is_its_formula():
    pooling = POOLINGS["set2set"](KEY)
    w_input, w_hidden, bias = (
        np.asarray(p)
        for p in (pooling.cell.weight_ih, pooling.cell.weight_hh, pooling.cell.bias)
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    rows, query, memory, read = FEATURES[MASK], np.zeros(4), np.zeros(4), np.zeros(4)
    for _ in range(3):
        i, f, g, o = np.split(
            w_input @ np.concatenate([query, read]) + w_hidden @ query + bias, 4
        )
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        query = sigmoid(o) * np.tanh(memory)
        read = softmax(rows @ query) @ rows
    np.testing.assert_allclose(
        call(pooling, FEATURES, MASK), np.concatenate([query, read]), atol=1e-5
    )


def test_seeds_attend_to_features_and_then_to_each_other():
    pooling = nn.PMA(4, num_seeds=2, depth=0, num_heads=2, key=KEY)
    gathered = pooling.gather(pooling.seeds, pooling.feed_forward(FEATURES[MASK]))
    np.testing.assert_allclose(call(pooling, FEATURES, MASK), gathered, atol=1e-5)
    deeper = nn.PMA(4, num_seeds=2, depth=2, num_heads=2, key=KEY)
    assert len(deeper.blocks) == 2


@pytest.mark.parametrize("name", ["set2set", "seeds"])
def test_empty_sets_give_what_weights_alone_decide(name):
    pooling = perturbed(POOLINGS[name](KEY), key=jr.key(1))
    nothing = np.zeros(6, bool)
    value = call(pooling, FEATURES, nothing)
    assert np.all(value[..., 0] != 0)
    assert np.array_equal(call(pooling, 2 * FEATURES, nothing), value)
