"""Starters for Google's clusters: JobSets on GKE, and TPU pods.

What GKE, JobSet and a VM's metadata say is as their documents have it.
"""

import pathlib
import re
import subprocess

import pytest
import yaml

FOLDER = pathlib.Path(__file__).parents[2] / 'experiments' / 'launch'
DEVICES = 16  # of every starter


def manifest(name):
  """(JobSet, its replicated job, the pod's spec, its container)."""
  text = (FOLDER / name).read_text()
  for variable in re.findall(r"envsubst '(.*?)'", text)[0].split():
    filled = variable.removeprefix('$')
    assert f'${{{filled}}}' in text
    text = text.replace(f'${{{filled}}}', f'my-{filled.lower()}')
  jobset = yaml.safe_load(text)
  (replicated,) = jobset['spec']['replicatedJobs']
  pod = replicated['template']['spec']['template']['spec']
  (container,) = pod['containers']
  return jobset, replicated, pod, container


@pytest.mark.parametrize('name', ['gke_gpu.yaml', 'gke_tpu.yaml'])
def test_a_jobset_is_one_gang(name, cluster):
  jobset, replicated, pod, container = manifest(name)
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  job = replicated['template']['spec']
  assert job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions'] > 1
  assert job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
  assert jobset['spec']['network']['enableDNSHostnames']
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['containerName'] == container['name']
  assert rule['onExitCodes']['values'] == [2]
  assert container['image'] == 'my-image'
  mounts = {m['name']: m['mountPath'] for m in container['volumeMounts']}
  volumes = {v['name']: v for v in pod['volumes']}
  assert mounts.keys() == volumes.keys()
  bucket = volumes['share']['csi']['volumeAttributes']
  assert bucket['bucketName'] == 'my-bucket'
  assert 'metadata-cache:ttl-secs:0' in bucket['mountOptions'].split(',')
  workdir = cluster.flag(container['command'], 'workdir')
  assert workdir.startswith(mounts['share'] + '/')


def host_names(name):
  """Of the pods, as JobSet makes them."""
  jobset, replicated, _, _ = manifest(name)
  prefix = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0'
  domain = jobset['spec']['network']['subdomain']
  count = replicated['template']['spec']['completions']
  return [f'{prefix}-{i}.{domain}' for i in range(count)]


def run_pods(name, cluster, variables):
  """Runs the container of every index; all wait for all."""
  *_, container = manifest(name)
  cluster.add('getent', '[[ $1 == hosts ]] && echo "$2" >>$LOG')
  fixed = {e['name']: e['value'] for e in container.get('env', ())}
  pods = host_names(name)
  shell, option, *rest = container['command']
  for i in range(len(pods)):
    cluster.run(
      f'{shell} {option}', *rest, code=75,
      **fixed | dict(JOB_COMPLETION_INDEX=str(i)) | variables(i),
    )  # fmt: skip
  assert cluster.logged() == pods * len(pods)
  return pods


def test_gpu_pods(cluster):
  pods = run_pods('gke_gpu.yaml', cluster, lambda i: {})
  *_, container = manifest('gke_gpu.yaml')
  gpus = container['resources']['limits']['nvidia.com/gpu']
  assert gpus * len(pods) == DEVICES
  cluster.check_processes(f'{pods[0]}:8476', len(pods), DEVICES)
  assert all(e['JAX_PARTITION_INDEX'] == '0' for _, e in cluster.started())


def test_tpu_pods(cluster):
  """GKE adds variables to Indexed Jobs that have a subdomain and TPUs."""
  _, replicated, pod, container = manifest('gke_tpu.yaml')
  hosts = ','.join(host_names('gke_tpu.yaml'))
  pods = run_pods(
    'gke_tpu.yaml', cluster,
    lambda i: dict(TPU_WORKER_ID=str(i), TPU_WORKER_HOSTNAMES=hosts),
  )  # fmt: skip
  x, y = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  chips = container['resources']['limits']['google.com/tpu']
  assert int(x) * int(y) == chips * len(pods) == DEVICES
  assert len(cluster.started()) == len(pods)
  for argv, env in cluster.started():
    assert not any(a.startswith('--process') for a in argv)
    cluster.check(argv, DEVICES)
    assert cluster.kind(env) == 'TPU pod'
  assert replicated['replicas'] == 1
  # With several slices, which gen_rl.sharding cannot use yet.
  more = dict(MEGASCALE_COORDINATOR_ADDRESS=f'{pods[0]}:1')
  assert cluster.kind(more | dict(TPU_WORKER_HOSTNAMES='a')) == 'TPU slices'
  assert cluster.kind(dict(TPU_WORKER_HOSTNAMES='localhost')) is None


