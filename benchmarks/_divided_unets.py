"""Training steps of U-Nets on the CPU as several devices, for `images_steps.py`.

    python benchmarks/_divided_unets.py 128 3   # batch size, repeats

Each core is a device of its own, and each device works on its share of a batch. Prints the
images per second of each network as JSON.
"""

import json
import os
import sys

import _report
import jax
import jax.random as jr
from _unets import flow_loss, lean_unet, torchcfm_unet

import flowkit as fk


def main(batch_size: int, repeats: int) -> None:
    # It has to be known before JAX looks for devices, which no import does.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    parallel = fk.training.Replicated(fk.training.data_mesh())
    x1 = jr.normal(jr.key(1), (batch_size, 28, 28, 1))
    rates = {}
    for network in (torchcfm_unet(), lean_unet()):
        flow = fk.Flow(network)
        call = _report.step_call(flow_loss, flow, x1, parallel=parallel)
        seconds = _report.median_seconds(call, repeats)
        rates[_report.num_parameters(network)] = batch_size / seconds
    print(json.dumps(rates))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
