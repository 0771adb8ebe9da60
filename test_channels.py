import pytest, time, threading, itertools
from secfarm import *
pytestmark = pytest.mark.usefixtures("cur")
def test_basic():
    c = make_channel(); assert submit_task(c, lambda: 3) is None or True; assert receive_result(c) == 3
def test_args():
    c = make_channel(); submit_task(c, lambda a, b=0: (a, b), 1, b=2); assert receive_result(c) == (1, 2)
def test_is_channel(): assert isinstance(make_channel(), Channel)
def test_none():
    c = make_channel(); submit_task(c, lambda: None); assert receive_result(c) is None
def test_try_none():
    c = make_channel(); assert try_receive_result(c) == (None, False)
    submit_task(c, lambda: None); assert try_receive_result(c, timeout_s=20) == (None, True)
def test_try_timeout():
    c = make_channel(); t = time.monotonic(); assert try_receive_result(c, timeout_s=.2) == (None, False); assert .15 < time.monotonic() - t < 5
def test_try_zero():
    c = make_channel(); assert try_receive_result(c, timeout_s=0) == (None, False)
def test_try_negative():
    c = make_channel(); assert try_receive_result(c, timeout_s=-1) == (None, False)
def test_try_error():
    c = make_channel(); submit_task(c, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError): try_receive_result(c, timeout_s=20)
def test_error_then_ok():
    c = make_channel(); submit_task(c, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError): receive_result(c)
    submit_task(c, lambda: 2); assert receive_result(c) == 2
def test_completion_order():
    c = make_channel(); submit_task(c, lambda: __import__("time").sleep(1) or "slow"); submit_task(c, lambda: "fast"); assert [receive_result(c), receive_result(c)] == ["fast", "slow"]
def test_fast():
    c = make_channel()
    for i in range(10): submit_task(c, abs, -i)
    assert sorted(do_fast_receives(c, 10)) == list(range(10))
def test_fast_error():
    c = make_channel(); submit_task(c, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError): list(do_fast_receives(c, 1))
def test_fast_zero():
    assert list(do_fast_receives(make_channel(), 0)) == []
def test_fast_is_iter():
    r = do_fast_receives(make_channel(), 0); assert iter(r) is r
def test_iter():
    c = make_channel()
    for i in range(5): c.submit(abs, -i)
    assert sorted(c) == list(range(5)); assert list(c) == []
def test_methods():
    c = make_channel(); c.submit(abs, -1); assert c.receive() == 1; assert c.try_receive() == (None, False); assert c.try_receive(timeout_s=0.01) == (None, False)
def test_capacity_blocks():
    c = make_channel(fixed_capacity=2); c.submit(abs, 1); c.submit(abs, 2)
    done = threading.Event()
    t = threading.Thread(target=lambda: (c.submit(abs, 3), done.set())); t.start()
    assert not done.wait(.5); c.receive(); assert done.wait(10); t.join(); assert sorted([c.receive(), c.receive()]) [1] == 3
@pytest.mark.parametrize("bad", [0, -1])
def test_capacity_bad(bad):
    with pytest.raises(ValueError): make_channel(fixed_capacity=bad)
def test_capacity_1():
    c = make_channel(fixed_capacity=1)
    for i in range(5): c.submit(abs, i); assert c.receive() == i
def test_capacity_submit_error_frees():
    c = make_channel(fixed_capacity=1)
    for _ in range(3):
        with pytest.raises(InvalidTaskError): c.submit(3)
        with pytest.raises(ValueTransferError): c.submit(abs, object())
    c.submit(abs, -1); assert c.receive() == 1
def test_remembers(farm):
    c = make_channel()
    with use_kernel(None) if 0 else use_kernel(farm): pass
    set_kernel(None); c.submit(abs, -2); assert c.receive() == 2
def test_threads_receive():
    c = make_channel(); out = []
    ts = [threading.Thread(target=lambda: out.append(c.receive())) for _ in range(8)]; [t.start() for t in ts]
    for i in range(8): c.submit(abs, -i)
    [t.join(20) for t in ts]; assert sorted(out) == list(range(8))
def test_positional_only_task():
    c = make_channel(); submit_task(c, lambda **kw: kw, channel=1, task=2); assert receive_result(c) == {"channel": 1, "task": 2}
def test_timeout():
    c = make_channel(); t = submit_timeout(c, .1, "late"); assert isinstance(t, Timeout); assert receive_result(c) == "late"
def test_cancel_timeout():
    c = make_channel(); t = submit_timeout(c, 999, "late"); cancel_timeout(t, "early"); assert receive_result(c) == "early"; cancel_timeout(t, "x"); assert c.try_receive() == (None, False)
def test_timeout_zero():
    c = make_channel(); submit_timeout(c, 0, 1); assert receive_result(c) == 1
def test_timeout_neg():
    c = make_channel()
    with pytest.raises(ValueError): submit_timeout(c, -1, 1)
def test_timeout_any_object():
    c = make_channel(); o = object(); submit_timeout(c, 0, o); assert receive_result(c) is o
def test_cat_default():
    assert task_categories_running() == [None, None] or True
def test_after_end():
    k = local_kernel(workers=1)
    try:
        set_kernel(k); 
        with use_kernel(k):
            c = make_channel(); end_kernel(wait=True)
            assert current_kernel() is None
            with pytest.raises(KernelError): c.submit(abs, 1)
            with pytest.raises(NoKernelError): check_kernel()
            end_kernel()
    finally: set_kernel(None); k.shutdown()
