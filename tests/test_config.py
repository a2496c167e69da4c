"""A configuration is right as a whole or refused with one sentence that says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import (
    TUNED_ON_EVALUATION,
    Config,
    config_hash,
    decisive_settings,
    dump_config,
    load_config,
)
from pipeline.errors import ConfigError
from pipeline.settings_file import Section

SMALLEST = """\
data: {index: shards}
tasks: {classes_per_task: 3}
model: {arch: ViT-B-32, weights: random}
method: {name: zeroshot}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST)
    return path


def test_smallest_file_has_every_default(file):
    config = load_config(file)
    assert config.data.index == "shards" and config.tasks.classes_per_task == 3
    assert config.optim.gradient_clipping == 1.0 and config.seed == 1


def test_overrides_reach_any_depth_and_win(file):
    config = load_config(
        file,
        ["seed=7", "data.cache.limit_gb=1.5", "method.options.tppt_v.diversity.weight=2",
         "tasks.class_order=[2, 0, 1]", "output=s3://bucket/a=b", "tasks.limit=null"],
    )  # fmt: skip
    assert config.seed == 7 and config.data.cache.limit_gb == 1.5
    assert config.method.options == {"tppt_v": {"diversity": {"weight": 2}}}
    assert config.tasks.class_order == [2, 0, 1] and config.tasks.limit is None
    assert config.output == "s3://bucket/a=b"  # only the first = separates


def test_later_override_wins(file):
    assert load_config(file, ["seed=7", "seed=8"]).seed == 8


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_notation_of_a_number_is_a_number(file, text):
    """must hold because YAML 1.1 reads 1e-4 as a string"""
    assert load_config(file, [f"optim.learning_rate={text}"]).optim.learning_rate == 1e-4


def test_bases_are_laid_below_section_by_section(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "first.yaml").write_text(SMALLEST + "optim: {epochs: 3, warmup_steps: 2}")
    (tmp_path / "second.yaml").write_text("base: below/first.yaml\noptim: {epochs: 4}\nseed: 5")
    (tmp_path / "other.yaml").write_text("seed: 6\nname: other")
    (tmp_path / "run.yaml").write_text("base: [second.yaml, other.yaml]\nname: mine")
    config = load_config(tmp_path / "run.yaml")
    assert (config.optim.epochs, config.optim.warmup_steps) == (4, 2)
    assert (config.seed, config.name) == (6, "mine")


def test_dump_reads_back_to_the_same_value(file, tmp_path):
    config = load_config(
        file, ["tasks.class_order=[2, 0, 1]", "text.templates=['a {}.']", "name=größe"]
    )
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config(tmp_path / "again.yaml")
    assert again == config and dump_config(again) == dump_config(config)


def test_nothing_is_changed_after_loading(file):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file).optim.epochs = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learnng_rate=1", "learnng_rate is not a known key; did you mean 'learning_rate'"),
        ("optm.epochs=1", "optm is not a known key; did you mean 'optim'"),
        ("data.cache.foldr=x", "data.cache.foldr is not a known key; did you mean 'folder'"),
        ("tasks.zzz=1", "tasks.zzz is not a known key; there are class_order, order_seed"),
        ("optim.learning_rate=fast", "optim.learning_rate: .*valid number.*, found 'fast'"),
        ("optim.learning_rate=-1", "optim.learning_rate: .*greater than 0, found -1"),
        ("optim.learning_rate=.inf", "optim.learning_rate: .*finite number, found inf"),
        ("optim.betas=[0.9, 1.5]", r"optim.betas.1: .*less than 1, found 1.5"),
        ("optim.epochs=2.5", "optim.epochs: .*valid integer.*, found 2.5"),
        ("data.tail=wrapp", "data.tail: .*'drop' or 'wrap', found 'wrapp'"),
        ("engine.zero_stage=3", "engine.zero_stage: .*0 or 1, found 3"),
        ("tasks.class_order=lambda", "class_order: .*'natural' or 'lamda', or .*list, found"),
        ("tasks.class_order=[a]", "tasks.class_order.0: .*valid integer.*, found 'a'"),
        ("seed=99999999999999999999", "seed: .*less than 9223372036854775808, found 999"),
        ("data=shards", "data: must hold `key: value` lines, found 'shards'"),
        ("optim=", "optim: must hold `key: value` lines, found None"),
        ("output=''", "output: .*at least 1 character"),
        ("text.templates=['a photo']", "text.templates: 'a photo' needs exactly one '{}'"),
        ("text.templates=[]", "text.templates: .*at least 1 item"),
        ("evaluation.split=validation", "data.validation_fraction is 0; set it to e.g. 0.2"),
        ("seed", "override 'seed': write key=value, for instance seed=2"),
        ("=3", "override '=3': write key=value"),
        ("method.name.x=3", "override 'method.name.x=3': 'name' holds a value, not a section"),
        ("seed=[", r"override 'seed=\[': '\[' is not a YAML value"),
    ],
)  # fmt: skip
def test_override_that_cannot_work_is_refused(file, override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [", "run.yaml: not valid YAML: .*line 1, column 8"),
        ("\tseed: 1", r"run.yaml: not valid YAML: .*'\\t' that cannot start"),
        ("- 1", "run.yaml: must hold `key: value` lines, found list"),
        ("", "run.yaml: must hold `key: value` lines, found NoneType"),
        ("seed: 1", "run.yaml: data is missing; it must be given"),
        (SMALLEST + "seed: 1\nseed: 2", "run.yaml: not valid YAML: 'seed' is written twice"),
        (SMALLEST + "optim: {epochs: 1, epochs: 2}", "'epochs' is written twice at line 5"),
        (SMALLEST + "seed: !!python/object/apply:os.getpid []", "not valid YAML: .*constructor"),
        (SMALLEST + "base: nowhere.yaml", "nowhere.yaml: no such configuration file"),
        (SMALLEST + "base: run.yaml", "`base` leads back to this file; remove the circle"),
        (SMALLEST + "base: 3", "`base` must name a file or a list of files, found"),
    ],
)
def test_file_that_cannot_work_is_refused(file, text, words):
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)


