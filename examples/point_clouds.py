"""Generate point clouds: an encoder, a flow given its latents, and a prior over the latents.

    python examples/point_clouds.py
    python examples/point_clouds.py --data mnist --num-points 256 --class-conditional
    python examples/point_clouds.py --model.encoder slot-attention --model.backbone dit
    python examples/point_clouds.py --data clouds.npz --num-steps 20000
    python examples/point_clouds.py --start-from artifacts/point_clouds --output artifacts/more

By default the clouds are scikit-learn's handwritten digits, which need no download. An
`.npz` file holds `points (clouds, n, d)` in any dimension, and may hold a boolean
`mask (clouds, n)` and `labels (clouds,)`.

Everything goes to the output folder. Interrupt the run and start it again: it resumes from
its last checkpoint.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.random as jr
import tyro

import flowkit as fk
from flowkit import pipelines


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a generative model of point clouds and judge it on held-out ones."""

    data: str = "digits"
    """`digits`, `mnist`, `mnist-rotated`, `mnist-translated`, `mnist-rotated-translated`,
    `scenes`, `scenes-rotated`, `scenes-rotated-scaled`, or the path of an .npz file."""
    max_samples: int | None = None
    """Maximum number of training clouds."""
    num_points: int = 64
    """Points per digit; for MNIST and files, points per cloud and step."""
    draws: int = 16
    """Number of clouds drawn from each training image of `digits`."""
    test_fraction: float = 0.2
    """Held-out fraction of `digits` or a file. MNIST has its own test set."""
    test_samples: int = 360
    """Maximum number of held-out clouds."""
    class_conditional: bool = False
    """Whether the prior, which must be a flow, is given the class of a cloud."""
    guidance: float = 1.0
    """Scale of the guidance of the prior in sampling. Above 1 clouds match their class
    better, and vary less."""
    start_from: str | None = None
    """Folder of an earlier run. Its model is trained further, and its options of data,
    model and optimizer are the defaults of this run."""
    checkpoint_every: int | None = 500
    """Steps between checkpoints, pictures and readings of explained velocity and Chamfer
    distance. None saves the end of a stage only."""
    up_axis: int = 2
    """Axis of space that points up in pictures, about which `--augment` rotates."""
    seed: int = 42
    """Random seed."""
    output: str = "artifacts/point_clouds"  # Figures, metrics and checkpoints.
    # The parts of the model by name, with their sizes.
    model: pipelines.SetFlowConfig = pipelines.SetFlowConfig()
    training: Annotated[pipelines.SetFlowTraining, tyro.conf.arg(name="")] = (
        pipelines.SetFlowTraining()
    )

    def __post_init__(self):
        for name in ("num_points", "test_samples", "max_samples", "checkpoint_every"):
            least = 2 if name == "test_samples" else 1
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if self.up_axis not in (0, 1, 2):
            raise ValueError(f"`up_axis` must be 0, 1 or 2, got {self.up_axis}.")


FREE = {"num_steps", "prior_steps", "stages", "block", "checkpoint_every"}
FREE |= {"test_samples", "guidance", "output"}
"""Options that may change when a run goes on."""


def main(config: Config) -> None:
    split = load(config)
    config = checked(config, split)
    folder = Path(config.output)
    options = dataclasses.asdict(config)
    options |= options.pop("training") | {"units": split.units}
    model_config, options = pipelines.continued(
        folder, config.model, options, free=FREE
    )

    init_key, train_key, report_key = jr.split(jr.key(config.seed + 1), 3)
    fit_key, monitor_key = jr.split(train_key)
    model = model_config.build(key=init_key)
    if config.start_from is not None:
        model = earlier_model(config.start_from, config.model)
    report = pipelines.SetFlowReport(
        split,
        num_classes=model_config.num_classes,
        guidance=config.guidance,
        hide=config.training.hide,
        up=config.up_axis,
        seed=config.seed,
    )
    stages = make_stages(config, model_config, split)
    interval = config.checkpoint_every or max(stage.num_steps for stage in stages)

    folder.mkdir(parents=True, exist_ok=True)
    results = fk.training.fit_stages(
        [watched(stage, report, folder, interval, key=monitor_key) for stage in stages],
        model,
        ema_decay=fk.training.WarmUpDecay(config.training.ema_decay),
        checkpoints=fk.training.Checkpoints(
            folder / "checkpoints", every=interval, config=options
        ),
        key=fit_key,
    )
    # For `analyze_latents.py`. Not before: the folder may be that of another run.
    fk.data.save_npz(folder / "held_out.npz", split.seen)
    # A prior that is still to be trained generates nothing.
    generated = [*results] != ["flow"] or not model_config.has_trainable_prior
    finish(results, report, folder, generated=generated, key=report_key)


