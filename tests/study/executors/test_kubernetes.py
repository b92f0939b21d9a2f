"""The manifest of a study: fields of the published batch/v1, tasks, exit codes, failures."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from deepjax.errors import InputError
from deepjax.study.executors.kubernetes import kubernetes_options
from deepjax.study.executors.retries import after_exit
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.study import toy
from tests.study.executors.test_tasks import QUICK

PUBLISHED = json.loads(Path(__file__).with_name("batch_v1.json").read_text())
GIVEN = ("image=me/deepjax:1", "claim=runs", "gpu=1", "memory=16Gi", "namespace=lab")
SCALARS = {"str": str, "int": int, "bool": bool}


def field_errors(value: object, kind: str, path: str) -> list[str]:
    """Where a value is not of a published type: unknown and missing fields, other types."""
    kind = kind.removesuffix("?")
    inner = re.fullmatch(r"(list|dict)\[(?:str, )?(.*)\]", kind)
    if inner:
        if not isinstance(value, list if inner[1] == "list" else dict):
            return [f"{path} is no {kind}"]
        parts = enumerate(value) if isinstance(value, list) else value.items()
        return [
            line for key, each in parts for line in field_errors(each, inner[2], f"{path}/{key}")
        ]
    if kind in SCALARS:
        return [] if type(value) is SCALARS[kind] else [f"{path} is no {kind}: {value!r}"]
    fields = PUBLISHED[kind]
    if not isinstance(value, dict):
        return [f"{path} is no {kind}"]
    required = {name for name, type_ in fields.items() if not type_.endswith("?")}
    lines = [f"{path}/{name} is unknown" for name in value.keys() - fields.keys()]
    lines += [f"{path}/{name} is missing" for name in required - value.keys()]
    known = value.keys() & fields.keys()
    return lines + [
        line for name in known for line in field_errors(value[name], fields[name], f"{path}/{name}")
    ]


@pytest.fixture
def jobs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/toy.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.chdir(tmp_path)
    options = Options(executor="kubernetes", executor_options=GIVEN, retries=5, jobs=4)
    run_study(toy.STUDY, options)
    assert list(tmp_path.iterdir()) == []  # it only prints
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_every_field_is_one_of_the_published_batch_v1(jobs):
    for job in jobs:
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        assert field_errors(job, "V1Job", "") == []
    jobs[0]["spec"]["template"]["spec"]["containers"][0] |= {"imagee": "x", "name": 1}
    assert sorted(field_errors(jobs[0], "V1Job", "")) == [
        "/spec/template/spec/containers/0/imagee is unknown",
        "/spec/template/spec/containers/0/name is no str: 1",
    ]


def test_one_indexed_job_trains_the_next_measures_and_the_last_concludes(jobs):
    names = [job["metadata"]["name"] for job in jobs]
    assert names == ["toy-quick-train", "toy-quick-measure", "toy-quick-conclude"]
    specs = [job["spec"] for job in jobs]
    assert [(spec["completions"], spec["parallelism"], spec["suspend"]) for spec in specs] == [
        (6, 4, False),
        (2, 2, True),
        (1, 1, True),
    ]
    (train,), (measure,), (conclude,) = (spec["template"]["spec"]["containers"] for spec in specs)
    folder = ["--output-dir", "/runs/toy-quick"]
    assert train["command"] == ["python", "experiments/toy.py"]
    assert train["args"] == [*folder, "--task", *QUICK[:6]]
    assert measure["args"] == [*folder, "--task", *QUICK[6:]]
    assert conclude["args"] == folder
    assert {each["name"]: each["value"] for each in train["env"]}["NPROC"] == "1"
    assert train["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert {job["metadata"]["namespace"] for job in jobs} == {"lab"}


@pytest.mark.parametrize("code", [1, 2, 3, 75, 134, 137, 143])
def test_the_same_exit_codes_are_retried_as_by_slurm(jobs, code):
    """By the reference of PodFailurePolicyRule: NotIn matches every other code but 0."""
    spec = jobs[0]["spec"]
    assert spec["backoffLimitPerIndex"] == 5
    _, rule = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailIndex", "NotIn")
    values = rule["onExitCodes"]["values"]
    assert (code in values) == after_exit(code, 0, 1, advanced=False).again
    assert values == sorted(set(values)) and len(values) <= 255  # what the API accepts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "executor_options has no image=; allowed: image=IMAGE claim=CLAIM"),
        (["image=a"], "executor_options has no claim="),
        (["image=a", "claim=b", "cpus=2"], "executor_options has 'cpus=2'"),
        (["image=", "claim=b"], "executor_options has 'image='"),
        (["image=a", "claim=b", "mount=runs"], "mount is 'runs'; allowed: a path such as /runs"),
    ],
)
def test_options_of_kubernetes_that_are_missing_or_unknown_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        kubernetes_options(given)
