"""What the compiled steps of every placement move between devices, as JSON.

    python tests/collectives.py 8 64
    python tests/collectives.py 2 4 8 16 loop

The second line looks at one of the cases alone. Bytes are those that each device sends over a
ring, in units of the bytes of the weights.
"""

import json
import math
import os
import re
import sys


sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZES = [int(size) for size in sys.argv[1:] if size.isdigit()]
FLAGS = [
    f"--xla_force_host_platform_device_count={max(SIZES)}",
    "--xla_backend_optimization_level=0",
]
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowkit as fk
from flowkit import training as tr


WIDTH = 256
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8}
# What a device sends of a result of one byte, on n devices; in a scatter the result is a
# share.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


class Looped(eqx.Module):
    """A network that calls one layer ten times in a loop."""

    layer: eqx.nn.Linear

    def __call__(self, t, x, cond=None):
        turn = lambda h, _: (jnp.tanh(self.layer(h)) + t, None)
        return jax.lax.scan(turn, jnp.tile(x, WIDTH // 2), length=10)[0][:2]


NETWORKS = {
    "plain": fk.nn.MLP(2, hidden_sizes=(WIDTH, WIDTH), key=jr.key(0)),
    "loop": Looped(eqx.nn.Linear(WIDTH, WIDTH, key=jr.key(0))),
}
PLACEMENTS = {
    "replicated": tr.Replicated,
    "sharded": tr.FullySharded,
    "pmapped": lambda mesh: tr.Pmapped(list(mesh.devices.flat)),
}


def blocked_loss(flow, batch, key):
    return fk.flow_matching_loss(flow, batch, block=len(batch) // 4, key=key)


def loss(flow, batch, key):
    return fk.flow_matching_loss(flow, batch, key=key)


def own_loss(flow, batch, key):
    """Averages over the batch by itself."""
    del key
    return jnp.mean(jax.vmap(lambda x: jnp.sum(flow(0.5, x) ** 2))(batch))


def computations(text):
    """The lines of each computation of a program, and the name of the first."""
    found = {}
    entry = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*{$", line)
        if start:
            name = start[2]
            found[name] = []
            entry = name if start[1] else entry
        elif found:
            found[name].append(line)
    return found, entry


def turns(found, name, times, total):
    """Adds how often each computation runs to `total`."""
    total[name] = total.get(name, 0) + times
    for line in found[name]:
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        inner = times * int(trips[1]) if trips else times
        for called in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line):
            turns(found, called, inner, total)


def num_bytes(shapes):
    total = 0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        total += BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def sent(text, num):
    """Bytes sent by a device, and the number of collectives that count."""
    found, entry = computations(text)
    total = {}
    turns(found, entry, 1, total)
    moved = 0.0
    count = {}
    for name, times in total.items():
        for line in found[name]:
            match = re.search(rf"= (.*?) ({'|'.join(SENT)})(?:-start)?\(", line)
            if match is None or num_bytes(match[1]) <= 64:
                continue
            moved += times * num_bytes(match[1]) * SENT[match[2]](num)
            count[match[2]] = count.get(match[2], 0) + times
    return moved, count


def measured(placement, network, loss, num):
    flow = fk.Flow(NETWORKS[network])
    weights = jax.tree.leaves(eqx.filter(flow, eqx.is_inexact_array))
    total = 4 * sum(leaf.size for leaf in weights)

    mesh = tr.data_mesh(jax.devices()[:num])
    step = tr.make_step(loss, optax.adam(1e-3), parallel=PLACEMENTS[placement](mesh))
    state = tr.init_state(flow, optax.adam(1e-3), key=jr.key(1))
    batch = np.ones((8 * num, 2), np.float32)
    compiled = step.lower(state, batch).compile()
    moved, count = sent(compiled.as_text(), num)
    memory = compiled.memory_analysis().argument_size_in_bytes
    return {"bytes": moved / total, "count": count, "arguments": memory / total}


CASES = {
    "plain": ("plain", loss),
    "loop": ("loop", loss),
    "block": ("plain", blocked_loss),
    "own": ("plain", own_loss),
}


def main():
    results = {}
    chosen = {name: CASES[name] for name in CASES if name in sys.argv} or CASES
    for num in SIZES:
        for placement in PLACEMENTS:
            for name, case in chosen.items():
                # Many devices take long to compile for; pmap divides no loss of one's own.
                if (
                    num > 8
                    and name != "loop"
                    or (placement, name) == ("pmapped", "own")
                ):
                    continue
                key = f"{placement} {name} {num}"
                results[key] = measured(placement, *case, num)
                print(key, results[key], file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
