"""A file of settings works, or is refused with one sentence that says what to change."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipeline.config import dump_config, load_config
from pipeline.errors import ConfigError
from tests.fuzz import count_refused

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


def test_override_replaces_a_value_at_any_depth(file):
    config = load_config(
        file,
        ["seed=7", "data.cache.limit_gb=1.5", "method.options.tppt_v.diversity.weight=2",
         "tasks.class_order=[2, 0, 1]", "output=s3://bucket/a=b", "tasks.limit=null"],
    )  # fmt: skip
    assert config.seed == 7 and config.data.cache.limit_gb == 1.5
    assert config.method.options == {"tppt_v": {"diversity": {"weight": 2}}}
    assert config.tasks.class_order == [2, 0, 1] and config.tasks.limit is None
    assert config.output == "s3://bucket/a=b"  # only the first = is a separator


def test_file_of_a_list_needs_quotes_in_yaml_and_none_in_an_override(file):
    assert load_config(file, ["data.index=@weeks.yaml"]).data.index == "@weeks.yaml"
    assert load_config(file, ["data.index=[a, '@weeks.yaml']"]).data.index == ["a", "@weeks.yaml"]
    file.write_text(SMALLEST.replace("index: shards", "index: @weeks.yaml"))
    with pytest.raises(ConfigError, match="write the value that starts with @ in quotes"):
        load_config(file)


def test_later_override_replaces_the_earlier(file):
    assert load_config(file, ["seed=7", "seed=8"]).seed == 8


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_notation_of_a_number_is_a_number(file, text):
    """must include 1e-4, which YAML 1.1 reads as a string"""
    assert load_config(file, [f"optim.learning_rate={text}"]).optim.learning_rate == 1e-4


def test_file_replaces_values_of_its_bases_section_by_section(tmp_path):
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
        file, ["tasks.class_order=[2, 0, 1]", "text.templates=['a {}.']", "name='größe #1'"]
    )
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config(tmp_path / "again.yaml")
    assert again == config and dump_config(again) == dump_config(config)


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
        ("tasks.class_order=lambda", "class_order: .*'lamda'.*list, found"),
        ("tasks.class_order=[a]", "tasks.class_order.0: .*valid integer.*, found 'a'"),
        ("tasks.classes_per_task=0", r"tasks.classes_per_task: .*than 0, or .*'all', found 0"),
        ("seed=99999999999999999999", "seed: .*less than 9223372036854775808, found 999"),
        ("data=shards", "data: must hold `key: value` lines, found 'shards'"),
        ("optim=", "optim: must hold `key: value` lines, found None"),
        ("output=''", "output: '' is blank"),
        ("text.templates=['a photo']", "text.templates.0: 'a photo' needs exactly one '{}'"),
        ("text.templates=[]", "text.templates: .*at least 1 item"),
        ("text.templates=[['{}'], ['a']]", "text.templates.1.0: 'a' needs exactly one '{}'"),
        ("text.templates=['{}', ['{}']]", "text.templates.1: .*valid string"),
        ("evaluation.held_out=['']", "evaluation.held_out.0: '' is blank"),
        ("evaluation.held_out=[{index: a, tmplates: []}]", "held_out.0.tmplates is not a known"),
        ("evaluation.split=validation", "data.validation_fraction is 0; set it to e.g. 0.2"),
        ("seed", "override 'seed': write key=value, for instance seed=2"),
        ("=3", "override '=3': write key=value"),
        ("method.name.x=3", "override 'method.name.x=3': 'name' holds a value, not a section"),
        ("output=it's #1", "override .*it's #1.*: ' #' starts a comment of YAML, which would cut"),
        ("seed=[", r"override 'seed=\[': '\[' is not a YAML value"),
    ],
)  # fmt: skip
def test_wrong_override_is_refused(file, override, words):
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
def test_wrong_file_is_refused(file, text, words):
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)


def test_path_without_a_text_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="nowhere.yaml: no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["data=3"], "override 'data=3': data: must"),
        (["seed=2", "optim.epochs=x"], "override 'optim.epochs=x': optim.epochs: "),
        (["optim={epochs: x}"], "override 'optim={epochs: x}': optim.epochs: "),
        (["optim.epochs=x", "optim.epochs=y"], "override 'optim.epochs=y': optim.epochs: "),
        (["tasks.class_order={a: 1}"], "override 'tasks.class_order={a: 1}': tasks.class_order"),
        (["data.indx=3"], "override 'data.indx=3': data.indx is not a known key; did you mean"),
        (["seed=2", "evaluation.split=validation"], "FILE with 'seed=2' 'evaluation.split=valid"),
        ([f"seed={'9' * 300}"], f"override 'seed={'9' * 74} …: seed: "),
    ],
)
def test_message_is_one_line_and_names_the_wrong_override(file, overrides, place):
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert str(caught.value).startswith(place.replace("FILE", str(file)))
    assert "\n" not in str(caught.value)


def test_wrong_value_of_the_file_is_not_blamed_on_an_override(file):
    file.write_text(SMALLEST + "optim: {epochs: x}")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["seed=3", "optim.warmup_steps=2"])
    assert str(caught.value).startswith(f"{file}: optim.epochs: ")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n"
    for below, name in itertools.pairwise("abcdefghijklmnop")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{below}'] * 9)}]}}\n"
    for below, name in itertools.pairwise("abcdefghijklmnop")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "stands for [0-9,]+ values and at most 100,000 are read"),
        (MERGES, "stands for [0-9,]+ values and at most 100,000 are read"),
        ("a: &a [*a]", "an alias stands within its own anchor"),
        ("[" * 100_000, "more than 50 lists and sections are within each other"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 lists and sections are within each other"),
        ("a: b\n" * 300_000, "has more than 1,048,576 characters; shorten it"),
        (SMALLEST + f"seed: {'9' * 5_000}", "not valid YAML: ValueError: Exceeds the limit"),
        (SMALLEST + f"seed: 0x{'9' * 5_000}", "seed: .*found a number of thousands of digits"),
        (SMALLEST + "name: 2024-99-99", "not valid YAML: ValueError: month must be in"),
        (SMALLEST + "name: 2024-09-09", "name: .*valid string, found datetime.date"),
        (SMALLEST + "name: !!binary a", "not valid YAML: "),
        (SMALLEST + 'name: "\\0"', r"name: holds a character that no file can hold, found"),
        (SMALLEST + 'output: "\\uD800"', "output: holds a character that no file can hold"),
        (SMALLEST + '"\\uD800": 3', "a key: holds a character that no file can hold"),
        (SMALLEST + "? [a]\n: 3", "not valid YAML: .*unhashable key"),
        (SMALLEST + "3: 4", "3: keys should be strings"),
        (SMALLEST + f"{'k' * 900}: 4", "k{80} … is not a known key; there are"),
        (SMALLEST + f"log_every: {'k' * 9_000}", "log_every: .*found 'k{79} …$"),
        (SMALLEST + 'base: "\\0"', "`base` must name a file"),
    ],
    ids=range(19),
)
def test_hostile_file_is_refused_at_once(file, text, words):
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        load_config(file)
    assert len(str(refused.value)) < 600


def test_bases_of_bases_are_limited(tmp_path):
    for name, below in itertools.pairwise("abcdef"):
        bases = ", ".join([f"{below}.yaml"] * 9)
        (tmp_path / f"{name}.yaml").write_text(f"base: [{bases}]")
    (tmp_path / "f.yaml").write_text(SMALLEST)
    with pytest.raises(ConfigError, match="`base` leads to more than 100 files; name fewer"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "override", ["a." * 5_000 + "b=3", f"seed={'[' * 9_000}", "seed=9999-99-99"]
)
def test_hostile_override_is_refused(file, override):
    with pytest.raises(ConfigError, match="^override '") as refused:
        load_config(file, [override])
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("override", ["output=caf\udce9", "data.index=@caf\udce9.yaml", "\udcff=3"])
def test_override_in_another_encoding_is_named(file, override):
    with pytest.raises(ConfigError, match="is not text in UTF-8; write it in UTF-8") as refused:
        load_config(file, [override])
    assert str(refused.value).isascii()


def test_damaged_file_is_refused_or_read(file):
    """must end in settings or in one sentence, whatever the bytes of the file are"""
    text = dump_config(load_config(file)).encode()
    assert count_refused(
        "configuration",
        text,
        lambda data: file.write_bytes(data) and load_config(file),
        default=60,
    )


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("output", "s3://AKIA:hush@bucket/run"),
        ("data.index", "[shards, 's3://AKIA:hush@bucket/more']"),
        ("snapshot.folder", "https://host/run?X-Amz-Signature=hush"),
        ("data.cache.folder", "ftp://someone@host/cache"),
        ("data.index", "s3://AKIA:a/hush@bucket/shards"),  # a secret key of Amazon with a slash
        ("data.index.first", "s3://AKIA:hush@bucket/shards"),  # not the key of a setting
        ("data.index", "[s3://AKIA:hush@bucket/shards"),  # not YAML
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(file, key, url):
    """must not appear in a printed configuration, a log or results.json"""
    with pytest.raises(ConfigError, match=f"'{key}': holds credentials; .* AWS_PROFILE") as refused:
        load_config(file, [f"{key}={url}"])
    assert "hush" not in str(refused.value) and "someone" not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "output: s3://AKIA:hush@bucket/run",
        "output: s3://AKIA:a/hush@bucket/run",
        "output: s3://AKIA:hush@bucket/run: x",  # not YAML
        "base: [{url: s3://AKIA:hush@bucket/run}]",  # no file
    ],
)
def test_credentials_in_a_file_are_not_shown(file, line):
    file.write_text(f"{line}\n{SMALLEST}")
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    assert "hush" not in str(refused.value)


def test_credentials_in_place_of_an_override_are_not_shown(file):
    with pytest.raises(ConfigError, match="override 's3://bucket/run': holds credentials") as found:
        load_config(file, ["s3://AKIA:hush@bucket/run"])
    assert "hush" not in str(found.value)


def test_colons_of_an_arn_are_no_credentials(file):
    url = "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/photos/run@2"
    assert load_config(file, [f"output={url}"]).output == url
