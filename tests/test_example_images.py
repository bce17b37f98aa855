"""The example of images: a small run writes what it names and resumes; misuse is reported."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from PIL import Image

import flowkit as fk
from flowkit import pipelines

from .examples import (
    check_every_option_is_among,
    check_help_names_every_option,
    check_misuse,
    loaded,
    parsed,
)


ARGUMENTS = """
train --class-conditional --seed 7 --data.name digits --data.max-samples 40
--data.test-samples 24 --model.backbone dit --model.width-size 8 --model.depth 1
--model.num-heads 2 --model.patch-size 4 --model.time-size 4 --training.epochs 2
--training.batch-size 16 --training.previews 3 --training.keep 1
--training.schedule constant
"""


@pytest.fixture(scope="module")
def example():
    with loaded("images") as module:
        yield module


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    example.main(parsed(example, ARGUMENTS, output=str(folder)))
    return folder


def weights(folder, **options):
    flow, _ = pipelines.load_image_flow(folder, **options)
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(flow, eqx.is_array))
    ]


def same(first, second):
    return all(map(np.array_equal, first, second))


@pytest.mark.slow
def test_every_output_is_there(run):
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "epochs", "loss_trajectory.png", "metrics.json",
    }  # fmt: skip
    pictures = sorted(path.name for path in (run / "epochs").iterdir())
    assert pictures == ["epoch_0000.png", "epoch_0001.png", "epoch_0002.png"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert len(metrics["loss"]) == len(metrics["held_out_loss"]) == 2
    assert metrics["best_epoch"] == 1 + np.argmin(metrics["held_out_loss"])
    assert metrics["parameters"] == sum(leaf.size for leaf in weights(run))


@pytest.mark.slow
def test_same_command_trains_no_further_and_another_is_refused(example, run):
    before = (run / "metrics.json").read_text()
    example.main(parsed(example, ARGUMENTS, output=str(run)))
    after = json.loads((run / "metrics.json").read_text())
    assert after.pop("seconds") > 0
    assert after.items() <= json.loads(before).items()
    other = parsed(example, ARGUMENTS, output=str(run), seed=8)
    with pytest.raises(ValueError, match=r"holds checkpoints of another run.*'seed'"):
        example.main(other)


@pytest.mark.slow
def test_a_longer_run_goes_on_with_the_same_bits(example, run, tmp_path):
    """With a constant learning rate two runs of one epoch are one of two."""
    folder = tmp_path / "run"
    text = f"{ARGUMENTS} --training.previews 0"
    config = parsed(example, text, output=str(folder))
    training = dataclasses.replace(config.training, epochs=1)
    example.main(dataclasses.replace(config, training=training))
    first = weights(folder, checkpoint="last")
    example.main(config)
    second = weights(folder, checkpoint="last")
    assert not same(first, second)
    assert same(second, weights(run, checkpoint="last"))


@pytest.fixture
def drawn(monkeypatch):
    """The images that were handed to the grid, and how."""
    calls = []
    draw = fk.plotting.image_grid

    def record(images, **options):
        calls.append((images, options))
        return draw(images, **options)

    monkeypatch.setattr(fk.plotting, "image_grid", record)
    return calls


@pytest.mark.slow
def test_samples_are_those_of_the_checkpoint(example, run, drawn):
    """Every option of sampling arrives, and the picture has a row for each five samples."""
    text = """sample --seed 3 --sampling.checkpoint 2 --sampling.no-ema
    --sampling.num-samples 10 --sampling.batch-size 4 --sampling.solver euler
    --sampling.num-steps 2 --sampling.labels 3 9 --sampling.guidance 2
    --sampling.columns 5 --sampling.file two.png"""
    example.main(parsed(example, text, output=str(run)))

    ((images, options),) = drawn
    flow, _ = pipelines.load_image_flow(run, checkpoint=2, ema=False)
    x = np.asarray(jr.normal(jr.key(3), (10, 8, 8, 1)))
    velocity = jax.vmap(eqx.nn.inference_mode(flow), in_axes=(None, 0, 0))
    labels = np.resize(np.array([3, 9]), 10)
    for t in (0.0, 0.5):
        given = velocity(t, x, labels)
        free = velocity(t, x, np.full(10, 10))
        x = x + np.float32(0.5) * (free + np.float32(2) * (given - free))
    np.testing.assert_allclose(images, x, atol=1e-5)

    assert options["columns"] == 5
    # 1.2 inches each, in two rows, at 150 dots per inch.
    with Image.open(run / "two.png") as picture:
        assert picture.size == (900, 360)


@pytest.mark.slow
def test_start_from_an_earlier_run(example, run, tmp_path):
    """The network and its averaged weights are those of the other run."""
    text = """train --seed 1 --data.name digits --data.max-samples 16 --data.test-samples 16
    --training.epochs 1 --training.batch-size 16 --training.previews 0
    --training.learning-rate 1e-12"""
    config = parsed(example, text, start_from=str(run), output=str(tmp_path))
    example.main(config)
    for one, other in zip(weights(run), weights(tmp_path), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    config = parsed(example, f"{text} --model.depth 2", start_from=str(run))
    with pytest.raises(ValueError, match="--model.depth has no effect here"):
        example.main(config)


def test_data_are_mnist_if_it_is_there(example, monkeypatch, tmp_path, capsys):
    config = parsed(example, "train")
    load = fk.data.load_mnist

    def absent(*, download):
        assert not download
        return load(tmp_path)

    monkeypatch.setattr(fk.data, "load_mnist", absent)
    assert example.chosen(config).data.name == "digits"
    assert "MNIST is not here: using scikit-learn's digits" in capsys.readouterr().out
    monkeypatch.setattr(fk.data, "load_mnist", lambda *, download: None)
    assert example.chosen(config).data.name == "mnist"
    assert example.chosen(parsed(example, "all --data.name x")).data.name == "x"


# For every option a value that cannot be, or a command for which it has no effect.
MISUSE = """
train --data.name dinosaur: `name` is 'dinosaur': give one of digits, mnist, cifar10, or a folder
train --data.image-size 0: --data.image-size must be at least 1, got 0
train --data.image-size 9: the sides of `x` must be divisible by 4 for 3 levels, got 9 x 9
train --data.crop stretch: --data.crop has no effect here: the images are no folder
train --data.crop round: invalid choice 'round'
sample --data.flip: --data.flip has no effect here: the run in the output folder has its own
train --data.max-samples 0: --data.max-samples must be at least 1, got 0
train --data.test-samples 0: --data.test-samples must be at least 1, got 0
train --data.test-fraction 1: --data.test-fraction must be above 0 and at most 0.9, got 1.0
train --data.name mnist --data.test-fraction 0.5: --data.test-fraction has no effect
train --data.skip-damaged: --data.skip-damaged has no effect
train --data.num-threads 2: --data.num-threads has no effect
train --model.channels 3: `channels` is 3, but 1 for these data
train --model.image-size 28: `image_size` is 28, but 8 for these data
train --class-conditional --model.num-classes 3: `num_classes` is 3, but 10 for these data
train --model.backbone vit: invalid choice 'vit'
train --model.width-size 12: `num_groups` must divide the 12 channels, got 8
train --model.multipliers 1 0: --model.multipliers must be at least 1, got 0
train --model.backbone dit --model.num-blocks 2: `num_blocks` has no effect here: only a U-Net
train --model.attention-levels 3: `attention_levels` must lie in 0 ... 2, got [3]
train --model.num-groups 7: `num_groups` must divide the 16 channels, got 7
train --model.patch-size 4: the sides of `x` must be divisible by 16
train --model.backbone dit --model.patch-size 3: the sides of `x` must be divisible by 3
train --model.depth 2: `depth` has no effect
train --model.num-heads 5: `num_heads` must divide the width of 64, got 5
train --model.dropout 1: --model.dropout must be at least 0 and at most 0.9, got 1.0
train --model.time-size 5: `time_size` must be even
train --model.path crooked: invalid choice 'crooked'
train --model.prediction x: invalid choice 'x'
train --model.backbone dit --model.dtype bfloat16: `dtype` has no effect
train --model.backbone dit --model.rematerialize: `rematerialize` has no effect
train --training.epochs 0: --training.epochs must be at least 1, got 0
train --training.batch-size 0: --training.batch-size must be at least 1, got 0
train --training.batch-size 3: `batch_size` must be a multiple of the 2 devices, got 3
train --training.learning-rate nan: --training.learning-rate must be above 0, got nan
train --training.schedule step: invalid choice 'step'
train --training.weight-decay -1: --training.weight-decay must be at least 0, got -1.0
train --training.ema-decay 2: --training.ema-decay must be at least 0 and at most 1, got 2.0
train --training.class-dropout 0.5: --training.class-dropout has no effect here: the flow is not
train --training.keep 0: --training.keep must be at least 1, got 0
train --training.previews -1: --training.previews must be at least 0, got -1
train --training.devices 3: `devices` is 3, but there are only 2
train --sampling.checkpoint last: --sampling.checkpoint has no effect here: `train` draws previews
all --sampling.checkpoint first: --sampling.checkpoint must be best, last, or the number of an
train --sampling.no-ema: --sampling.ema has no effect
all --sampling.num-samples 0: --sampling.num-samples must be at least 1, got 0
all --sampling.batch-size 0: --sampling.batch-size must be at least 1, got 0
all --sampling.solver euclid: invalid choice 'euclid'
all --sampling.num-steps 0: --sampling.num-steps must be at least 1, got 0
all --sampling.labels 3: --sampling.labels has no effect here: the flow is not conditioned
all --class-conditional --sampling.labels 10: --sampling.labels: the flow has 10 classes from 0
all --sampling.guidance 2: --sampling.guidance has no effect here: the flow is not conditioned
all --class-conditional --training.class-dropout 0 --sampling.guidance 2: it takes a
all --sampling.columns 0: --sampling.columns must be at least 1, got 0
all --sampling.file a/b.png: --sampling.file must be a name without a folder
all --sampling.file a.txt: --sampling.file must end in .png
sample --sampling.num-steps 3: holds no checkpoints: train there first
train --start-from nowhere: nowhere holds no checkpoints: train there first
train --seed x: invalid literal for int
train --sead 1: Unrecognized options: --sead
"""


@pytest.mark.parametrize("line", MISUSE.strip().splitlines())
def test_misuse_is_one_line_and_status_2(example, tmp_path, capsys, monkeypatch, line):
    # As where the example is started, whose own errors count as misuse.
    monkeypatch.setattr(example, "__name__", "__main__")
    command, _, message = line.partition(": ")
    if "--data.name" not in command and not command.startswith("sample"):
        line = f"{command} --data.name digits: {message}"
    check_misuse(example, line, tmp_path, capsys)


@pytest.mark.parametrize(
    "option", ["training.class-dropout", "sampling.guidance", "sampling.labels"]
)
def test_an_earlier_run_decides_about_classes(example, monkeypatch, option):
    def check(num_classes):
        model = {"num_classes": num_classes}
        load = lambda folder: (None, {"model": model})
        monkeypatch.setattr(pipelines, "load_image_flow", load)
        example.check(parsed(example, f"all --start-from run --{option} 0"))

    check(10)
    with pytest.raises(ValueError, match=f"--{option} has no effect.*conditioned"):
        check(0)


def test_every_option_is_among_the_misuses(example):
    check_every_option_is_among(example, MISUSE)


def test_help_names_every_option(example, capsys):
    check_help_names_every_option(example, capsys)


def test_a_folder_has_no_classes(example, tmp_path):
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    text = f"train --class-conditional --data.name {tmp_path} --data.image-size 8"
    with pytest.raises(ValueError, match="needs labels: .* has none"):
        example.main(parsed(example, text, output=str(tmp_path / "run")))


SEED_SIZES = {
    "mnist": ("--model.width-size 16 --model.time-size 256", 1, 3_213_697),
    "faces": ("--model.width-size 32 --model.time-size 512", 3, 12_830_595),
    "wide faces": ("--model.width-size 64 --model.time-size 512", 3, 42_978_563),
}


@pytest.mark.parametrize("name", SEED_SIZES)
def test_networks_with_one_skip_per_level(example, name):
    """Their numbers of parameters, computed by hand from the definition."""
    sizes, channels, expected = SEED_SIZES[name]
    text = f"""train --model.backbone level-unet --model.multipliers 1 2 4 8
    --model.attention-levels 2 3 --model.num-heads 1 --model.dropout 0.1 {sizes}"""
    model = parsed(example, text).model.with_sizes(channels=channels, image_size=128)
    flow = eqx.filter_eval_shape(model.build)
    arrays = jax.tree.leaves(eqx.filter(flow, lambda leaf: hasattr(leaf, "dtype")))
    assert sum(leaf.size for leaf in arrays) == expected


def test_configurations_survive_json():
    config = pipelines.ImageFlowConfig(
        channels=3, image_size=16, multipliers=(1, 2), attention_levels=(1,)
    )
    text = json.dumps(dataclasses.asdict(config))
    assert pipelines.ImageFlowConfig.from_json(json.loads(text)) == config
    with pytest.raises(ValueError, match="`channels` and `image_size` are missing"):
        pipelines.ImageFlowConfig().build()


def test_choices_reach_the_network():
    sizes = {"channels": 3, "image_size": 16, "width_size": 8, "multipliers": (1, 2)}
    config = pipelines.ImageFlowConfig(
        **sizes,
        num_classes=4,
        time_size=6,
        path="cosine",
        prediction="noise",
        dtype="bfloat16",
        rematerialize=True,
        dropout=0.25,
    )
    # JAX's own attention promotes half precision.
    with jax.numpy_dtype_promotion("standard"):
        flow = eqx.filter_eval_shape(config.build)
    assert isinstance(flow.path, fk.CosinePath)
    assert isinstance(flow.prediction, fk.Noise)
    network = flow.network
    assert network.conditioning.cond_embedding.num_classes == 4
    assert network.conditioning.time_embedding.embedding.out_size == 6
    assert (str(network.dtype), network.rematerialize) == ("bfloat16", True)
    drops = jax.tree.leaves(
        network.stages, is_leaf=lambda node: isinstance(node, eqx.nn.Dropout)
    )
    assert {one.p for one in drops if isinstance(one, eqx.nn.Dropout)} == {0.25}


def constant_flow(value, prediction=fk.Velocity()):
    """A network that predicts one value for every pixel."""
    return fk.Flow(
        lambda t, x, cond=None: jnp.full_like(x, value), prediction=prediction
    )


def test_loss_is_that_of_the_prediction():
    """E(x0 - a)^2 = 1 + a^2 for noise; (x1 - a)^2 for the data."""
    images = np.full((512, 4, 4, 1), 0.5, np.float32)
    batch = fk.data.LabeledImages(images)
    flow = constant_flow(0.5, fk.Noise())
    loss = pipelines.image_flow_loss(flow, batch, key=jr.key(0))
    # The variance of (x0 - a)^2 is 2 + 4 a^2.
    assert abs(loss - 1.25) < 5 * (3 / images.size) ** 0.5

    # 512 are one batch of 500, and 12 that are left out.
    flow = constant_flow(0.25, fk.Target())
    held_out = pipelines.held_out_loss(flow, images, batch_size=500, key=jr.key(0))
    np.testing.assert_allclose(held_out, 0.0625, rtol=1e-5)


def test_classes_are_hidden_at_the_rate_asked_for():
    """A network that returns its label: the hidden ones are 2, the others 1."""
    network = lambda t, x, cond: jnp.zeros_like(x) + cond.astype(x.dtype)
    flow = fk.Flow(network, prediction=fk.Target())
    images = np.ones((4000, 1, 1, 1), np.float32)
    batch = fk.data.LabeledImages(images, np.ones(4000, np.int32))
    options = {"num_classes": 2, "key": jr.key(0)}
    loss = pipelines.image_flow_loss(flow, batch, class_dropout=0.3, **options)
    assert abs(loss - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_images_of_bytes_and_other_checkpoints_are_refused(tmp_path):
    batch = fk.data.LabeledImages(np.full((2, 4, 4, 1), 255, np.float32), None)
    with pytest.raises(ValueError, match="`batch.images` must be.*by 255"):
        pipelines.image_flow_loss(constant_flow(0.0), batch, key=jr.key(0))
    with pytest.raises(ValueError, match="`checkpoint` must be.*got 'first'"):
        pipelines.load_image_flow(tmp_path, checkpoint="first")


def test_samples_need_their_labels():
    config = pipelines.ImageFlowConfig(channels=1, image_size=4)
    options = {"num_steps": 1, "key": jr.key(0)}
    flow = constant_flow(0.0)
    with pytest.raises(ValueError, match="for a flow with classes; this one has none"):
        pipelines.sample_images(flow, config, 2, guidance=2.0, **options)
    config = dataclasses.replace(config, num_classes=3)
    with pytest.raises(ValueError, match="one class for each of the 2 samples"):
        pipelines.sample_images(flow, config, 2, labels=np.array([1]), **options)
    with pytest.raises(ValueError, match=r"must lie in 0 \.\.\. 2, got 3"):
        pipelines.sample_images(flow, config, 2, labels=np.array([1, 3]), **options)


def test_optimizer_and_length():
    """AdamW's first step is the rate times the sign; decay adds its share of the weight."""
    options = pipelines.ImageFlowTraining(learning_rate=0.5, weight_decay=0.25)
    optimizer = options.make_optimizer(10)
    weight = jnp.array(2.0)
    state = optimizer.init(weight)
    with jax.numpy_dtype_promotion("standard"):
        update, state = optimizer.update(jnp.array(3.0), state, weight)
        np.testing.assert_allclose(update, -0.5 * (1 + 0.25 * 2), rtol=1e-5)
        for _ in range(10):
            update, state = optimizer.update(jnp.array(3.0), state, weight)
    assert update == 0  # the cosine has come to its end
    assert options.num_epochs(937) == 20
    assert options.num_epochs(25) == 60
    assert dataclasses.replace(options, epochs=3).num_epochs(25) == 3


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"learning_rate": -1.0}, {}, "`learning_rate` must be"),
        ({"batch_size": 0}, {}, "`batch_size` must be at least 1"),
        ({"batch_size": 22}, {}, "`batch_size` is 22, but there are only 20 images"),
        ({}, {"image_size": 16}, r"`model` is built for images of shape \(16, 16, 1\)"),
        ({}, {"num_classes": 9}, "`split` has labels from 0 to 9, but .* are 0 to 8"),
    ],
)
def test_training_checks_what_it_is_given(options, sizes, message, tmp_path):
    split = fk.data.image_split("digits", max_samples=20, test_samples=20)
    sizes = {"channels": 1, "image_size": 8, "num_classes": 10} | sizes
    with pytest.raises(ValueError, match=message):
        pipelines.fit_image_flow(
            pipelines.ImageFlowTraining(**options),
            pipelines.ImageFlowConfig(**sizes),
            constant_flow(0.0),
            split,
            tmp_path,
            config={},
            key=jr.key(0),
        )
    assert not list(tmp_path.iterdir())


def test_classes_need_labels(tmp_path):
    split = fk.data.image_split("digits", max_samples=20, test_samples=20)
    held_out = split.held_out._replace(labels=None)
    model = pipelines.ImageFlowConfig(channels=1, image_size=8, num_classes=10)
    with pytest.raises(ValueError, match="`split` has no labels.*`num_classes=10`"):
        pipelines.fit_image_flow(
            pipelines.ImageFlowTraining(batch_size=4),
            model,
            constant_flow(0.0),
            split._replace(held_out=held_out),
            tmp_path,
            config={},
            key=jr.key(0),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"map_steps": -3}, "`map_steps` must not be negative, got -3"),
        ({"num_pairs": 100}, "`num_pairs` is 100, less than the `batch_size` 256"),
    ],
)
def test_stages_of_a_map_are_checked_before_the_first(options, message):
    options = {"num_steps": 1, "map_steps": 1} | options
    with pytest.raises(ValueError, match=message):
        pipelines.flow_map_stages((2,), **options, key=jr.key(0))
