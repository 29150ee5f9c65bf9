"""torchrun without its traceback: python scripts/torchrun.py [options] SCRIPT [arguments]

It ends with the code of the process that failed first, which has said why in a line; torchrun's own
report of that is a traceback of torchrun.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def launch() -> int:
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(launch())
