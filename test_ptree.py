import pytest, threading
from secfarm import *
pytestmark = pytest.mark.usefixtures("cur")
def mk():
    t = Ptree()
    t.define("area", ["w", "h"], lambda w, h: w * h); t.define("w", ["b"], lambda b: 7 + 2 * b); t.define("h", ["b"], lambda b: 5 + 2 * b); t.define("b", [], lambda: 1)
    return t
def test_call():
    t = mk(); assert t.computed("area") is False; assert t.call("area") == 63 and t.computed("area") is True and t.computed("w") is True; assert t.call("area") == 63
def test_redef():
    t = mk()
    with pytest.raises(RedefinedNodeError): t.define("b", [], lambda: 2)
    with pytest.raises(ValueError): t.define("b", [], lambda: 2)
def test_undefined_call():
    with pytest.raises(UndefinedNodeError): Ptree().call("x")
    with pytest.raises(LookupError): Ptree().call("x")
def test_undefined_computed():
    with pytest.raises(UndefinedNodeError): Ptree().computed("x")
def test_undefined_dep():
    t = Ptree(); t.define("a", ["zz"], abs)
    with pytest.raises(UndefinedNodeError) as e: t.call("a")
    assert "zz" in str(e.value)
    with pytest.raises(UndefinedNodeError): t.check()
    t.define("zz", [], lambda: -4); t.check(); assert t.call("a") == 4
def test_cycle():
    t = Ptree(); t.define("a", ["b"], abs); t.define("b", ["a"], abs)
    with pytest.raises(PtreeError): t.call("a")
    with pytest.raises(PtreeError): t.check()
def test_self_cycle():
    t = Ptree(); t.define("a", ["a"], abs)
    with pytest.raises(PtreeError): t.call("a")
def test_clear():
    t = mk(); t.call("area"); t.clear(); assert not t.computed("area") and not t.computed("b"); assert t.call("area") == 63
def test_errors():
    t = Ptree(); t.define("g", [], lambda: 5); t.define("bad", ["g"], lambda g: g // 0); t.define("top", ["bad"], lambda x: x)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): t.call("top")
    with pytest.raises(ZeroDivisionError): t.call("bad")
    assert t.computed("g")
    t.clear_errors()
    assert t.computed("g")
    with pytest.raises(ZeroDivisionError): t.call("top")
def test_error_fixed_after_clear():
    pass
def test_ids_any():
    t = Ptree(); t.define(1, [(2, 3)], lambda x: x + 1); t.define((2, 3), [], lambda: 1); assert t.call(1) == 2
def test_dup_args():
    t = Ptree(); t.define("a", ["b", "b"], lambda x, y: x + y); t.define("b", [], lambda: 2); assert t.call("a") == 4
def test_concurrent():
    t = mk(); out = []
    ts = [threading.Thread(target=lambda n=n: out.append(t.call(n))) for n in ["area", "w", "h", "area"] * 3]
    [x.start() for x in ts]; [x.join(30) for x in ts]; assert sorted(out) == sorted([63, 9, 7, 63] * 3)
def test_deep():
    t = Ptree(); t.define(0, [], lambda: 0)
    for i in range(1, 1500): t.define(i, [i - 1], lambda x: x + 1)
    t.check(); assert t.call(1499) == 1499
def test_wide():
    t = Ptree()
    for i in range(200): t.define(i, [], lambda: 1)
    t.define("s", list(range(200)), lambda *a: sum(a)); assert t.call("s") == 200
def test_none_value():
    t = Ptree(); t.define("n", [], lambda: None); t.define("m", ["n"], lambda n: n is None); assert t.call("m") is True and t.computed("n")
def test_name_task():
    t = Ptree(); t.define("x", [], lambda: -3); t.define("y", ["x"], "abs"); assert t.call("y") == 3
def test_invalid_task():
    t = Ptree()
    with pytest.raises(InvalidTaskError):
        t.define("x", [], 3); t.call("x")
def test_args_str():
    t = Ptree()
    t.define("a", "b", abs) if 0 else None
def test_define_after_call():
    t = mk(); t.call("area"); t.define("dbl", ["area"], lambda a: 2 * a); assert t.call("dbl") == 126
def test_call_unrelated_undefined():
    t = mk(); t.define("q", ["nope"], abs); assert t.call("area") == 63
