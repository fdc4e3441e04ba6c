"""Task definitions and manifests: reading, writing and errors with their row."""

import json

import pytest

from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase, parse_target, read_manifest, target_text, write_manifest
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec

BINARY = {"name": "x", "kind": "binary", "channels": [{"name": "t1"}], "classes": ["no", "yes"]}


def spec(**changes):
    return TaskSpec.model_validate({**BINARY, **changes})


def table(folder, text, task=None):
    write_spec(task or spec(), folder)
    (folder / "manifest.csv").write_text(text)
    return folder


def test_a_manifest_is_read_as_written(tmp_path):
    task = spec(channels=[{"name": "flair"}, {"name": "swi", "aliases": ["t2s"], "optional": True}])
    cases = [
        TaskCase("b", "p1", {"flair": tmp_path / "im" / "b.nii"}, target=1, site="x", fold=1),
        TaskCase(
            "a", "p2", {"flair": tmp_path / "im" / "a.nii", "t2s": tmp_path / "s.nii"}, tmp_path / "m.nii", 0, fold=0
        ),
    ]
    write_spec(task, tmp_path)
    write_manifest(cases, task, tmp_path)
    assert read_spec(tmp_path) == task
    assert read_manifest(tmp_path, task) == [cases[1], cases[0]]


def test_numbers_with_decimals_as_pandas_writes_them(tmp_path):
    folder = table(
        tmp_path, "case,subject,image.t1,target,fold\na,1,a.nii,1,0.0\nb,1.0,b.nii,0,0.0\nc,2.0,c.nii,0,1.0\n"
    )
    cases = read_manifest(folder, spec())
    assert [(case.subject, case.fold) for case in cases] == [("1", 0), ("1", 0), ("2", 1)]


def test_json_lines_are_equivalent(tmp_path):
    rows = [{"case": "a", "image.t1": "a.nii", "target": "yes"}, {"case": "b", "image.t1": "b.nii", "target": 0}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert [case.target for case in read_manifest(tmp_path / "manifest.jsonl", spec())] == [1, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("case,image.t1,target\na,a.nii,\n", "row 1 (a)"),
        ("case,image.t1,target\na,a.nii,maybe\n", "'maybe'"),
        ("case,image.t1,target\na,,yes\n", "image"),
        ("case,image.t1,target\na,a.nii,1\na,b.nii,0\n", "case a"),
        (
            "case,subject,image.t1,target,fold\na,p,a.nii,1,0\nb,p,b.nii,0,1\n",
            "subject p",
        ),
        ("case,subject,image.t1,target,split\na,p,a.nii,1,train\nb,p,b.nii,0,test\n", "train and test"),
        ("case,image.t1,target,fold\na,a.nii,1,0\nb,b.nii,0,\n", "fold"),
        ("case,image.t1,target,fold\na,a.nii,1,x\n", "'x'"),
        ("case,image.t1,target,split\na,a.nii,1,val\n", "'val'"),
        ("case,image.t2,target\na,a.nii,1\n", "image.t2"),
        ("image.t1,target\na.nii,1\n", "'case'"),
        ("case,image.t1,target\n", "cases"),
        ("case,image.t1,target,splitt\na,a.nii,1,test\n", "'splitt'"),
        ("case,image.t1,targets\na,a.nii,1\n", "'targets'"),
        ("case,subject,Subject_ID,image.t1,target\na,p,q,a.nii,1\n", "'subject' and 'Subject_ID'"),
        ("case,image.t1,target\na,a.nii,1,5\n", "line 2"),
        ("case,image.t1,target,target\na,a.nii,1,0\n", "'target'"),
        ("case,image.t1,target,fold\na,a.nii,1,²\n", "'²'"),
    ],
)
def test_errors_report_the_row(tmp_path, text, told):
    with pytest.raises(UserError) as problem:
        read_manifest(table(tmp_path, text), spec())
    assert told in str(problem.value)


@pytest.mark.parametrize(
    "header",
    [
        "Case,Subject_ID,image.t1,Target,Split",
        "case_id,PatientID,image.t1,target,SPLIT",
        "case;patient;image.t1;target;split",
        "Case ID,P-ID,IMAGE.t1,target,split",
    ],
)
def test_columns_as_other_programs_write_them(tmp_path, header):
    sign = ";" if ";" in header else ","
    rows = [
        header,
        *(sign.join(row) for row in (["b", "p1", "b.nii", "no", "Test"], ["a", "p2", "a.nii", "yes", "train"])),
    ]
    cases = read_manifest(table(tmp_path, "\ufeff" + "\r\n".join(rows)), spec())
    assert [(c.case, c.subject, c.target, c.split) for c in cases] == [("a", "p2", 1, "train"), ("b", "p1", 0, "test")]


