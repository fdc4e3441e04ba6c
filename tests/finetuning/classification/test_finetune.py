"""Which folders a fine-tuning writes into."""

import pytest
import yaml

from viewalign.errors import UserError
from viewalign.finetuning.classification.finetune import _write_settings
from viewalign.finetuning.classification.settings import TaskTraining
from viewalign.tasks.spec import TaskSpec

SPEC = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})


def test_settings_may_change_until_a_fold_has_begun(tmp_path):
    _write_settings(tmp_path, SPEC, TaskTraining(epochs=3))
    _write_settings(tmp_path, SPEC, TaskTraining(epochs=4))
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["epochs"] == 4
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(UserError, match="epochs=4, not 5"):
        _write_settings(tmp_path, SPEC, TaskTraining(epochs=5))


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "brain.nii.gz").touch()
    with pytest.raises(UserError, match="is no earlier fine-tuning"):
        _write_settings(tmp_path, SPEC, TaskTraining())
    assert [one.name for one in tmp_path.iterdir()] == ["brain.nii.gz"]