def load(config: Config) -> fk.data.CloudSplit:
    names = ("num_points", "max_samples", "test_samples", "draws", "test_fraction")
    options = {name: getattr(config, name) for name in names}
    return fk.data.cloud_split(config.data, **options, seed=config.seed)


def make_stages(
    config: Config, model: pipelines.SetFlowConfig, split: fk.data.CloudSplit
) -> list[fk.training.Stage]:
    return pipelines.set_flow_stages(
        config.training,
        model,
        split.train,
        num_points=config.num_points,
        folder=config.output if config.start_from is None else None,
        up=config.up_axis,
        seed=config.seed,
    )


def finish(
    results: dict[str, fk.training.FitResult],
    report: pipelines.SetFlowReport,
    folder: Path,
    *,
    generated: bool,
    key: jax.Array,
) -> None:
    """Judges the model of the last stage, and draws all of them."""
    print("Reconstructing and sampling ...", flush=True)
    histories = {name: result.history for name, result in results.items()}
    fk.plotting.loss_trajectory(histories, path=folder / "loss_trajectory.png")
    *_, last = results.values()
    numbers = {
        "steps": {name: int(result.state.step) for name, result in results.items()},
        "seconds": sum(result.seconds for result in results.values()),
    }
    numbers |= report.write(last.ema, folder, generated=generated, key=key)
    text = json.dumps(numbers, indent=2)
    (folder / "metrics.json").write_text(text + "\n")
    print(f"{text}\nFigures, metrics and checkpoints are in {folder}/.")


def checked(config: Config, split: fk.data.CloudSplit) -> Config:
    """The configuration with what the data decide. An option without effect is refused."""
    dim = split.train.points.shape[-1]
    idle = {}
    if config.data != "digits":
        idle["draws"] = "only `digits` are drawn repeatedly"
    if config.data.startswith(("mnist", "scenes")):
        idle["test_fraction"] = "MNIST has its own test set"
    if dim != 3:
        idle["up_axis"] = f"the clouds have {dim} dimensions"
    if not config.class_conditional:
        idle["guidance"] = "the prior is not conditioned on classes"
    elif config.training.class_dropout == 0:
        idle["guidance"] = "it takes a `class_dropout` above 0"
    pipelines.check_options(config, idle)

    num_classes = 0
    if config.class_conditional:
        if split.train.labels is None:
            raise ValueError(
                f"`class_conditional` needs labels; {config.data} has none."
            )
        num_classes = int(split.train.labels.max()) + 1
    model = config.model.with_sizes(in_size=dim, num_classes=num_classes)
    model.check()
    config.training.check(model)
    return dataclasses.replace(config, model=model)


def earlier_model(folder: str, config: pipelines.SetFlowConfig) -> fk.latent.SetFlow:
    """The model of an earlier run, which keeps its networks."""
    model, options = pipelines.load_set_flow(folder)
    old = dataclasses.asdict(pipelines.SetFlowConfig.from_json(options["model"]))
    new = dataclasses.asdict(config)
    changed = [name for name in old if old[name] != new[name]]
    if changed:
        raise ValueError(
            f"`model` has another {changed[0]} than the model in {folder}, which keeps its "
            f"networks ({old[changed[0]]!r}): leave out {', '.join(changed)}."
        )
    return model


def watched(
    stage: fk.training.Stage,
    report: pipelines.SetFlowReport,
    folder: Path,
    interval: int,
    *,
    key: jax.Array,
) -> fk.training.Stage:
    """The stage with readings and pictures at every checkpoint."""

    def watch(state, step):
        report.draw(state.ema, folder, generated=stage.name != "flow", key=key)
        return report.monitor(state.ema, key=key) if stage.name != "prior" else None

    return dataclasses.replace(stage, callbacks=[fk.training.Every(interval, watch)])


def parse(arguments: list[str] | None = None) -> Config:
    """The command line. An earlier run to start from gives the defaults."""
    config = pipelines.parse(Config, arguments)
    if config.start_from is None:
        return config
    _, options = pipelines.load_set_flow(config.start_from)
    options["model"] = pipelines.SetFlowConfig.from_json(options["model"])
    options["training"] = only(options, pipelines.SetFlowTraining)
    return pipelines.parse(Config, arguments, default=only(options, Config))


def only(options: dict[str, Any], kind: Any) -> Any:
    """A dataclass of those options that are among its fields."""
    names = {field.name for field in dataclasses.fields(kind)} - {"start_from"}
    return kind(**{name: options[name] for name in names & set(options)})


if __name__ == "__main__":
    again = "Interrupted; the same command resumes from the last checkpoint."
    with pipelines.exit_on_misuse(interrupted=again):
        main(parse())
