"""Which folders a fine-tuning writes into."""

import pytest
import yaml

from viewalign.errors import UserError
from viewalign.finetuning.classification.finetune import _check_settings
from viewalign.finetuning.classification.settings import TaskTraining
from viewalign.tasks.spec import TaskSpec, write_spec

SPEC = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})


def test_settings_may_change_until_a_fold_has_begun(tmp_path):
    _check_settings(tmp_path / "new", TaskTraining(epochs=3))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(TaskTraining(epochs=4).model_dump(mode="json")))
    write_spec(SPEC, tmp_path)
    _check_settings(tmp_path, TaskTraining(epochs=5))
    (tmp_path / "fold_0").mkdir()
    _check_settings(tmp_path, TaskTraining(epochs=4))
    with pytest.raises(UserError, match="epochs=4, not 5"):
        _check_settings(tmp_path, TaskTraining(epochs=5))


@pytest.mark.parametrize("name", ["brain.nii.gz", "settings.yaml"])
def test_a_folder_of_other_files_is_left_alone(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="is no earlier fine-tuning"):
        _check_settings(tmp_path, TaskTraining())
    assert [one.name for one in tmp_path.iterdir()] == [name]
