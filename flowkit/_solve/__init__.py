"""A solver samples a flow: options, one solve, batches of samples, log-probabilities, files."""

from flowkit._solve.batching import (
    AbstractBatching as AbstractBatching,
    Lockstep as Lockstep,
    Stats as Stats,
)
from flowkit._solve.certificate import (
    Certificate as Certificate,
    certify as certify,
)
from flowkit._solve.export import export_sampler as export_sampler
from flowkit._solve.likelihood import (
    log_prob as log_prob,
    log_prob_with_error as log_prob_with_error,
    LogProb as LogProb,
    sample_and_log_prob as sample_and_log_prob,
    SamplesAndLogProbs as SamplesAndLogProbs,
)
from flowkit._solve.load import (
    ExportedSampler as ExportedSampler,
    load_sampler as load_sampler,
)
from flowkit._solve.noise_scales import (
    AbstractNoiseScale as AbstractNoiseScale,
    ConstantNoise as ConstantNoise,
    DecreasingNoise as DecreasingNoise,
    DiffusionNoise as DiffusionNoise,
    LinearNoise as LinearNoise,
    SigmaNoise as SigmaNoise,
    SineNoise as SineNoise,
)
from flowkit._solve.ode import (
    encode as encode,
    integrate as integrate,
)
from flowkit._solve.options import (
    DEFAULT_ADJOINT as DEFAULT_ADJOINT,
    DEFAULT_SOLVER as DEFAULT_SOLVER,
    resolve as resolve,
)
from flowkit._solve.sample import (
    sample as sample,
    Samples as Samples,
)
from flowkit._solve.sde import sample_sde as sample_sde
from flowkit._solve.traces import (
    AbstractTrace as AbstractTrace,
    ExactTrace as ExactTrace,
    gaussian as gaussian,
    Hutchinson as Hutchinson,
    HutchPlusPlus as HutchPlusPlus,
    orthogonal as orthogonal,
    rademacher as rademacher,
)
