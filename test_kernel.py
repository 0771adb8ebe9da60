import pytest, time, threading, asyncio, os, concurrent.futures as cf, signal, math
from secfarm import *
def test_malformed():
    for bad in ("", "a:b", "host:99999", "host:-1", "[::1", "::1", ":7419", "unix:", "host:0", ("h", 99999), ("h", "x"), "a b:1", "host:", "tcp://x", "h:1:2", " ", "unix:rel" ):
        try: Kernel([bad] if not isinstance(bad, tuple) else [bad], connect_timeout_s=.3)
        except ValueError: continue
        except Exception as e: print("DEV", repr(bad), type(e), e); continue
        raise AssertionError(bad)
@pytest.mark.parametrize("bad", ["", "a:b", "host:99999", "host:-1", "[::1", "::1", ":7419", "unix:", "host:0", "a b:1", "h:1:2", " ", "host:"])
def test_malformed_each(bad, servers):
    with pytest.raises(ValueError): Kernel([bad], auth=servers.auth, connect_timeout_s=.3)
def test_ok_not_answering(servers):
    t = time.monotonic()
    with pytest.raises(KernelCreationError): Kernel("127.0.0.1:1", auth=servers.auth, connect_timeout_s=.5)
    assert time.monotonic() - t < 5
@pytest.mark.parametrize("bad", [math.nan, -1, -0.5])
def test_bad_timeout(bad, servers):
    with pytest.raises(ValueError): Kernel("127.0.0.1:1", auth=servers.auth, connect_timeout_s=bad)
def test_delivery(servers):
    with pytest.raises(ValueError): Kernel(servers.addresses, auth=servers.auth, delivery="x")
def test_refused(servers):
    with start_local_servers(["127.0.0.1:0"], workers=1) as other:
        with pytest.raises(KernelCreationError) as e: Kernel(servers.addresses, auth=other.auth)
        assert e.value.__cause__ is not None, e.value
        print(repr(e.value.__cause__))
        assert isinstance(e.value.__cause__, AuthError) or isinstance(e.value.__cause__, SecfarmError)
def test_make_kernel_not_current(servers):
    k = make_kernel(servers.addresses, auth=servers.auth, name="bob")
    try:
        assert current_kernel() is None and k.name == "bob" and k.worker_count == 2
        set_kernel(k); assert kernel_name() == "bob" and kernel_worker_count() == 2 and check_kernel() is k
        out = []; t = threading.Thread(target=lambda: out.append(current_kernel())); t.start(); t.join(); assert out == [k]
        with use_kernel(None): assert current_kernel() is None
        end_kernel(); assert current_kernel() is None
        with pytest.raises(RuntimeError): k.submit(abs, 1)
    finally: set_kernel(None); k.shutdown()
def test_with(servers):
    with Kernel(servers.addresses, auth=servers.auth) as k:
        assert current_kernel() is k
        out = []; t = threading.Thread(target=lambda: out.append(current_kernel())); t.start(); t.join(); assert out == [k]
    assert current_kernel() is None
    with pytest.raises(RuntimeError): k.submit(abs, 1)
    with pytest.raises(KernelError): k.submit(abs, 1)
def test_with_nested(servers):
    with Kernel(servers.addresses, auth=servers.auth, name="a") as a:
        with Kernel(servers.addresses, auth=servers.auth, name="b") as b: assert kernel_name() == "b"
        assert current_kernel() is a
        with use_kernel(b): assert current_kernel() in (b, None)
def test_end_in_use(servers):
    k = make_kernel(servers.addresses, auth=servers.auth)
    with use_kernel(k):
        f = k.submit(abs, -1); end_kernel(wait=True); assert f.result() == 1; assert current_kernel() is None; end_kernel(wait=True)
        with pytest.raises(NoKernelError): pmapcar(abs, [1])
def test_asyncio_context(servers, farm):
    async def main():
        async def a():
            with use_kernel(farm): await asyncio.sleep(.01); return current_kernel()
        async def b(): await asyncio.sleep(.005); return current_kernel()
        return await asyncio.gather(a(), b())
    assert asyncio.run(main()) == [farm, None]
def test_workers(farm):
    w = farm.workers(); assert len(w) == 2
    for r in w: assert r.server and r.address and r.python_version and hasattr(r, "category")
