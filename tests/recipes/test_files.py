import pytest

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.finetuning.classification.settings import TaskTraining, load_training
from viewalign.recipes.files import RECIPES, STUDIES, TASK_RECIPES


@pytest.mark.parametrize("files", [RECIPES, STUDIES, TASK_RECIPES], ids=lambda files: files.kind)
def test_every_name_can_be_read_and_has_a_headline(files):
    names = files.names()
    assert names == sorted(names)
    assert not any(name.startswith("_") for name in names)
    for name in names:
        assert len(files.headline(name)) > 20
        assert all(path is None for _, path in files.read(name, Recipe))


def test_a_recipe_for_tasks_has_bases(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "mine.yaml").write_text("base: fomo-infarct\nepochs: 7\n")
    (tmp_path / "deep" / "other.yml").write_text("base: ../mine.yaml\nlr: 0.5\n")
    packaged = load_training("fomo-infarct")
    made = load_training(str(tmp_path / "deep" / "other.yml"), {"batch": 3})
    changed = {"epochs": 7, "lr": 0.5, "batch": 3}
    assert made == packaged.model_copy(update=changed)
    chain = TASK_RECIPES.read(str(tmp_path / "deep" / "other.yml"), TaskTraining)
    assert [path and path.resolve() for _, path in chain] == [
        None,
        tmp_path / "mine.yaml",
        tmp_path / "deep" / "other.yml",
    ]


@pytest.mark.parametrize("files", [RECIPES, STUDIES, TASK_RECIPES], ids=lambda files: files.kind)
def test_what_is_no_such_file(files, tmp_path):
    known = files.names()[0]
    (tmp_path / "settings.txt").write_text("epochs: 3\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "circle.yaml").write_text("base: circle.yaml\n")
    for name, words in {
        known[:-1]: known,
        "_nothing": "_nothing",
        str(tmp_path): "folder",
        str(tmp_path / "settings.txt"): ".yaml",
        str(tmp_path / "gone.yaml"): "gone.yaml",
        str(tmp_path / "empty.yaml"): "base",
        str(tmp_path / "circle.yaml"): "itself",
    }.items():
        with pytest.raises(UserError) as problem:
            files.read(name, Recipe)
        assert words in str(problem.value)
