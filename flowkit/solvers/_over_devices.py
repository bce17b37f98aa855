"""A batch that is solved by several devices."""

import equinox as eqx
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from flowkit._devices import (
    check_axes,
    divided,
    Division,
    over_devices,
    with_auto_axes,
)
from flowkit._solve.batching import AbstractBatching, Lockstep, Rows, Stats
from flowkit._solve.options import Solve


class OverDevices(AbstractBatching):
    """Each device of a mesh solves its part of the batch, and waits for no other one.

    ```python
    everywhere = fk.solvers.OverDevices(fk.training.data_mesh())
    samples = fk.sample(flow, (2,), num_samples=4096, batching=everywhere, key=key)
    ```

    The samples are the same as on one device, up to rounding; with `SharedStep`, each device
    has its own step size. The result is sharded over the devices; see
    `samples.values.sharding`. Error messages number samples from the first one on each device.
    For gradients, give `adjoint=diffrax.DirectAdjoint()`: the default adjoint cannot make its
    checkpoints here.

    **Arguments:**

    - `mesh`: devices with the axis `"data"`, as of `fk.training.data_mesh`. They must divide the
        number of samples.
    - `batching`: how the samples of one device share it.
    """

    mesh: Mesh = eqx.field(static=True, converter=with_auto_axes)
    batching: AbstractBatching = Lockstep()

    def __check_init__(self):
        check_axes(self.mesh)

    def solve(
        self, rows: Rows, times: tuple[Array, Array], options: Solve
    ) -> tuple[PyTree[Array], Stats]:
        number = self.mesh.size
        if len(rows) % number:
            raise ValueError(
                f"`batching` is over {number} devices, which do not divide a batch of "
                f"{len(rows)}; ask for a multiple."
            )

        is_shared = rows.cond_axes is None
        shared = (rows.velocity_of, rows.cond if is_shared else None, times)
        examples = (rows.starts, None if is_shared else rows.cond, rows.extra)

        def per_device(shared, examples):
            velocity_of, common, times = shared
            starts, own, extra = examples
            cond = common if is_shared else own
            part = Rows(velocity_of, starts, cond, extra, rows.cond_axes)
            return self.batching.solve(part, times, options)

        with divided(Division(number, self.mesh)):
            return over_devices(per_device, shared, examples)