CURL = r"""
case "${!#}" in
  http://metadata.google.internal/*/agent-worker-number) echo "$WORKER" ;;
  http://metadata.google.internal/*/worker-network-endpoints)
    echo "$ENDPOINTS" ;;
  *) exit 22 ;;
esac
"""


@pytest.mark.parametrize(
  'endpoints',
  ['10.1.0.5,10.1.0.9', 'unknown:unknown:10.1.0.5,unknown:unknown:10.1.0.9'],
)
def test_tpu_workers(endpoints, cluster):
  cluster.add('curl', CURL)
  for i in range(2):
    cluster.run(
      'tpu_worker.sh', 'train', *cluster.example('tpu_pod.sh'), code=75,
      WORKER=str(i), ENDPOINTS=endpoints,
    )  # fmt: skip
  cluster.check_processes('10.1.0.5:8476', 2, DEVICES)
  for _, env in cluster.started():
    assert cluster.kind(env) is None  # hence the flags


def test_setup_of_workers(cluster):
  """NFS without locks of the server, a bucket without caches."""
  cluster.add('mountpoint', 'exit 1')
  cluster.add(
    'sudo', 'echo "sudo $*" >>$LOG; [[ $1 != tee ]] || cat >/dev/null'
  )
  for name in ('gcsfuse', 'mount.nfs', 'uv'):
    cluster.add(name)
  for share in ('10.0.0.2:/share', 'gs://bucket'):
    cluster.run('tpu_worker.sh', 'setup', share)
  cluster.run('mount.sh', 'bucket', code=2)
  lines = cluster.logged()
  nfs = 'sudo mount -t nfs -o vers=3,nolock 10.0.0.2:/share /mnt/gen_rl'
  assert lines.count(nfs) == 1
  (fuse,) = [line for line in lines if line.startswith('gcsfuse')]
  assert '--metadata-cache-ttl-secs=0' in fuse
  assert fuse.endswith(' bucket /mnt/gen_rl')
  installed = f'--python {cluster.home}/venv/bin/python -e .[tpu]'
  assert lines.count(f'uv pip install --quiet {installed}') == 2


GIT = 'for a; do case $a in --output=*) >"${a#*=}" ;; esac; done'
GCLOUD = r"""
state=$RECORDS/../state
verb=$4
echo "$verb ${*:5}" >>$LOG
case $verb in
  list) [[ ! -e $state ]] || cat $state ;;
  create) echo ACTIVE >$state ;;
  delete) rm $state ;;
  ssh)
    case "$*" in *' train '*)
      if (($(grep -c ' train ' $LOG) == 1)); then  # preempted
        echo SUSPENDED >$state
        exit 255
      fi
      exit $LAST ;;
    esac ;;
esac
"""
POD = dict(PROJECT='p', ZONE='z', SHARE='gs://b', POLL='0', TRIES='2')


@pytest.mark.parametrize('last, code', [(0, 0), (2, 2), (3, 1)])
def test_tpu_pod_goes_on_after_a_preemption(last, code, cluster):
  cluster.add('gcloud', GCLOUD)
  cluster.add('git', GIT)
  argv = [*cluster.example('tpu_pod.sh'), '--config.name=two words']
  cluster.run('tpu_pod.sh', *argv, code=code, LAST=str(last), **POD)
  lines = cluster.logged()
  start = ['list', 'create', 'list', 'scp', 'ssh', 'ssh']
  assert [line.split()[0] for line in lines] == [
    *start, 'list', 'delete', *start, 'delete',
  ]  # fmt: skip
  made, again = [line for line in lines if line.startswith('create')]
  assert made == again and '--spot' in made
  assert '--accelerator-type=v5litepod-16' in made
  assert '--runtime-version=v2-alpha-tpuv5-lite' in made
  trained, again = [line for line in lines if ' train ' in line]
  assert trained == again and '--worker=all' in trained
  # As a worker's shell reads it.
  flags = trained.split('tpu_worker.sh train')[1].removesuffix('; }')
  read = subprocess.run(
    ['bash', '-c', f"printf '%s\\n' {flags}"], capture_output=True, text=True
  )
  assert read.stdout.splitlines() == argv


def test_tpu_pod_of_another_type(cluster):
  cluster.add('gcloud', GCLOUD)
  cluster.add('git', GIT)
  other = dict(TYPE='v6e-16', SPOT='0', KEEP='1', LAST='0')
  cluster.run('tpu_pod.sh', **POD, **other)
  lines = cluster.logged()
  made, _ = [line for line in lines if line.startswith('create')]
  assert '--runtime-version=v2-alpha-tpuv6e' in made and '--spot' not in made
  assert not lines[-1].startswith('delete')