@pytest.mark.parametrize(
    ("classes", "targets"),
    [
        (("1", "0"), {"1.0": 0, "0.0": 1, "1": 0, 0: 1, 1.0: 0}),
        (("1", "2", "3"), {"1.0": 0, "3": 2, 2: 1}),
        (("no", "yes"), {"1": 1, "0.0": 0, 1.0: 1, "yes": 1}),
        (("none", "mild"), {"none": 0, "mild": 1, "n/a": None, None: None, "1": 1}),
    ],
)
def test_classes_are_names_first_and_indices_only_where_no_name_is_a_number(classes, targets):
    task = spec(kind="multiclass", classes=classes)
    assert {value: parse_target(value, task) for value in targets} == targets
    if "3" in classes:
        for value in ("0", "4"):
            with pytest.raises(UserError, match=value):
                parse_target(value, task)


def test_a_line_of_json_without_a_case(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"case": "a", "image.t1": "a.nii", "target": 1}\n{"image.t1": "b.nii"}\n')
    with pytest.raises(UserError, match="row 2"):
        read_manifest(tmp_path / "manifest.jsonl", spec())


@pytest.mark.parametrize(
    ("value", "told"),
    [("abc", "abc"), ("nan", None), ("inf", "finite"), ("130", "0 to 120")],
)
def test_invalid_numbers(value, told):
    age = TaskSpec.model_validate({"name": "a", "kind": "regression", "channels": [{"name": "t1"}], "range": [0, 120]})
    if told is None:
        assert parse_target(value, age) is None
        return
    with pytest.raises(UserError, match=told):
        parse_target(value, age)


def test_an_age_with_decimals_is_kept():
    age = TaskSpec.model_validate({"name": "a", "kind": "regression", "channels": [{"name": "t1"}]})
    assert parse_target("72.0", age) == 72.0
    assert parse_target("72.4567890123", age) == 72.4567890123
    assert parse_target(target_text(0.1 + 0.2, age), age) == 0.1 + 0.2


def test_multilabel_targets():
    task = spec(kind="multilabel", classes=["acl", "meniscus", "abnormal"])
    assert parse_target("acl|abnormal", task) == (1, 0, 1)
    assert parse_target("", task) == (0, 0, 0)
    assert parse_target("n/a", task) is None
    assert target_text((1, 0, 1), task) == "acl|abnormal"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": ["a"]}, "needs 2 or more names"),
        ({"classes": ["a", "b", "c"]}, "a binary task"),
        ({"classes": ["a", "a"], "kind": "multiclass"}, "must be unique"),
        ({"kind": "regression"}, "a regression task has none"),
        ({"colour": 1}, "no setting 'colour'"),
        ({"primary": "AUC"}, "'AUC' (did you mean 'auroc'?)"),
        ({"primary": "mae"}, "a binary task has no metric 'mae'"),
        (
            {"channels": [{"name": "t1"}, {"name": "t2", "aliases": ["t1"]}]},
            "channels: names and aliases must be unique",
        ),
    ],
)
def test_invalid_tasks(tmp_path, changes, told):
    import yaml

    (tmp_path / "task.yaml").write_text(yaml.safe_dump({**BINARY, **changes}))
    with pytest.raises(UserError) as problem:
        read_spec(tmp_path)
    assert told in str(problem.value)


def test_prediction_needs_no_targets(tmp_path):
    folder = table(tmp_path, "case,image.t1\na,a.nii\n")
    assert read_manifest(folder, spec(), targets=False)[0].target is None


def test_a_table_of_another_ending_is_not_replaced_by_its_neighbour(tmp_path):
    table(tmp_path, "case,subject,image.t1,target\na,a,a.nii,no\n")
    (tmp_path / "new.tsv").write_text("case\tsubject\timage.t1\ttarget\nb\tb\tb.nii\tyes\n")
    assert [case.case for case in read_manifest(tmp_path / "new.tsv", spec())] == ["b"]
    (tmp_path / "new.tsv").rename(tmp_path / "new.txt")
    with pytest.raises(UserError, match=r"new\.txt is no manifest"):
        read_manifest(tmp_path / "new.txt", spec())
