"""Keys, limits, queues and templates: the front with an engine that only pretends."""

import asyncio
import base64
import json
import time

import pytest
from fake_engine import fake_app
from starlette.testclient import TestClient

from octavo.base.errors import BadValue, RequestError, UsageError
from octavo.serve.exchange import Exchange
from octavo.serve.words import Words, open_words

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = "/v1/completions"


def test_every_route_but_health_needs_a_key():
    app, desk, _ = fake_app(api_keys=("first-key", "second-key"))
    with TestClient(app) as client:
        paths = app.openapi()["paths"]
        routes = [(path.replace("{name}", "a"), method) for path, known in paths.items() for method in known]
        routes += [("/", "get"), ("/static/app.js", "get"), ("/openapi.json", "get")]
        assert len(routes) > 12
        for path, method in routes:
            reply = client.request(method.upper(), path)
            assert reply.status_code == (200 if path == "/health" else 401), path
        assert client.get("/nowhere").status_code == 401
        for given in ("Bearer first-key", "bearer second-key", "Basic " + base64.b64encode(b"x:first-key").decode()):
            assert client.get("/v1/models", headers={"Authorization": given}).status_code == 200, given
        for given in ("Bearer first-ke", "Bearer first-keyy", "first-key", "Basic first-key", "Bearer ", "Bearer \xe9"):
            reply = client.get("/v1/models", headers={"Authorization": given.encode("latin-1")})
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
            assert "Basic" in reply.headers["WWW-Authenticate"]
    assert "first-key" not in repr(desk.options)


