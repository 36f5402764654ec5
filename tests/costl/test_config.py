"""Settings: complete defaults, strict layers, every mistake named at once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costl.config import BENCHMARKS, KINDS, PRECISIONS, SELECTABLE, Config, load_config
from pipeline.errors import UsageError
from pipeline.plain_yaml import read_yaml

DEFAULT = Path(__file__).parents[2] / "configs" / "default.yaml"


def refusal(*layers, overrides=()) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(*layers, overrides=overrides)
    return str(caught.value)


def test_default_yaml_is_complete_and_equals_the_dataclass_defaults():
    text = yaml.safe_load(DEFAULT.read_text())
    assert {name: set(section) for name, section in text.items()} == {
        name: set(section) for name, section in Config().to_dict().items()
    }
    assert load_config(DEFAULT) == load_config() == Config()


def test_every_line_of_default_yaml_carries_a_comment():
    lines = [line for line in DEFAULT.read_text().splitlines() if line.strip()]
    assert all(re.search(r"# \S", line) for line in lines)


def test_later_layers_win_and_change_only_what_they_name(tmp_path):
    file = tmp_path / "charades.yaml"
    file.write_text("train:\n  epochs: 7\n  learning_rate: 1e-3\n")
    config = load_config(DEFAULT, file, {"train": {"epochs": 8}}, overrides=["train.epochs=9", "model.width=64"])
    expected = dataclasses.replace(Config().train, epochs=9, learning_rate=1e-3)
    assert config == dataclasses.replace(Config(), train=expected, model=dataclasses.replace(Config().model, width=64))


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("train.threads=null", "train", "threads", None),
        ("train.threads=2", "train", "threads", 2),
        ("spatial.clip_prior=false", "spatial", "clip_prior", False),
        ("temporal.strides=[1, 2]", "temporal", "strides", (1, 2)),
        ("train.select=HL-min-VeryGood-Hit1", "train", "select", "HL-min-VeryGood-Hit1"),
    ],
)
def test_an_override_has_the_type_of_its_setting(override, section, name, value):
    found = getattr(getattr(load_config(overrides=[override]), section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.promise(17)
def test_all_mistakes_are_told_at_once_with_the_nearest_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trian:\n  epochs: 3\ntrain:\n  epoch: 3\n  batch_size: many\nmodel: 5\n")
    told = refusal(file, overrides=["spatial.steps=3", "loss.focal=-1", "train.epochs", "predict.min_score=.nan"])
    for part in (
        "mine.yaml: unknown section 'trian'. Did you mean 'train'?",
        "mine.yaml: unknown setting train.epoch. Did you mean 'epochs'?",
        "mine.yaml: train.batch_size is 'many', expected a whole number.",
        "mine.yaml: model is 5, expected names and values below it.",
        "spatial.steps is 3, expected 0, 1 or 2.",
        "loss.focal is -1.0, expected zero or more.",
        "--set train.epochs: expected section.name=value",
        "predict.min_score is nan, expected from 0 to 1.",
    ):
        assert part in told
    assert len(told.splitlines()) == 8


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.width=100", "expected a multiple of model.heads (8)"),
        ("model.heads=0", "model.heads is 0, expected above zero"),
        ("model.dropout=1", "below 1"),
        ("model.width=256.0", "expected a whole number"),
        ("train.epochs=true", "expected a whole number"),
        ("spatial.clip_prior=1", "expected true or false"),
        ("temporal.strides=[]", "each twice the one before"),
        ("temporal.strides=[2, 1]", "each twice the one before"),
        ("temporal.strides=1", "expected a list of whole numbers"),
        ("temporal.strides=[1, two]", "expected a whole number"),
        ("temporal.kernel=4", "odd"),
        ("train.learning_rate=fast", "expected a number"),
        ("train.learning_rate=.inf", "expected above zero"),
        (f"train.clip_norm={10**400}", "expected a number"),
        ("train.select=mAP", "expected one of MR-full-R1@0.3"),
        ("train.seed=-1", "below 2^32"),
        ("train.threads=0", "above zero"),
        ("nonsense.epochs=1", "Known: data, model, spatial"),
        ("train.epochs=[", "is not a YAML value"),
    ],
)
def test_an_impossible_value_is_refused(override, part):
    assert part in refusal(overrides=[override])


# What people write for a number, unquoted: what the setting becomes, or a part of the refusal.
WRITTEN = {
    "1e-4": 1e-4,
    "5e-4": 5e-4,
    "1E-2": 0.01,
    ".5": 0.5,
    "1.": 1.0,
    "012": 12.0,
    "0x10": 16.0,
    "+1": 1.0,
    "0": "is 0.0, expected above zero.",
    "-1e-4": "is -0.0001, expected above zero.",
    ".inf": "is inf, expected above zero.",
    ".nan": "is nan, expected above zero.",
    "1e400": "is inf, expected above zero.",
    "inf": "is 'inf', expected a number.",
    "nan": "is 'nan', expected a number.",
    "1_000": "is '1_000', expected a number.",
    "1,5": "is '1,5', expected a number.",
    "yes": "is 'yes', expected a number.",
    "true": "is True, expected a number.",
    "": "is None, expected a number.",
    "'1e-4'": "is '1e-4', expected a number. Leave out the quotes.",
    '"0.5"': "is '0.5', expected a number. Leave out the quotes.",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_number_is_taken_as_it_looks_and_a_text_never_passes_for_one(tmp_path, text):
    expected, file = WRITTEN[text], tmp_path / "mine.yaml"
    file.write_text(f"train:\n  learning_rate: {text}\n")
    override = f"train.learning_rate={text}"
    if isinstance(expected, str):
        for told in (refusal(file), refusal(overrides=[override])):
            assert f"train.learning_rate {expected}" in told and told.count("\n") == 0
    else:
        found = [load_config(file), load_config(overrides=[override])]
        assert [config.train.learning_rate for config in found] == [expected, expected]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("spatial.clip_prior=yes", "spatial.clip_prior is 'yes', expected true or false."),
        ("train.epochs='20'", "train.epochs is '20', expected a whole number. Leave out the quotes."),
        ("train.epochs=1e2", "train.epochs is 100.0, expected a whole number."),
        ("data.domain=7", "data.domain is 7, expected a text."),
    ],
)
def test_whole_numbers_switches_and_texts_are_no_less_strict(override, part):
    assert refusal(overrides=[override]).endswith(part)


def test_a_number_that_a_cache_holds_as_a_text_is_refused_with_what_to_do():
    told = refusal({"train": {"learning_rate": "5e-4"}})
    assert told.endswith("expected a number. Leave out the quotes; if it is of a cache, costl extract it again.")


@settings(deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_float_survives_the_way_through_yaml_and_the_command_line(value):
    config = load_config(overrides=[f"train.learning_rate={value!r}"])
    assert config.train.learning_rate == value
    assert load_config(read_yaml(config.to_yaml())) == config


@settings(deadline=None)
@given(st.sampled_from(["1e4", "NO", "012", "null", "~", "1:30", "'", "a: b"]) | st.text(max_size=8))
def test_every_domain_survives_the_way_through_yaml(domain):
    config = load_config({"data": {"domain": domain}})
    assert load_config(read_yaml(config.to_yaml())) == config


def test_no_loss_at_all_is_refused():
    assert "nothing to learn" in refusal({"loss": dict.fromkeys(Config().to_dict()["loss"], 0)})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: [", "not valid YAML"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "'epochs' is given twice"),
        ("- a\n", "expected sections"),
        ("train: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("1: 2\n", "unknown section 1"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, part):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    told = refusal(file)
    assert str(file) in told and part in told


def test_a_missing_or_binary_file_is_refused_and_an_empty_one_changes_nothing(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_settings_survive_the_way_through_yaml_and_dict(tmp_path):
    config = load_config(overrides=["train.learning_rate=1e-5", "temporal.strides=[1]", "train.threads=3"])
    file = tmp_path / "resolved.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == load_config(config.to_dict()) == config
    assert all(type(value) is not tuple for section in config.to_dict().values() for value in section.values())


json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "1", "nan", "many"])
json_values = json_scalars | st.lists(json_scalars, max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["model", "train", "temporal", "x"]),
        st.dictionaries(st.sampled_from(["width", "threads", "select", "strides", "ema"]), json_values) | json_values,
    )
)
def test_any_layer_is_loaded_or_refused_in_words(layer):
    try:
        config = load_config(layer)
    except UsageError as error:
        assert str(error)
    else:
        assert load_config(config.to_dict()) == config


def test_the_selectable_numbers_and_benchmarks_are_those_that_metrics_reports():
    from costl.annotations import Prediction, Query
    from costl.metrics import BENCHMARKS as SCORED
    from costl.metrics import compute_metrics

    query = Query(1, "a cat", "v", 100.0, ((0, 5), (10, 30), (40, 90)), (0,), ((4, 4, 4),))
    found = [compute_metrics([Prediction(1, "a cat", "v")], [query], benchmark=name)["brief"] for name in SCORED]
    assert set().union(*found) == set(SELECTABLE)
    assert tuple(SCORED) == BENCHMARKS


POSITIVE = st.floats(1e-9, 1e9)
SHARE = st.floats(0, 1, exclude_max=True)
FIELDS = {
    "data": {"benchmark": st.sampled_from(BENCHMARKS), "domain": st.text(st.characters(exclude_categories=["Cs"]))},
    "model": {"kind": st.sampled_from(KINDS), "width": st.sampled_from([64, 256]), "heads": st.sampled_from([1, 8])}
    | dict.fromkeys(("dropout", "input_dropout"), SHARE),
    "spatial": {"steps": st.integers(0, 2), "clip_prior": st.booleans(), "top_k": st.integers(1, 10**6)},
    "temporal": {
        "layers": st.integers(0, 9),
        "strides": st.integers(1, 6).map(lambda n: tuple(2**i for i in range(n))),
        "top_down": st.booleans(),
        "null_tokens": st.integers(0, 9),
        "kernel": st.integers(0, 9).map(lambda n: 2 * n + 1),
    },
    "loss": dict.fromkeys(Config().to_dict()["loss"], POSITIVE | st.just(0.0)) | {"focal": POSITIVE, "quality": SHARE},
    "train": {
        "seed": st.integers(0, 2**32 - 1),
        "ema": SHARE,
        "select": st.sampled_from(SELECTABLE),
        "select_on": st.sampled_from(["val", "test"]),
        "threads": st.none() | st.integers(1, 9),
        "precision": st.sampled_from(PRECISIONS),
    }
    | dict.fromkeys(("compile", "tensorboard"), st.booleans())
    | dict.fromkeys(("epochs", "batch_size", "accumulate", "bucket_batches", "patience"), st.integers(1, 10**9))
    | dict.fromkeys(("learning_rate", "weight_decay", "clip_norm"), POSITIVE)
    | dict.fromkeys(("warmup_steps", "workers"), st.integers(0, 10**9)),
    "predict": {
        "moments": st.integers(1, 99),
        "min_score": st.floats(0, 1),
        "window_clips": st.none() | st.integers(2, 99).map(lambda n: 4 * n),
    }
    | dict.fromkeys(("nms_sigma", "round_s"), POSITIVE),
}


@settings(max_examples=settings.default.max_examples // 2, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({name: st.fixed_dictionaries(fields) for name, fields in FIELDS.items()}))
def test_every_setting_survives_the_way_through_yaml_and_a_layer_of_all_of_them_leaves_nothing_at_its_default(layer):
    config = load_config(layer)
    plain = {name: {key: getattr(getattr(config, name), key) for key in section} for name, section in layer.items()}
    assert plain == layer
    assert {name: set(section) for name, section in layer.items()} == {
        name: set(section) for name, section in Config().to_dict().items()
    }
    assert load_config(read_yaml(config.to_yaml())) == load_config(config.to_dict()) == config
