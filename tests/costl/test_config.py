"""Settings: complete defaults, strict layers, all problems reported at once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costl.config import BENCHMARKS, KINDS, PRECISIONS, REMOVED, SELECTABLE, Config, load_config
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_yaml import read_yaml

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
    actual = getattr(getattr(load_config(overrides=[override]), section), name)
    assert actual == value and type(actual) is type(value)


@pytest.mark.promise(17)
def test_all_problems_are_reported_at_once_with_the_nearest_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trian:\n  epochs: 3\ntrain:\n  epoch: 3\n  batch_size: many\nmodel: 5\n")
    message = refusal(file, overrides=["spatial.steps=3", "loss.focal=-1", "train.epochs", "predict.min_score=.nan"])
    for part in (
        "mine.yaml: unknown section 'trian'. Did you mean train or spatial?",
        "mine.yaml: unknown setting train.epoch. Did you mean epochs?",
        "mine.yaml: train.batch_size is 'many', expected a whole number.",
        "mine.yaml: model is 5, expected names and values below it.",
        "spatial.steps is 3, expected 0, 1 or 2.",
        "loss.focal is -1.0, expected 0, or from 0.000001 to 1000.",
        "--set train.epochs: expected section.name=value",
        "predict.min_score is nan, expected from 0 to 1.",
    ):
        assert part in message
    assert len(message.splitlines()) == 8


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.width=100", "expected an even number and a multiple of model.heads (8), such as 96 or 104."),
        ("model.heads=0", "model.heads is 0, expected above zero"),
        ("model.dropout=1", "from 0 to 0.99"),
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
        ("zzz.epochs=1", "Known: data, model, spatial"),
        ("train.epochs=[", "is not a YAML value"),
    ],
)
def test_an_impossible_value_is_refused(override, part):
    assert part in refusal(overrides=[override])


# Values that earlier versions accepted and that failed during training, or with which nothing was learned.
FAILED_LATER = [
    ({"model": {"width": 9, "heads": 3}}, "an even number and a multiple of model.heads (3), such as 6 or 12."),
    (
        {"model": {"width": 1, "heads": 1}},
        "model.width is 1, expected an even number and a multiple of model.heads (1)",
    ),
    ({"model": {"width": 16383, "heads": 3}}, "model.heads (3), such as 16380."),
    ({"model": {"width": 2, "heads": 8}}, "model.heads (8), such as 8."),
    ({"model": {"width": 2**31}}, "model.width is 2147483648, expected above zero and at most 16384."),
    ({"model": {"width": 10**400, "heads": 10**400}}, "model.heads is 1000"),
    ({"model": {"dropout": 0.99999}}, "model.dropout is 0.99999, expected from 0 to 0.99."),
    ({"model": {"input_dropout": 1 - 2**-53}}, "expected from 0 to 0.99."),
    ({"temporal": {"layers": 10**9}}, "temporal.layers is 1000000000, expected from 0 to 64."),
    ({"temporal": {"strides": [2**i for i in range(70)]}}, "each twice the one before, up to 512."),
    ({"temporal": {"null_tokens": 2**63}}, "expected from 0 to 1024."),
    ({"temporal": {"kernel": 10**9 + 1}}, "above zero and below 1024."),
    ({"loss": {"focal": 1e39}}, "loss.focal is 1e+39, expected 0, or from 0.000001 to 1000."),
    ({"loss": {"contrast": 1e-300}}, "loss.contrast is 1e-300, expected 0, or from 0.000001 to 1000."),
    ({"loss": {"focal": 0, "iou": 0, "saliency": 0}, "train": {"batch_size": 1}}, "train.batch_size is 1, expected 2"),
    ({"train": {"epochs": 10**400}}, "expected above zero and at most 1000000000."),
    ({"train": {"warmup_steps": 10**400}}, "expected from 0 to 1000000000."),
    ({"train": {"learning_rate": 1e9}}, "train.learning_rate is 1000000000.0, expected above zero and at most 1."),
    ({"train": {"weight_decay": 1e9}}, "expected at most 2000 with train.learning_rate at 0.0005"),
    ({"train": {"threads": 10**9}}, "train.threads is 1000000000, expected above zero and at most 1024."),
    ({"train": {"workers": 10**9}}, "train.workers is 1000000000, expected from 0 to 256."),
    ({"predict": {"round_s": 5e-324}}, "predict.round_s is 5e-324, expected 0, or 0.001 and more."),
    ({"predict": {"window_clips": 10**10}}, "a multiple of 4, at least 8 and at most 1000000000."),
]


@pytest.mark.parametrize(("layer", "part"), FAILED_LATER)
def test_a_value_that_would_fail_later_is_refused(layer, part):
    assert part in refusal(layer)


@pytest.mark.parametrize(
    "layer",
    [
        {"model": {"width": 6, "heads": 3, "dropout": 0.99}},
        {"model": {"width": 16384, "heads": 1024}},
        {"temporal": {"layers": 64, "strides": [2**i for i in range(10)], "null_tokens": 1024, "kernel": 1023}},
        {"loss": {"focal": 1e-6, "iou": 1000}},
        {"train": {"learning_rate": 1, "weight_decay": 1, "threads": 1024, "workers": 256, "epochs": 10**9}},
        {"train": {"batch_size": 1}, "loss": {"iou": 0, "saliency": 0}},
        {"train": {"batch_size": 2}, "loss": {"focal": 0, "iou": 0, "saliency": 0}},
        {"predict": {"round_s": 0.001, "window_clips": 10**9}},
    ],
)
def test_the_ends_of_every_range_are_accepted(layer):
    config = load_config(layer).to_dict()
    assert all(config[section][name] == value for section, fields in layer.items() for name, value in fields.items())


HUGE = 10**5000  # Python converts at most 4300 digits to text


def test_a_number_with_too_many_digits_is_refused_with_a_message():
    values = [{section: {name: HUGE}} for section, fields in Config().to_dict().items() for name in fields]
    names = [{HUGE: {}}, {"train": {HUGE: 1}}, {"train": HUGE}, HUGE]
    for layer in [*values, *names]:
        assert "a huge int" in refusal(layer)
    assert "a huge tuple" in refusal({"temporal": {"strides": [HUGE]}})


# Text for a number in YAML -> the value of the setting, or a part of the error.
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
def test_a_plain_number_is_read_and_a_string_is_never_taken_for_one(tmp_path, text):
    expected, file = WRITTEN[text], tmp_path / "mine.yaml"
    file.write_text(f"train:\n  clip_norm: {text}\n")
    override = f"train.clip_norm={text}"
    if isinstance(expected, str):
        for message in (refusal(file), refusal(overrides=[override])):
            assert f"train.clip_norm {expected}" in message and message.count("\n") == 0
    else:
        configs = [load_config(file), load_config(overrides=[override])]
        assert [config.train.clip_norm for config in configs] == [expected, expected]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("spatial.clip_prior=yes", "spatial.clip_prior is 'yes', expected true or false."),
        ("train.epochs='20'", "train.epochs is '20', expected a whole number. Leave out the quotes."),
        ("train.epochs=1e2", "train.epochs is 100.0, expected a whole number."),
        ("data.domain=7", "data.domain is 7, expected a text."),
    ],
)
def test_whole_numbers_booleans_and_strings_are_strict_too(override, part):
    assert refusal(overrides=[override]).endswith(part)


def test_a_number_that_a_cache_stores_as_a_string_is_refused():
    message = refusal({"train": {"learning_rate": "5e-4"}})
    assert message.endswith("expected a number. Leave out the quotes; for a cache, run costl extract again.")


@settings(deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_float_survives_yaml_and_the_command_line(value):
    config = load_config(overrides=[f"train.clip_norm={value!r}"])
    assert config.train.clip_norm == value
    assert load_config(read_yaml(config.to_yaml())) == config


@settings(deadline=None)
@given(st.sampled_from(["1e4", "NO", "012", "null", "~", "1:30", "'", "a: b"]) | st.text(max_size=8))
def test_every_domain_survives_yaml(domain):
    config = load_config({"data": {"domain": domain}})
    assert load_config(read_yaml(config.to_yaml())) == config


def test_no_loss_at_all_is_refused():
    assert "nothing to learn" in refusal({"loss": dict.fromkeys(Config().to_dict()["loss"], 0)})


def test_contradicting_values_are_reported_with_the_other_problems():
    message = refusal(
        {"model": {"width": 9, "heads": 3}, "loss": dict.fromkeys(Config().to_dict()["loss"], 0)}, {"x": {}}
    )
    assert [line.split(",")[0].split(":")[0] for line in message.splitlines()] == [
        "settings",
        "model.width is 9",
        "loss",
    ]


def test_a_value_out_of_range_is_reported_once():
    assert refusal({"model": {"width": 9, "heads": 0}}).splitlines() == [
        "model.heads is 0, expected above zero and at most 1024."
    ]


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
    message = refusal(file)
    assert str(file) in message and part in message


def test_an_unreadable_file_is_refused_and_an_empty_one_changes_nothing(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_setting_is_refused_with_what_to_do_instead(tmp_path, name):
    section, key = name.split(".")
    file = tmp_path / "mine.yaml"
    file.write_text(f"{section}: {{{key}: 1}}\n")
    assert refusal(file) == f"{file}: {name} is no setting any more. {REMOVED[name]}"
    assert refusal(overrides=[f"{name}=1"]) == f"--set {name}=1: {name} is no setting any more. {REMOVED[name]}"


def test_stored_settings_of_an_earlier_version_are_read(tmp_path):
    stored = {
        "temporal": {"top_down": False, "kernel": 7},
        "loss": {"quality": 0.5},
        "train": {"accumulate": 4, "compile": True, "epochs": 7},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(stored))
    expected = load_config(overrides=["temporal.kernel=7", "train.epochs=7"])
    assert load_config(stored) == load_config(file, stored=True) == expected
    stored["temporal"]["top_down"] = True
    file.write_text(yaml.safe_dump(stored))
    problem = "temporal.top_down is true, a model that this version cannot build. Version 0.1 reads it."
    assert refusal(stored) == f"settings: {problem}"
    with pytest.raises(UsageError, match=re.escape(f"{file}: {problem}")):
        load_config(file, stored=True)


def test_settings_survive_yaml_and_dict(tmp_path):
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
def test_any_layer_is_loaded_or_refused_with_a_message(layer):
    try:
        config = load_config(layer)
    except UsageError as error:
        assert str(error)
    else:
        assert load_config(config.to_dict()) == config


def test_the_metrics_that_can_select_are_all_that_are_computed():
    from costl.data.annotations import Prediction, Query
    from costl.metrics.compute import BENCHMARKS as SCORED
    from costl.metrics.compute import compute_metrics

    query = Query(1, "a cat", "v", 100.0, ((0, 5), (10, 30), (40, 90)), (0,), ((4, 4, 4),))
    metrics = [compute_metrics([Prediction(1, "a cat", "v")], [query], benchmark=name)["brief"] for name in SCORED]
    assert set().union(*metrics) == set(SELECTABLE)
    assert tuple(SCORED) == BENCHMARKS


POSITIVE = st.floats(1e-9, 1e9)
WEIGHT = st.floats(1e-6, 1000)
RATE = st.floats(1e-9, 1)
SHARE = st.floats(0, 1, exclude_max=True)
FIELDS = {
    "data": {"benchmark": st.sampled_from(BENCHMARKS), "domain": st.text(st.characters(exclude_categories=["Cs"]))},
    "model": {"kind": st.sampled_from(KINDS), "width": st.sampled_from([64, 256]), "heads": st.sampled_from([1, 8])}
    | dict.fromkeys(("dropout", "input_dropout"), st.floats(0, 0.99)),
    "spatial": {"steps": st.integers(0, 2), "clip_prior": st.booleans(), "top_k": st.integers(1, 10**6)},
    "temporal": {
        "layers": st.integers(0, 9),
        "strides": st.integers(1, 6).map(lambda n: tuple(2**i for i in range(n))),
        "null_tokens": st.integers(0, 9),
        "kernel": st.integers(0, 9).map(lambda n: 2 * n + 1),
    },
    "loss": dict.fromkeys(Config().to_dict()["loss"], WEIGHT | st.just(0.0)) | {"focal": WEIGHT},
    "train": {
        "seed": st.integers(0, 2**32 - 1),
        "ema": SHARE,
        "select": st.sampled_from(SELECTABLE),
        "select_on": st.sampled_from(["val", "test"]),
        "threads": st.none() | st.integers(1, 9),
        "precision": st.sampled_from(PRECISIONS),
        "tensorboard": st.booleans(),
        "splice": st.none() | st.floats(0, 1),
        "pseudo_labels": st.none() | st.integers(0, 10**9),
        "folds": st.integers(0, 1000),
    }
    | dict.fromkeys(("epochs", "batch_size", "bucket_batches", "validate_every", "patience"), st.integers(1, 10**9))
    | {"steps": st.none()}
    | {"learning_rate": RATE, "weight_decay": RATE, "clip_norm": POSITIVE}
    | {"warmup_steps": st.integers(0, 10**9), "workers": st.integers(0, 256)},
    "predict": {
        "moments": st.integers(1, 99),
        "min_score": st.floats(0, 1),
        "window_clips": st.none() | st.integers(2, 99).map(lambda n: 4 * n),
    }
    | {"nms_sigma": POSITIVE, "round_s": st.floats(0.001, 1e9)},
}


@pytest.mark.parametrize(
    ("layers", "overrides", "expected"),
    [
        ([{"train": {"epochs": 6}}], ["train.steps=900"], (None, 900)),
        ([{"train": {"steps": 900}}], ["train.epochs=6"], (6, None)),
        ([{"train": {"steps": 900}}, {"train": {"epochs": 6}}, {"train": {"steps": 30}}], [], (None, 30)),
        ([{"train": {"epochs": 6}}, {"train": {"steps": None}}], [], (6, None)),
        ([{"train": {"steps": 900}}], ["train.steps=null"], (None, None)),
    ],
)
def test_epochs_and_steps_replace_each_other(layers, overrides, expected):
    settings = load_config(*layers, overrides=overrides).train
    assert (settings.epochs, settings.steps) == expected


@settings(max_examples=settings.default.max_examples // 2, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({name: st.fixed_dictionaries(fields) for name, fields in FIELDS.items()}))
def test_every_setting_of_a_full_layer_is_used_and_survives_yaml(layer):
    config = load_config(layer)
    plain = {name: {key: getattr(getattr(config, name), key) for key in section} for name, section in layer.items()}
    assert plain == layer
    assert {name: set(section) for name, section in layer.items()} == {
        name: set(section) for name, section in Config().to_dict().items()
    }
    assert load_config(read_yaml(config.to_yaml())) == load_config(config.to_dict()) == config
