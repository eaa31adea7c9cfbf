"""The three BlockConfigs are one: the same fields, defaults, choices and parameters, and the same refusals."""

from dataclasses import asdict, fields
from typing import Literal, get_args, get_origin

import pytest

import reference

CONFIGS = {"reference": reference.BlockConfig}
for package in ("impl_torch", "impl_jax"):
    CONFIGS[package] = pytest.importorskip(package).BlockConfig
SIZES = {"d_model": 8, "n_heads": 2, "n_kv_heads": 1, "d_head": 4, "d_ff": 12}
CHOSEN = [field.name for field in fields(reference.BlockConfig) if get_origin(field.type) is Literal]


@pytest.mark.parametrize("package", ["impl_torch", "impl_jax"])
def test_a_config_has_the_fields_of_the_reference(package):
    described = [
        [(field.name, field.type, field.default) for field in fields(CONFIGS[each])] for each in ("reference", package)
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize("package", ["impl_torch", "impl_jax"])
@pytest.mark.parametrize("preset", reference.PRESETS)
def test_a_preset_is_the_same_block_everywhere(package, preset):
    config = reference.PRESETS[preset]
    theirs = CONFIGS[package](**asdict(config))
    assert asdict(theirs) == asdict(config)
    assert list(theirs.parameters().items()) == list(config.parameters().items())


@pytest.mark.parametrize("package", CONFIGS)
@pytest.mark.parametrize("field", CHOSEN)
def test_an_unknown_choice_is_refused(package, field):
    """It used to be taken for the last one: a feed_forward of relu was a GELU."""
    choices = {each.name: get_args(each.type) for each in fields(CONFIGS[package])}[field]
    for choice in choices:
        assert getattr(CONFIGS[package](**SIZES, **{field: choice}), field) == choice
    with pytest.raises(ValueError, match=rf"BlockConfig: {field} is 'relu'; it must be one of {', '.join(choices)}$"):
        CONFIGS[package](**SIZES, **{field: "relu"})
