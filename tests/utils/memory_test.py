import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')
def test_freed_memory_is_kept():
  code = """
import resource
import numpy as np
from gen_rl.utils import memory

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(10):
    np.ones(8_000_000)  # 64 MB
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
memory.keep_freed_memory()
faults()
print(default, faults())
"""
  out = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  default, kept = map(int, out.stdout.split())
  assert kept < default / 10
