"""A study as Kubernetes Jobs: an indexed Job trains, another one measures, a third one concludes.

The manifest is text, since nothing is submitted here: `kubectl apply -f` takes it. Its fields are
those of batch/v1; backoffLimitPerIndex needs Kubernetes 1.29 or newer.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence

from deepjax.errors import InputError, require
from deepjax.study.executors.retries import RETRIED

OPTIONS = {
    "image": "",
    "claim": "",
    "mount": "/runs",
    "namespace": "",
    "cpu": "",
    "memory": "",
    "gpu": "",
}
"""With their defaults: the image with this repository, the claim of a volume that all pods may
write to, and where it is mounted; what a pod asks for."""
HEAD = """\
# {title}: {count} tasks. The volume of the claim has to be one that many pods may write to.
#
#     kubectl apply -f FILE
{commands}
# A study that was finished by these Jobs has its report in {out}.
"""
JOB = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
{namespace}  labels: {{deepjax-study: {label}}}
spec:
  suspend: {suspend}
  completionMode: Indexed
  completions: {completions}
  parallelism: {parallelism}
  backoffLimitPerIndex: {retries}
  podFailurePolicy:
    rules:
      # The pod was evicted, or its node was drained: that does not count.
      - action: Ignore
        onPodConditions: [{{type: DisruptionTarget, status: "True"}}]
      # Only what ended by a signal, or hung, is started again.
      - action: FailIndex
        onExitCodes: {{containerName: main, operator: NotIn, values: {retried}}}
  template:
    metadata:
      labels: {{deepjax-study: {label}}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 120  # for one step and one save
      containers:
        - name: main
          image: {image}
          command: {command}
          args:
{arguments}
          env:
{variables}
          resources: {resources}
          volumeMounts: [{{name: runs, mountPath: {mount}}}]
      volumes:
        - name: runs
          persistentVolumeClaim: {{claimName: {claim}}}
"""


def kubernetes_options(given: Sequence[str]) -> dict[str, str]:
    """The options from KEY=VALUE, with defaults. Raises InputError for others, and for none.

    >>> kubernetes_options(["image=deepjax:1", "claim=runs", "gpu=1"])["gpu"]
    '1'
    """
    example = "allowed: image=IMAGE claim=CLAIM, and mount, namespace, cpu, memory, gpu=VALUE"
    found = dict(OPTIONS)
    for each in given:
        name, _, value = each.partition("=")
        if name not in OPTIONS or not value:
            raise InputError(f"executor_options has {each!r}; {example}")
        found[name] = value
    for name in ("image", "claim"):
        if not found[name]:
            raise InputError(f"executor_options has no {name}=; {example}")
    mount = found["mount"]
    require(re.fullmatch("(/[^/]+)+", mount) is not None, "mount", mount, "a path such as /runs")
    return found


def manifest(
    title: str,
    out: str,
    phases: Mapping[str, Sequence[str]],
    command: Sequence[str],
    arguments: Mapping[str, Sequence[str]],
    options: Mapping[str, str],
    environment: Mapping[str, str],
    retries: int,
    at_once: int = 0,
) -> str:
    """The Jobs of a study, in the order of its phases; all but the first one are suspended.

    title: of the study, such as "degradation-small". out: its directory in the pods. phases: the
    tasks of each. command: of the study; arguments: of the tasks of a phase. at_once: pods at a
    time; 0: all.
    """
    names = {phase: f"{_dns_name(title)}-{phase}" for phase in phases}
    jobs = [
        _job(names[phase], title, tasks, command, arguments[phase], options, environment)
        | {
            "suspend": json.dumps(number > 0),
            "parallelism": min(at_once or len(tasks), len(tasks)),
            "retries": retries,
        }
        for number, (phase, tasks) in enumerate(phases.items())
    ]
    head = HEAD.format(
        title=title,
        count=sum(map(len, phases.values())),
        commands="\n".join(_commands([*names.values()], options["namespace"])),
        out=out,
    )
    return head + "".join(f"---\n{JOB.format(**job)}" for job in jobs)


def _job(
    name: str,
    title: str,
    tasks: Sequence[str],
    command: Sequence[str],
    arguments: Sequence[str],
    options: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, object]:
    """The values of one Job in the text above; JSON is YAML."""
    limits = {"cpu": options["cpu"], "memory": options["memory"], "nvidia.com/gpu": options["gpu"]}
    given = {key: value for key, value in limits.items() if value}
    namespace = options["namespace"]
    return {
        "name": name,
        "namespace": f"  namespace: {json.dumps(namespace)}\n" if namespace else "",
        "label": _dns_name(title),
        "completions": len(tasks),
        "retried": json.dumps(RETRIED),
        "image": json.dumps(options["image"]),
        "command": json.dumps(command),
        "arguments": "\n".join(f"            - {json.dumps(each)}" for each in arguments),
        "variables": "\n".join(
            f"            - {{name: {key}, value: {json.dumps(value)}}}"
            for key, value in environment.items()
        ),
        "resources": json.dumps({"requests": given, "limits": given} if given else {}),
        "mount": json.dumps(options["mount"]),
        "claim": json.dumps(options["claim"]),
    }


def _commands(jobs: Sequence[str], namespace: str) -> list[str]:
    """What to type, as comments: each Job waits for the one before it."""
    kubectl = f"kubectl -n {namespace}" if namespace else "kubectl"
    found = []
    for job, following in itertools.pairwise(jobs):
        found += [
            f"#     {kubectl} wait --for=condition=Complete --timeout=-1s job/{job}",
            f'#     {kubectl} patch job/{following} --patch \'{{"spec": {{"suspend": false}}}}\'',
        ]
    return [*found, "#"]


def _dns_name(text: str) -> str:
    """As in names of Kubernetes: lower case, digits and hyphens, at most 40 characters.

    A name may have 63, of which the name of a pod needs some for the phase and its number.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-")