def test_path_that_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="nowhere.yaml: no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path)


def test_message_is_one_line_and_begins_with_the_place(file):
    for override in ("data=3", "optim.epochs=x", "tasks.class_order={a: 1}"):
        with pytest.raises(ConfigError) as caught:
            load_config(file, [override])
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)


def test_hash_tells_what_decides_the_result(file):
    """must ignore where a run goes and how the machine is used, and nothing else"""
    expected = config_hash(load_config(file))
    for override in (
        "output=x", "name=x", "log_every=3", "engine.zero_stage=1", "data.workers=0",
        "data.eval_batch=3", "data.cache.deadline_s=9", "data.cache.limit_gb=1",
        "snapshot.every_steps=3", "method.options.tppt_v.x=1",  # the method is another
        "tuning={protocol: first_task, sweep: x, trials: 9}",
    ):  # fmt: skip
        assert config_hash(load_config(file, [override])) == expected, override
    for override in (
        "seed=2", "data.global_batch=3", "data.index=x", "data.tail=drop", "optim.epochs=3",
        "tasks.limit=2", "model.weights=x", "text.ensemble=true", "method.options.zeroshot.x=1",
        "data.validation_fraction=0.1", "data.train_transform=squash", "evaluation.exclude_tasks=1",
    ):  # fmt: skip
        assert config_hash(load_config(file, [override])) != expected, override


def test_what_is_only_said_of_a_result_does_not_make_it_another_run(file):
    """must let a run go on that is told which tasks to leave out of its summary, or its origin"""
    plain = decisive_settings(load_config(file))
    for override in ("evaluation.exclude_tasks=1", "tuning={protocol: first_task, sweep: x}"):
        assert decisive_settings(load_config(file, [override])) == plain
    held_out = ["evaluation.split=validation", "data.validation_fraction=0.2"]
    assert decisive_settings(load_config(file, held_out)) != plain


def test_origin_of_the_settings_is_told_in_a_line(file):
    tuning = "tuning={protocol: transfer, sweep: runs/s, trials: 12, device_hours: 3.456}"
    expected = "tuned by protocol transfer, 12 trials, 3.46 device-hours, sweep runs/s"
    assert load_config(file, [tuning]).tuning.summary == expected
    assert load_config(file).tuning is None


@pytest.mark.parametrize("note", ["null", "'chosen with care'"])
def test_settings_chosen_on_the_reported_images_must_say_so(file, note):
    tuning = f"tuning={{protocol: oracle_sequence, sweep: runs/s, note: {note}}}"
    with pytest.raises(ConfigError, match="the note must say 'tuned on the evaluation sequence'"):
        load_config(file, [tuning])
    told = load_config(file, [tuning.replace(note, TUNED_ON_EVALUATION)])
    assert told.tuning.summary.endswith("sweep runs/s: tuned on the evaluation sequence")
    assert load_config_text(dump_config(told), file) == told


def load_config_text(text: str, file: Path) -> Config:
    """The configuration that a file of this text holds."""
    other = file.with_name("other.yaml")
    other.write_text(text)
    return load_config(other)


def all_sections(kind: type[Section]) -> list[type[Section]]:
    """``kind`` and every section within it."""
    inner = [field.annotation for field in kind.model_fields.values()]
    sections = [a for a in inner if isinstance(a, type) and issubclass(a, Section)]
    return [kind, *(found for section in sections for found in all_sections(section))]


@pytest.mark.parametrize("kind", all_sections(Config), ids=lambda kind: kind.__name__)
def test_every_section_refuses_what_it_does_not_know(kind):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"unheard_of": 1})
    assert "extra_forbidden" in [error["type"] for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("output", "s3://AKIA:hush@bucket/run"),
        ("data.index", "[shards, 's3://AKIA:hush@bucket/more']"),
        ("snapshot.folder", "https://host/run?X-Amz-Signature=hush"),
        ("data.cache.folder", "ftp://someone@host/cache"),
    ],
)
def test_credentials_in_a_url_are_refused_without_being_shown(file, key, url):
    """must not reach a printed configuration, a log or results.json"""
    with pytest.raises(ConfigError, match=f"{key}: holds credentials; .* AWS_PROFILE") as refused:
        load_config(file, [f"{key}={url}"])
    assert "hush" not in str(refused.value) and "someone" not in str(refused.value)
