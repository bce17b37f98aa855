"""How noise and data are paired: whole examples, points within clouds, plans made ahead."""

from flowkit._couplings.ahead import (
    Pairs as Pairs,
    planned_pairs as planned_pairs,
)
from flowkit._couplings.assignment import (
    assignment as assignment,
    ConditionalAssignment as ConditionalAssignment,
)
from flowkit._couplings.base import (
    ChainedCouplings as ChainedCouplings,
    Coupling as Coupling,
    independent as independent,
    pair as pair,
    Paired as Paired,
    Pairing as Pairing,
)
from flowkit._couplings.entropic import (
    EntropicCoupling as EntropicCoupling,
    Plan as Plan,
    UnbalancedCoupling as UnbalancedCoupling,
)
from flowkit._couplings.points import (
    AlignedAssignment as AlignedAssignment,
    EntropicPointAssignment as EntropicPointAssignment,
    point_assignment as point_assignment,
    superset_pairs as superset_pairs,
)
