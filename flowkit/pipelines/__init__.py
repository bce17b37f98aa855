"""Whole jobs made of the other namespaces: models from configurations, and reports on them."""

from flowkit._namespace import public_names as _public_names
from flowkit.pipelines._misuse import exit_on_misuse as exit_on_misuse, parse as parse
from flowkit.pipelines._options import (
    refuse_without_effect as refuse_without_effect,
)
from flowkit.pipelines._runs import (
    continued as continued,
    load_set_flow as load_set_flow,
)
from flowkit.pipelines._set_flow_config import SetFlowConfig as SetFlowConfig
from flowkit.pipelines._set_flow_report import SetFlowReport as SetFlowReport
from flowkit.pipelines._set_flow_stages import set_flow_stages as set_flow_stages
from flowkit.pipelines._set_flow_training import SetFlowTraining as SetFlowTraining


__dir__ = _public_names(globals())
