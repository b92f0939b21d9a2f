"""The table of stages: of a foreign module, and of our networks against their papers' tables."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from deepjax.analysis import ReceptiveField, count_macs, count_params, stage_table
from deepjax.models import create_model, model_info


class Foreign(nn.Module):
    """Stages not in alphabetical order, a training-only head; linen's default sow, of tuples."""

    sows: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=(2, 2), padding=1, name="stem_conv")(x)
        x = nn.BatchNorm(use_running_average=True, name="stem_norm")(x)
        if self.sows:
            self.sow("features", "stem", x)
        if self.is_initializing():
            nn.Dense(7, name="auxiliary1")(x)
        x = nn.Conv(5, (3, 3), name="body_conv2")(nn.Conv(5, (1, 1), name="body_conv1")(x))
        if self.sows:
            self.sow("features", "body", x)
        x = nn.Dropout(0.5, deterministic=True)(x.mean((1, 2)))
        return nn.Dense(3, name="a_head")(x)


def test_rows_of_a_foreign_module_by_hand():
    rows = stage_table(Foreign(), (8, 6, 2))
    assert [row.name for row in rows] == ["stem", "auxiliary1", "body", "a"]
    assert [row.output_shape for row in rows] == [(4, 3, 4), None, (4, 3, 5), (3,)]
    assert [row.params for row in rows] == [
        9 * 2 * 4 + 4 + 8,
        4 * 7 + 7,
        4 * 5 + 5 + 9 * 5 * 5 + 5,
        5 * 3 + 3,
    ]
    assert [row.macs for row in rows] == [12 * 72, 0, 12 * (20 + 225), 15]
    assert [row.runs for row in rows] == [True, False, True, True]
    fields = [
        ReceptiveField((3, 3), (2, 2), (1, 1)),
        None,
        ReceptiveField((7, 7), (2, 2), (3, 3)),
        ReceptiveField(None, None, None),
    ]
    assert [row.receptive_field for row in rows] == fields


def test_a_module_that_sows_nothing_has_costs_alone():
    rows, sown = (stage_table(Foreign(sows), (8, 6, 2)) for sows in (False, True))
    assert all(row.output_shape is None and row.receptive_field is None for row in rows)
    assert [(row.name, row.params, row.macs, row.runs) for row in rows] == [
        (r.name, r.params, r.macs, r.runs) for r in sown
    ]


def test_layers_of_the_model_itself_have_its_name():
    (row,) = stage_table(nn.Dense(3), (4,))
    assert (row.name, row.params, row.macs) == ("Dense", 15, 12)


def test_vectors_have_no_receptive_field():
    class Perceptron(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="hidden_dense")(x)
            self.sow("features", "hidden", x)
            return nn.Dense(2, name="head")(x)

    rows = stage_table(Perceptron(), (6,))
    assert [(row.name, row.output_shape, row.receptive_field) for row in rows] == [
        ("hidden", (4,), None),
        ("head", (2,), None),
    ]


class Nested(nn.Module):
    """Several outputs, and features sown further in, which are no stage's."""

    @nn.compact
    def __call__(self, x):
        y = Foreign(name="inner")(x)
        return {"logits": nn.Dense(2, name="head")(y), "map": x + jnp.ones_like(x)}


def test_inner_features_and_several_outputs_are_no_stage():
    rows = stage_table(Nested(), (8, 6, 2))
    assert [(row.name, row.output_shape) for row in rows] == [("inner", None), ("head", None)]


def test_resnet50_by_its_table():
    """Table 1 of He et al. 2015; parameters of torchvision; fields by hand, stride in the 3x3."""
    rows = stage_table(create_model("resnet50"), (224, 224, 3))
    assert [row.name for row in rows] == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    shapes = [(56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (1000,)]
    assert [row.output_shape for row in rows] == shapes
    assert [row.params for row in rows] == [
        9_536,
        215_808,
        1_219_584,
        7_098_368,
        14_964_736,
        2_049_000,
    ]
    sizes = [row.receptive_field and row.receptive_field.size for row in rows]
    assert sizes == [(11, 11), (35, 35), (91, 91), (267, 267), (427, 427), None]
    assert [row.receptive_field and row.receptive_field.stride for row in rows] == [
        (4, 4),
        (4, 4),
        (8, 8),
        (16, 16),
        (32, 32),
        None,
    ]


@pytest.mark.parametrize(
    ("name", "fields"), [("vgg11_bn", {}), ("resnet18d", {"scan": True}), ("cifar_plain20", {})]
)
def test_rows_add_up(name, fields):
    model = create_model(name, **fields)
    shape = model_info(name).input_shape
    rows = stage_table(model, shape)
    assert sum(row.params for row in rows) == model_info(name).params == count_params(model, shape)
    assert sum(row.macs for row in rows) == model_info(name).macs == count_macs(model, shape)
    assert all(row.output_shape and row.receptive_field and row.runs for row in rows)
