"""Optimal transport between two sets, used by couplings and by metrics."""

from flowkit._transport.assignment import (
    solve_assignment as solve_assignment,
)
from flowkit._transport.permutations import (
    improve_by_swaps as improve_by_swaps,
    round_to_permutation as round_to_permutation,
)
from flowkit._transport.sinkhorn import (
    check_epsilon as check_epsilon,
    is_prescribed as is_prescribed,
    log_weights as log_weights,
    Potentials as Potentials,
    sinkhorn as sinkhorn,
    soft_minima as soft_minima,
    SoftMinima as SoftMinima,
)
