"""An interrupted run continues unchanged or is refused with the reason, and never overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.data.prepare.sharding import Recipe, write_shards
from pipeline.distributed.world import World
from pipeline.errors import ConfigError, DataError
from pipeline.output.recovery import snapshot_folder
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.interruptions import Reference, StopAt, changed, newest_snapshot, start
from tests.ranks import run_ranks
from tests.tiny import build_config, write_clip
from tests.variants import VARIANTS

VT = VARIANTS["anchors kept as learned"].model_dump()
OPTIONS = VT["options"]["tppt_vt"]


@pytest.fixture(scope="module")
def reference(tiny_arch, tiny_shards, tmp_path_factory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    return Reference(
        build_config(
            tiny_arch, tiny_shards, output=str(folder / "run"), method=VT, optim={"epochs": 1}
        )
    )


@pytest.fixture(scope="module")
def half_way(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was stopped in its second task; each test continues a copy."""
    config = changed(reference.config, output=str(tmp_path_factory.mktemp("half") / "run"))
    assert not start(config, StopAt(18))
    assert newest_snapshot(config).startswith("task-001-step-")
    return config


@pytest.fixture
def interrupted(half_way: Config, tmp_path: Path) -> Config:
    """A copy of that run in another folder: a run may be moved before it continues."""
    shutil.copytree(half_way.output, tmp_path / "run")
    return changed(half_way, output=str(tmp_path / "run"))


def assert_refused(config: Config, words: str) -> None:
    """must raise one sentence with place, reason and remedy, and write nothing"""
    before = {f: f.stat().st_mtime_ns for f in Path(config.output).rglob("*")}
    with pytest.raises(ConfigError) as caught:
        start(config)
    assert str(caught.value) == (
        f"output: {config.output} holds another run: {words}; "
        "choose another output=, or remove that folder"
    )
    assert {f: f.stat().st_mtime_ns for f in Path(config.output).rglob("*")} == before


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": 2}, "it was started with seed=1 instead of 2"),
        ({"data": {"global_batch": 2}}, "it was started with data.global_batch=4 instead of 2"),
        (
            {"method": {"name": "finetune"}},
            "it was started with method.name='tppt_vt' instead of 'finetune'",
        ),
        (
            {"method": {"options": {"tppt_vt": OPTIONS | {"old_anchors": "reencoded"}}}},
            "it was started with method.options.tppt_vt.old_anchors='frozen' "
            "instead of 'reencoded'",
        ),
        (
            {"tasks": {"class_order": [4, 0, 6, 5, 2, 1, 3]}},
            "the classes or their order differ in task 2",
        ),
    ],
    ids=["seed", "batch", "method", "option", "order"],
)
def test_settings_that_change_figures_are_refused(interrupted, sections, words):
    assert_refused(changed(interrupted, **sections), words)


def test_other_weights_are_refused(interrupted, tiny_arch, tmp_path):
    """must compare the weights themselves, since the setting is unchanged"""
    same = shutil.copytree(tiny_arch.removeprefix("local-dir:"), tmp_path / "clip")
    config = changed(interrupted, model={"arch": f"local-dir:{same}"}, output=str(tmp_path / "b"))
    assert not start(config, StopAt(18))
    shutil.rmtree(same)
    write_clip(same, seed=2)
    assert_refused(config, "its backbone has other weights")


def change_an_image(folder: Path) -> None:
    """Replace an image of a class of the second task, and write the shards and the index anew."""
    images, shards = folder / "images", folder / "shards"
    file = next((images / "train" / "n7_grey_seal").iterdir())
    file.write_bytes((images / "train" / "n2_lamp" / file.name).read_bytes())
    shutil.rmtree(shards)
    names = str(images / "names.json")
    write_shards(str(images), str(shards), Recipe(shard_bytes=60_000), names_url=names)


def test_other_images_are_refused(interrupted, tiny_images, tiny_shards, tmp_path):
    shutil.copytree(tiny_images, tmp_path / "images")
    shutil.copytree(tiny_shards, tmp_path / "shards")
    config = changed(interrupted, data={"index": str(tmp_path / "shards")})
    assert not start(config, StopAt(1))  # a copy of the shards is accepted
    change_an_image(tmp_path)
    assert_refused(config, "the images of task 2 differ from those of the run")


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"workers": 1}, "log_every": 1, "name": "renamed"},
        {"snapshot": {"every_steps": 1}, "engine": {"timeout_s": 99}},
        {"data": {"on_bad_sample": "skip", "bad_sample_budget": 3, "eval_batch": 5}},
    ],
    ids=str,
)
def test_other_machine_settings_change_nothing(reference, interrupted, sections):
    config = changed(interrupted, **sections)
    assert start(config)
    reference.assert_equals_run(config)


def damage(folder: Path) -> None:
    for file in folder.rglob("state.json"):
        file.write_bytes(file.read_bytes()[:-1])


def test_run_with_only_damaged_snapshots_is_refused(interrupted):
    """must not silently start from the beginning, as the output may be worth days"""
    damage(Path(snapshot_folder(interrupted)))
    with pytest.raises(DataError, match="snapshots: every snapshot is damaged; restore the folder"):
        start(interrupted)


def test_run_resumes_from_the_previous_snapshot_if_the_newest_is_damaged(reference, interrupted):
    newest = newest_snapshot(interrupted)
    damage(Path(snapshot_folder(interrupted)) / newest)
    assert start(interrupted)
    reference.assert_equals_run(interrupted)


def refusal(world: World, config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        execute(check_run(config, world.world_size), world)
    return str(caught.value)


def test_all_ranks_refuse_together(interrupted):
    """must raise the same error: a rank that continued alone would wait for the others"""
    answers = run_ranks(refusal, 2, changed(interrupted, seed=2), collective_s=None)
    assert answers[0] == answers[1]
    assert answers[0].startswith("rank 0: output: ") and "seed=1 instead of 2" in answers[0]
