"""Threads that read ahead and write behind: order, bounds, errors, and that none is left."""

import _thread
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from diffusion.utils.overlap import Overlap


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def obeys_ctrl_c():
    """Also where the tests run in the background, for which a shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def until(count, wanted):
    """Wait until count() is `wanted`, and see that it stays so."""
    deadline = time.monotonic() + 20
    while count() != wanted:
        assert time.monotonic() < deadline, f"{count()} never became {wanted}"
        time.sleep(0.001)
    time.sleep(0.01)
    assert count() == wanted


def test_everything_comes_through_in_order():
    written = []
    with Overlap() as overlap:
        write = overlap.behind(written.extend, depth=2)
        for i in overlap.ahead(range(500), depth=3):
            write(i)
    assert written == list(range(500))


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_ahead_than_asked_for(depth):
    made = []

    def numbers():
        for i in range(10):
            made.append(i)
            yield i

    with Overlap() as overlap:
        ahead = overlap.ahead(numbers(), depth)
        for taken in range(1, 5):
            next(ahead)
            until(made.__len__, taken + depth)


def test_no_more_waits_to_be_written_than_asked_for():
    may_write, given, written = threading.Semaphore(0), [], []

    def consume(items):
        for item in items:
            may_write.acquire()
            written.append(item)

    def give(write):
        for i in range(9):
            write(i)
            given.append(i)

    with Overlap() as overlap:
        giver = threading.Thread(target=give, args=[overlap.behind(consume, depth=2)])
        giver.start()
        for done in range(5):
            until(given.__len__, done + 3)  # one is taken, two wait
            may_write.release()
        may_write.release(9)
        giver.join()
    assert written == list(range(9))


def test_reading_and_writing_go_on_while_this_thread_does_not():
    """Both others must meet here before either goes on: alone each would wait for ever."""
    meeting = threading.Barrier(3, timeout=20)

    def read():
        meeting.wait()
        yield "frame"

    with Overlap() as overlap:
        frames = overlap.ahead(read())
        overlap.behind(lambda items: meeting.wait())
        meeting.wait()
        assert list(frames) == ["frame"]


def test_an_error_while_reading_comes_where_its_item_would():
    def broken():
        yield 1
        raise ValueError("damaged")

    before = threading.active_count()
    with Overlap() as overlap:
        items = overlap.ahead(broken(), depth=2)
        until(threading.active_count, before)  # it is known by now
        assert next(items) == 1
        with pytest.raises(ValueError, match="damaged"):
            next(items)


def test_an_error_while_reading_leaves_the_block():
    def broken():
        yield 1
        raise ValueError("damaged")

    def run():
        with Overlap() as overlap:
            list(overlap.ahead(broken()))

    with pytest.raises(ValueError, match="damaged"):
        run()


@pytest.mark.parametrize("at", [0, 5, 9])
def test_an_error_while_writing_ends_the_block(at):
    cleaned = []

    def consume(items):
        try:
            for i in items:
                if i == at:
                    raise OSError("disk full")
        finally:
            cleaned.append(True)

    def run():
        with Overlap() as overlap:
            write = overlap.behind(consume, depth=2)
            for i in range(10):
                write(i)

    with pytest.raises(OSError, match="disk full"):
        run()
    assert cleaned == [True]


def test_the_others_are_stopped_and_clean_up_after_an_error():
    """What waits is not written any more, and a `with` around the loop sees an error."""
    seen, entered = [], threading.Event()

    @contextmanager
    def file():
        try:
            yield
            seen.append("complete")
        except BaseException:
            seen.append("discarded")
            raise

    def consume(items):
        with file():
            for _ in items:
                entered.set()

    def endless():
        while True:
            yield 0

    def run():
        with Overlap() as overlap:
            write, zeros = overlap.behind(consume), overlap.ahead(endless())
            write(next(zeros))
            entered.wait(20)
            1 / next(zeros)

    with pytest.raises(ZeroDivisionError):
        run()
    assert seen == ["discarded"]


def test_an_iterator_that_is_left_early_ends_with_the_block():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    with Overlap() as overlap:
        next(overlap.ahead(endless()))
    assert closed == [True]


@pytest.mark.usefixtures("obeys_ctrl_c")
@pytest.mark.parametrize("where", ["reading", "writing", "ending"])
def test_ctrl_c_while_another_thread_is_waited_for(where):
    release = threading.Event()

    def interrupt():
        _thread.interrupt_main()
        time.sleep(0.05)
        release.set()

    def slow():
        interrupt()
        release.wait(20)
        yield 1

    def slow_consume(items):
        for _ in items:
            interrupt()
            release.wait(20)

    def run():
        with Overlap() as overlap:
            if where == "reading":
                list(overlap.ahead(slow()))
            write = overlap.behind(slow_consume, depth=1)
            for _ in range(1 if where == "ending" else 4):
                write(1)

    with pytest.raises(KeyboardInterrupt):
        run()


def test_waiting_is_told():
    log, release = [], threading.Event()

    @contextmanager
    def waiting():
        log.append("waits")
        yield
        log.append("goes on")

    def slow():
        release.wait(20)
        yield 1

    with Overlap(waiting) as overlap:
        items = overlap.ahead(slow())
        timer = threading.Timer(0.05, release.set)
        timer.start()
        assert next(items) == 1
        timer.join()
        assert log == ["waits", "goes on"]