def test_pages_of_other_origins_may_ask_if_they_are_allowed():
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    app, _, _ = fake_app(api_keys=("a-key",), allowed_origins=("https://chat.example",))
    with TestClient(app) as client:
        before = client.options(TEXT, headers=asked)  # a browser sends no key with it
        assert before.status_code == 200 and "authorization" in before.headers["access-control-allow-headers"]
        key = {"Authorization": "Bearer a-key", "Origin": "https://chat.example"}
        reply = client.post(TEXT, json={"prompt": "a"}, headers=key)
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == "https://chat.example"
        reply = client.post(TEXT, json={"prompt": "a"}, headers={"Origin": "https://chat.example"})
        assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == "https://chat.example"
        other = client.options(TEXT, headers={**asked, "Origin": "https://other.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    app, _, _ = fake_app()
    with TestClient(app) as client:
        assert "access-control-allow-origin" not in client.options(TEXT, headers=asked).headers
    for wrong in ("chat.example", "https://chat.example/path", ""):
        with pytest.raises(BadValue, match="no origin"):
            fake_app(allowed_origins=(wrong,))


def test_keys_can_have_prefixes_of_their_own():
    def salts(**options: bool) -> list[str]:
        app, _, link = fake_app(api_keys=("one", "two"), **options)
        with TestClient(app) as client:
            for key, more in (("one", {}), ("two", {}), ("two", {"cache_salt": "a"}), ("one", {"cache_salt": "a"})):
                reply = client.post(TEXT, json={"prompt": "a", **more}, headers={"Authorization": f"Bearer {key}"})
                assert reply.status_code == 200
            basic = "Basic " + base64.b64encode(b"x:two").decode()
            client.post(TEXT, json={"prompt": "a"}, headers={"Authorization": basic})
        return link.salts

    assert salts() == ["", "", "a", "a", ""]
    first, second, *salted, by_basic = salts(prefix_cache_per_key=True)
    assert len({first, second, *salted}) == 4 and by_basic == second
    with pytest.raises(BadValue, match="no API keys"):
        fake_app(prefix_cache_per_key=True)


@pytest.mark.parametrize(
    ("more", "status"),
    [({"guided_json": {"type": "object"}}, 400), ({"regex": "a"}, 400), ({"truncate_prompt_tokens": 5}, 400),
     ({"use_beam_search": True}, 400), ({"use_beam_search": False, "guided_json": None, "grammar": None}, 200),
     ({"best_of": 1, "suffix": None, "logprobs": None}, 200), ({"top_k": -1, "priority": 0}, 200)],
)  # fmt: skip
def test_fields_of_other_servers(more: dict, status: int):
    app, _, _ = fake_app()
    with TestClient(app) as client:
        reply = client.post(TEXT, json={"prompt": "a", **more})
        assert reply.status_code == status
        if status == 400:
            assert next(iter(more)) in reply.json()["error"]["message"]
            assert "use " in reply.json()["error"]["message"]


def test_long_bodies_are_refused_however_they_come():
    app, _, _ = fake_app(max_body_bytes=2000)
    with TestClient(app) as client:
        assert client.post(TEXT, json={"prompt": "a" * 3000}).status_code == 413
        pieces = (b'{"prompt": "' + b"a" * 500 for _ in range(10))
        assert client.post(TEXT, content=pieces, headers={"Content-Type": "application/json"}).status_code == 413
        assert client.post(TEXT, json={"prompt": "a"}).status_code == 200


def test_a_full_queue_says_so_at_once():
    import threading

    app, _, link = fake_app(holds=True, max_num_queued_reqs=2)
    with TestClient(app) as client:
        assert client.post(TEXT, json={"prompt": ["a"] * 11}).status_code == 400, "it could never be taken"
        threads = [
            threading.Thread(target=lambda: client.post(TEXT, json={"prompt": "a"}), daemon=True) for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        while link.open_requests < 10:
            time.sleep(0.01)
        begin = time.perf_counter()
        reply = client.post(TEXT, json={"prompt": "a"})
        taken = time.perf_counter() - begin
        client.portal.call(link.fail_all, "enough")  # before anything is asserted: the client waits for its requests
        for thread in threads:
            thread.join(5)
        assert reply.status_code == 429 and int(reply.headers["Retry-After"]) >= 1
        assert taken < 0.1 and reply.json()["error"]["type"] == "rate_limit_error"
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("body", [{"prompt": ["a"] * 30}, {"prompt": "a", "n": 30}, {"prompt": ["a", "b"], "n": 15}])
def test_a_request_for_many_answers_leaves_places_to_others(body: dict):
    import threading

    app, _, link = fake_app(holds=True)
    most = 0

    def answer_all() -> None:  # in the event loop, as long as something is open
        nonlocal most
        most = max(most, len(link._homes))
        for request_id in list(link._homes):
            link._answer(request_id, {}, [1])

    with TestClient(app) as client:
        got: list = []
        many = threading.Thread(target=lambda: got.append(client.post(TEXT, json=body)), daemon=True)
        many.start()
        while not link.open_requests or (len(body["prompt"]) == 30 and link.taken < 7):
            time.sleep(0.01)
        assert link.open_requests == 30 and link.taken <= 7, "one place of eight is left"
        before = link.taken
        beside = threading.Thread(target=lambda: client.post(TEXT, json={"prompt": "a"}), daemon=True)
        beside.start()
        while link.taken == before:
            time.sleep(0.01)
        while many.is_alive() or beside.is_alive():
            client.portal.call(answer_all)
        assert link.taken == 31 and link.open_requests == 0 and most <= 8
        choices = got[0].json()["choices"]
        assert [one["index"] for one in choices] == list(range(30))
        assert all(one["text"] == " a b c" for one in choices)


def test_a_request_for_many_long_prompts_lets_others_be_read_soon():
    import threading

    app, _, link = fake_app(holds=True)  # a step reads 1024 tokens
    with TestClient(app) as client:
        body = {"prompt": [[1] * 500] * 20}
        many = threading.Thread(target=lambda: client.post(TEXT, json=body), daemon=True)
        many.start()
        while link.taken < 4:
            time.sleep(0.01)
        time.sleep(0.05)
        assert link.taken == 4 and link.open_requests == 20, "two steps' worth"
        client.portal.call(link.fail_all, "enough")
        many.join(5)
        assert link.open_requests == 0


def test_while_there_is_no_engine():
    app, desk, link = fake_app()
    with TestClient(app) as client:
        link.state = "restarting"
        for path in ("/health", "/v1/models"):
            assert client.get(path).status_code == 503
        reply = client.post(TEXT, json={"prompt": "a"})
        assert reply.status_code == 503 and "Retry-After" in reply.headers
        assert client.get("/live").json()["state"] == "restarting"
        link.state, desk.draining = "ready", True
        assert client.get("/health").status_code == 503 and client.get("/live").json()["state"] == "stopping"


HOSTILE_TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{% set x = 'a' * 10**9 %}{{ x ~ x }}",
    "doubling": "{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{%set n.x = n.x ~ n.x %}{% endfor %}{{n.x}}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "broken": "{% if",
}


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_hostile_templates_end_with_an_error(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("octavo.serve.words._RENDER_SECONDS", 1.0)
    template = HOSTILE_TEMPLATES[name]

    async def render() -> float:
        words = open_words("smollm2", None, template)
        good = Words(words.tokenizer.with_chat_template("{{ messages[0].content }}"))
        good._worker = words._worker
        begin = time.monotonic()
        try:
            with pytest.raises(RequestError):
                await words.render([{"role": "user", "content": "a"}], {})
            taken = time.monotonic() - begin
            assert await good.render([{"role": "user", "content": "still here"}], {}) == "still here"
        finally:
            await words.close()
        return taken

    assert asyncio.run(render()) < 4


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_that_is_not_said_to_be_json(kind: str | None):
    headers = {} if kind is None else {"Content-Type": kind}
    with TestClient(fake_app()[0]) as client:
        reply = client.post(TEXT, content=b'{"prompt": "a"}', headers=headers)
        assert reply.status_code == 415 and "application/json" in reply.json()["error"]["message"]
        reply = client.post(TEXT, content=b"[]", headers={"Content-Type": "application/json"})
        assert reply.status_code == 400
        reply = client.post(
            TEXT, content=b"x", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
        )
        assert reply.status_code == 415 and "gzip" in reply.json()["error"]["message"]


def test_head_is_answered_as_get_and_an_unknown_route_is_named():
    with TestClient(fake_app()[0]) as client:
        for path in ("/health", "/v1/models", "/", "/metrics"):
            assert client.head(path).status_code == 200, path
        assert client.head(TEXT).status_code == 405 and client.head("/nowhere").status_code == 404
        reply = client.post("/v1/responses", json={"input": "a"})
        assert reply.status_code == 404 and "POST /v1/responses" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [(TEXT, {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})],
)
@pytest.mark.parametrize("always", [False, True])
def test_usage_in_every_event_of_a_stream(path: str, body: dict, always: bool):
    options = {"include_usage": True, "continuous_usage_stats": always}
    with TestClient(fake_app()[0]) as client:
        text = client.post(path, json={**body, "stream": True, "stream_options": options}).text
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert told[-1]["choices"] == [] and told[-1]["usage"]["completion_tokens"] == 3
    assert all(
        (one["usage"] is not None) == always for one in told if one["choices"] and "delta" not in one["choices"][0]
    )
    assert (told[-2]["usage"] is not None) == always


def test_answers_that_do_not_end_are_counted():
    import threading

    app, desk, link = fake_app(holds=True)
    with TestClient(app) as client:
        sent = threading.Thread(target=lambda: client.post(TEXT, json={"prompt": "a", "n": 3}), daemon=True)
        sent.start()
        while not link.taken:
            time.sleep(0.01)
        client.portal.call(link.fail_all, "the engine has died")
        sent.join(5)
        assert desk.metrics.finishes == {"stop": 0, "length": 0, "abort": 0, "error": 3}

        async def left() -> None:
            exchange = Exchange(link, [[1], [2]], {}, 1, "", desk.metrics)
            asking = asyncio.ensure_future(exchange.finish())
            while link.taken < 3:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        client.portal.call(left)
        assert desk.metrics.finishes["abort"] == 2 and link.open_requests == 0


def test_an_address_that_cannot_be_had_is_said():
    from octavo.serve.run import _bind

    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.7:8000") as caught:
        _bind("203.0.113.7", 8000)
    assert "--host" in (caught.value.hint or "")
    with _bind("127.0.0.1", 0) as door:
        door.listen()
        with pytest.raises(UsageError, match="cannot listen") as caught:
            _bind("127.0.0.1", door.getsockname()[1])
    assert "--port" in (caught.value.hint or "")
