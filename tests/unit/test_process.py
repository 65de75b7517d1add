import subprocess
import sys

from trainyard import process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_process_is_recognised_and_ended() -> None:
    with subprocess.Popen(SLEEP) as child:
        record = process.record(child.pid, "sleeper")
        assert process.is_alive(record)
        assert process.stop(record)
        assert not process.is_alive(record)


def test_another_process_with_the_same_id_is_left_alone() -> None:
    with subprocess.Popen(SLEEP) as child:
        stranger = process.record(child.pid).model_copy(update={"started": 1.0})
        assert not process.stop(stranger)
        assert child.poll() is None
        child.kill()


def test_a_child_dies_with_a_killed_parent() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from trainyard.process import die_with_parent\n"
        f"child = subprocess.Popen({SLEEP!r}, preexec_fn=die_with_parent)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        grandchild = process.record(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        for _ in range(100):
            if not process.is_alive(grandchild):
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert not process.is_alive(grandchild)


def test_a_taken_port_is_seen() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert process.port_in_use(taken.getsockname()[1])
    assert not process.port_in_use(process.free_port())