def test_map(farm):
    assert list(farm.map(pow, [1, 2, 3], [2, 2])) == [1, 4]
    assert list(farm.map(abs, [-1, -2, -3], chunksize=2)) == [1, 2, 3]
    with pytest.raises(ValueError): farm.map(abs, [1], chunksize=0)
    it = farm.map(lambda x: 1 // x, [1, 0, 1]); assert next(it) == 1
    with pytest.raises(ZeroDivisionError): next(it)
    with pytest.raises(StopIteration): next(it)
def test_map_timeout(farm):
    it = farm.map(lambda x: __import__("time").sleep(x) or x, [0, 30], timeout=1.5)
    assert next(it) == 0
    with pytest.raises(TimeoutError): next(it)
def test_map_chunk_err(farm):
    it = farm.map(lambda x: 1 // x, [1, 1, 0, 1], chunksize=4); assert [next(it), next(it)] == [1, 1]
    with pytest.raises(ZeroDivisionError): next(it)
def test_wait(farm):
    fs = [farm.submit(abs, -i) for i in range(5)]
    d, n = cf.wait(fs, timeout=20); assert len(d) == 5 and not n
    assert sorted(f.result() for f in cf.as_completed(fs)) == list(range(5))
def test_cancel_running(farm):
    f = farm.submit(lambda: __import__("time").sleep(60)); time.sleep(.5)
    assert f.cancel() is True and f.cancelled() and f.done()
    with pytest.raises(cf.CancelledError): f.result()
    assert not f.running()
def test_cancel_done(farm):
    f = farm.submit(abs, 1); f.result(); assert f.cancel() is False
def test_running(farm):
    fs = [farm.submit(lambda: __import__("time").sleep(60)) for _ in range(6)]
    time.sleep(1); r = [f.running() for f in fs]
    for f in fs: f.cancel()
    assert r == [True, True] + [False] * 4
def test_callback(farm):
    e = threading.Event(); out = []
    f = farm.submit(abs, -3); f.add_done_callback(lambda x: (out.append(x.result()), e.set())); assert e.wait(10) and out == [3]
def test_run(farm):
    assert farm.run(abs, -1) == 1
    with pytest.raises(TaskTimeoutError) as e: farm.run(lambda: __import__("time").sleep(60), timeout_s=.5)
    assert isinstance(e.value, TimeoutError)
def test_timeout_c(farm):
    t = time.monotonic()
    with pytest.raises(TimeoutError): farm.run(lambda: __import__("re").match(r"(a+)+$", "a" * 60 + "b"), timeout_s=1)
    assert time.monotonic() - t < 15
def test_memory(farm):
    with pytest.raises(ResourceExceededError) as e: farm.options(memory_bytes=50_000_000).run(lambda: len(bytearray(500_000_000)))
    assert e.value.kind == "memory" and e.value.limit
def test_signal(farm):
    with pytest.raises(WorkerLostError) as e: farm.run(lambda: __import__("os").kill(__import__("os").getpid(), 9))
    assert e.value.signal == 9
def test_exit(farm):
    with pytest.raises(SecfarmError) as e: farm.run(lambda: __import__("os")._exit(3))
    assert isinstance(e.value, WorkerLostError); print(e.value, e.value.signal)
def test_output(farm):
    got = []
    f = farm.options(on_output=lambda s, t: got.append((s, t))).submit(lambda: print("hi")); f.result()
    assert ("stdout", "hi\n") in got and f.output == "hi\n"
    f = farm.submit(lambda: print("x")); f.result(); assert f.output == "x\n"
def test_logging_output(farm):
    f = farm.submit(lambda: __import__("logging").warning("lg")); f.result(); assert "lg" in f.output
def test_stderr_output(farm):
    got = []
    farm.options(on_output=lambda s, t: got.append((s, t))).submit(lambda: print("hi", file=__import__("sys").stderr)).result(); assert ("stderr", "hi\n") in got
def test_ids(farm):
    a, b = farm.submit(abs, 1), farm.submit(abs, 1); assert isinstance(a.task_id, str) and a.task_id != b.task_id
def test_receipt(farm):
    f = farm.submit(abs, 1); f.result(); assert f.receipt is not None
def test_wrapfuture(farm):
    async def m(): return await asyncio.wrap_future(farm.submit(abs, -9))
    assert asyncio.run(m()) == 9
def test_value_transfer(farm):
    with pytest.raises(ValueTransferError): farm.submit(abs, object())
    with pytest.raises(TypeError): farm.submit(abs, lambda: 1)
def test_result_transfer(farm):
    with pytest.raises(ValueTransferError): farm.run(lambda: object())
    with pytest.raises(SecfarmError): farm.run(lambda: (lambda: 1))
def test_missing(farm):
    @deftask
    def t():
        import nope_a, nope_b
        return 1
    with pytest.raises(MissingModulesError) as e: t.submit if 0 else farm.run(t)
    assert "nope_a" in str(e.value) and "nope_b" in str(e.value)
def test_nameerror(farm):
    with pytest.raises(TaskExecutionError): farm.run("nosuchname")
    with pytest.raises(TaskExecutionError): farm.run("operator.nosuch")
def test_categories(farm):
    with use_kernel(farm):
        with task_category("blah"): fs = [future(lambda: __import__("time").sleep(60)) for _ in range(4)]
        for _ in range(100):
            if task_categories_running().count("blah") == 2: break
            time.sleep(.05)
        assert task_categories_running() == ["blah", "blah"] == farm.categories_running()
        assert kill_tasks("other") == 0 and kill_tasks("blah", dry_run=True) == 2
        assert not any(f.done() for f in fs)
        assert kill_tasks("blah") == 2
        for _ in range(100):
            if sum(f.done() for f in fs) == 2: break
            time.sleep(.05)
        assert sum(f.done() for f in fs) == 2
        for f in fs:
            if f.done():
                with pytest.raises(TaskKilledError): f.result()
        for _ in range(100):
            if task_categories_running().count("blah") == 2: break
            time.sleep(.05)
        assert farm.kill("blah") == 2
        f = future(lambda: __import__("time").sleep(60))
        for _ in range(100):
            if "default" in task_categories_running(): break
            time.sleep(.05)
        assert kill_tasks("default") == 1
        assert f.exception(20)
        assert len(task_categories_running()) == 2
def test_bad_category(farm):
    for bad in (None, 3):
        with pytest.raises(TypeError):
            with task_category(bad): pass
    with pytest.raises(ValueError):
        with task_priority("high"): pass
    with pytest.raises((ValueError)): farm.options(priority="x")
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError): farm.options(timeout_s=bad)
        with pytest.raises(ValueError): farm.run(abs, 1, timeout_s=bad)
    with pytest.raises(ValueError): farm.options(memory_bytes=0)
def test_broadcast(farm):
    with use_kernel(farm):
        @deftask
        def setup(n):
            global STATE
            STATE = n
            return n + 1
        assert broadcast_task(setup, 5) == [6, 6] == farm.broadcast(setup, 5)
        got = {farm.run(lambda: STATE) for _ in range(6)}; assert got == {5}
        with pytest.raises(WorkerLostError): farm.run(lambda: __import__("os").kill(__import__("os").getpid(), 9))
        assert [farm.run(lambda: STATE) for _ in range(6)] == [5] * 6
        @deftask
        def w():
            global OTHER
            OTHER = 1
        farm.run(w)
        with pytest.raises(NameError): farm.run(lambda: OTHER)
    with local_kernel(workers=1) as other:
        with pytest.raises(NameError): other.run(lambda: STATE)
def test_broadcast_captured_wins(farm):
    @deftask
    def setup():
        global V
        V = "broadcast"
    farm.broadcast(setup)
    assert farm.run(lambda: V) == "mine"
V = "mine"
def test_broadcast_error(farm):
    with pytest.raises(ZeroDivisionError): farm.broadcast(lambda: 1 // 0)
def test_priority():
    with local_kernel(workers=1) as k:
        blocker = k.submit(lambda: __import__("time").sleep(1.5)); order = []
        lock = threading.Lock()
        time.sleep(.3)
        def note(n): return lambda f: order.append(n)
        for i in range(3):
            with task_priority("low"): future(lambda: 1).add_done_callback(note(("low", i)))
        for i in range(3): future(lambda: 1).add_done_callback(note(("def", i)))
        for _ in range(200):
            if len(order) == 6: break
            time.sleep(.05)
        assert order == [("def", 0), ("def", 1), ("def", 2), ("low", 0), ("low", 1), ("low", 2)]
def test_ping(servers):
    for a in servers.addresses: assert ping(a, auth=servers.auth) is True and ping(a, timeout_s=None, auth=servers.auth) is True
    t = time.monotonic(); assert ping("127.0.0.1:1", timeout_s=.3, auth=servers.auth) is False; assert time.monotonic() - t < 3
    assert ping("127.0.0.1:1", timeout_s=0, auth=servers.auth) is False
def test_end_server():
    with start_local_servers(["127.0.0.1:0"], workers=1) as s:
        k = Kernel(s.addresses, auth=s.auth)
        f = k.submit(lambda: __import__("time").sleep(1) or 5)
        end_server(s.addresses[0], auth=s.auth)
        assert ping(s.addresses[0], timeout_s=.5, auth=s.auth) is False
        assert f.result(20) == 5 and k.run(abs, -2) == 2
        k.shutdown()
def test_shutdown_cancel():
    with local_kernel(workers=1) as k:
        fs = [k.submit(lambda: __import__("time").sleep(.5)) for _ in range(4)]
        time.sleep(.3)
        k.shutdown(wait=True, cancel_futures=True)
        assert fs[0].result() is None and all(f.cancelled() for f in fs[2:])
        k.shutdown(); 
        with pytest.raises(RuntimeError): k.submit(abs, 1)
        with pytest.raises(RuntimeError): k.map(abs, [1])
def test_at_most_once():
    with start_local_servers(["127.0.0.1:0"], workers=1) as s:
        k = Kernel(s.addresses, auth=s.auth, delivery="at-most-once")
        assert k.run(abs, -1) == 1
        f = k.submit(lambda: __import__("time").sleep(60)); time.sleep(.5)
        s.close() if hasattr(s, "close") else None
        with pytest.raises(ConnectionLostError): f.result(20)
        k.shutdown(wait=False)
def test_deftask_opts(farm):
    with use_kernel(farm):
        @deftask(timeout_s=.5, category="etl", priority="low", name="nap")
        def t(): 
            import time
            time.sleep(60)
        assert t.name == "nap"
        with pytest.raises(TaskTimeoutError): t.submit().result()
        m = task_from_source("def mul(x, y): return x * y"); assert m.submit(3, 4).result() == 12 and m.name == "mul"
        @deftask
        def add(x, y): return x + y
        assert add(3, 4) == 7 and add.submit(3, 4).result() == 7 and len(add.digest) in (64, 71) and "def add" in add.source
def test_names(farm):
    assert farm.run("operator:add", 1, 2) == 3 and farm.run("len", [1]) == 1 and farm.run(math.hypot, 3, 4) == 5.0 and farm.run(len, []) == 0
def test_repr(farm):
    assert "workers" in repr(farm); f = farm.submit(abs, 1); f.result(); assert "finished" in repr(f); f._repr_html_(); farm._repr_html_()
def test_aio(servers):
    from secfarm import aio
    async def m():
        async with aio.Kernel(servers.addresses, auth=servers.auth) as k:
            assert await k.submit(abs, -1) == 1
            assert [x async for x in k.map(abs, [-1, -2])] == [1, 2]
            with pytest.raises(ZeroDivisionError): await k.run(lambda: 1 // 0)
            t = asyncio.create_task(k.run(lambda: __import__("time").sleep(60))); await asyncio.sleep(.4); t.cancel()
            with pytest.raises(asyncio.CancelledError): await t
            return sorted([x async for x in aio.as_completed([k.kernel.submit(abs, i) for i in range(3)])])
    assert asyncio.run(m()) == [0, 1, 2]
def test_progress(farm):
    got = []
    @deftask
    def t():
        import secfarm
        secfarm.progress(1, 2, "m"); return 1
    f = farm.options(on_progress=lambda *a: got.append(a)).submit(t); assert f.result() == 1 and got == [(1, 2, "m")]
    progress(1, 2, "outside")
def test_local_servers_attrs(servers):
    assert len(servers.addresses) == 2 and servers.auth
def test_refused_code():
    import inspect
    e = TaskRefusedError
    assert "code" in dir(e)
def test_fork_of_kernel_args(farm):
    with pytest.raises(TypeError): farm.submit()
    with pytest.raises(TypeError): Kernel("127.0.0.1:1", None, None)
def test_kwargs_named_task(farm):
    assert farm.run(lambda **k: k, task=1, self=2) == {"task": 1, "self": 2}
    assert farm.submit(lambda **k: k, task=1, self=2, fn=3).result() == {"task": 1, "self": 2, "fn": 3}
def test_options_nest(farm):
    v = farm.options(category="a").options(timeout_s=.4)
    with pytest.raises(TaskTimeoutError): v.run(lambda: __import__("time").sleep(60))
    assert v.run(abs, -1) == 1 and list(v.map(abs, [-1])) == [1] if hasattr(v, "map") else True
    c = v.channel() if hasattr(v, "channel") else farm.channel()
    c.submit(abs, -1); assert c.receive() == 1
def test_options_run_timeout_override(farm):
    assert farm.options(timeout_s=.01).run(abs, -1, timeout_s=20) == 1
