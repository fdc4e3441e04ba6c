import os
import time
from concurrent.futures import ThreadPoolExecutor

from viewalign.data.readers.itk import itk_messages


def test_threads_that_catch_messages_at_once_leave_stderr_in_its_place() -> None:
    before = os.fstat(2)

    def catch(_: int) -> list[str]:
        with itk_messages() as messages:
            time.sleep(0.01)
        return messages

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(catch, range(32)))
    assert os.path.samestat(os.fstat(2), before)
