import platform
import subprocess
import sys

import pytest

# Pages that the process asks for anew while it fills and frees 64 MB again and again.
SCRIPT = """
import resource, sys
import torch
from diffusion.utils.allocator import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 2**20).add_(1)
before = faults()
for _ in range(10):
    torch.ones(16 * 2**20).add_(1)
print(faults() - before)
"""


def page_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again():
    """Of 4 KB or, where the system gives larger ones, more: what is kept costs next to none."""
    assert page_faults("keep") <= page_faults() // 2
