"A real server on loopback: who gets in, how many, and what is left afterwards."

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode

import pytest

pytest.importorskip("voila", reason="needs Voilà: pip install voila")
from test_digits import SHORT_RECIPE  # noqa: E402
from tornado.httpclient import AsyncHTTPClient, HTTPRequest  # noqa: E402
from tornado.ioloop import IOLoop  # noqa: E402
from tornado.websocket import websocket_connect  # noqa: E402

from hyperclip_nb.cli.server import refusal  # noqa: E402
from hyperclip_nb.evaluation.digits import digits_experiment  # noqa: E402

TOKEN = "a-token-of-twenty-letters"
KERNEL = r'"kernelId":\s*"([0-9a-f-]{36})"'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    "`hyperclip_nb app` in a process of its own, on a run directory that does not exist."

    def __init__(self, folder: Path, *options: str, base: str = "/", lives: int = 600):
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "voila.json").write_text(json.dumps({"Places": {"without_page": lives}}))
        self.port, self.base = free_port(), base
        env = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "OMP_NUM_THREADS": "1"}
        code = "from hyperclip_nb.cli.commands import main; main()"
        where = ["--port", str(self.port), "--base-url", base, "--run", str(folder / "run"), "--data", str(folder)]
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            command = [sys.executable, "-c", code, "app", "--no-browser", *where, *options]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        while "the explorer is at" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    async def _get(self, path, headers, token, method):
        query = "?" + urlencode({"token": token}) if token else ""
        url = f"http://127.0.0.1:{self.port}{self.base}{path}{query}"
        request = HTTPRequest(
            url, method, headers, follow_redirects=False, request_timeout=300, allow_nonstandard_methods=True
        )
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    def get(self, path="", token=None, method="GET", **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return IOLoop.current().run_sync(lambda: self._get(path, names, token, method))

    def health(self):
        return json.loads(self.get("health").body)

    def connect(self, kernel, token=TOKEN, **headers):
        query = urlencode({"session_id": uuid.uuid4().hex} | ({"token": token} if token else {}))
        url = f"ws://127.0.0.1:{self.port}{self.base}api/kernels/{kernel}/channels?{query}"
        request = HTTPRequest(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return IOLoop.current().run_sync(lambda: websocket_connect(request))

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("app"), "--token", TOKEN)
    yield served
    served.end()


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("hyperclip_nb.cli.commands", "torch numpy voila"),
        ("hyperclip_nb.cli.server", "torch numpy rfc3987_syntax"),  # the last one makes a parser for a second
        ("hyperclip_nb.explorer.widgets", "matplotlib scipy sklearn pandas open_clip torchvision"),
    ],
)
def test_nothing_is_imported_that_the_first_picture_does_not_need(module, heavy):
    code = f"import sys, {module}; print(sorted({{*{heavy.split()!r}}} & {{*sys.modules}}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_health_needs_no_token_and_says_nothing_else(served):
    assert served.health() == {"status": "ok", "visitors": 0, "places": 2}
    assert served.get("health", Host="10.0.0.7").code == 200


@pytest.mark.parametrize("token", [None, "", "a-token-of-twenty-letter", TOKEN + "s"])
def test_without_the_token_there_is_no_kernel(served, token):
    answer = served.get(token=token)
    assert answer.code in (302, 403) and b"kernelId" not in answer.body
    if answer.code == 302:
        assert "login" in answer.headers["Location"]
    kernel = uuid.uuid4()
    assert served.get(f"api/kernels/{kernel}", token=token).code in (302, 403)
    with pytest.raises(Exception, match="403"):
        served.connect(kernel, token=token)
    assert served.health()["visitors"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "169.254.1.1"},
        {"Host": "0.0.0.0"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": "file://"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "image"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "iframe"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "empty"},
    ],
)
def test_other_pages_and_names_are_refused_even_with_the_token(served, headers):
    for path in ("", f"api/kernels/{uuid.uuid4()}", "voila/static/voila.js", "login"):
        answer = served.get(path, token=TOKEN, **headers)
        assert answer.code in (400, 403) and b"kernelId" not in answer.body, (path, answer.code)
    with pytest.raises(Exception, match="40[03]"):
        served.connect(uuid.uuid4(), **headers)
    assert served.health()["visitors"] == 0


def test_files_of_this_machine_are_not_served(served):
    for path in (
        "voila/files/explorer.ipynb",
        "voila/files/../../etc/passwd",
        "voila/files//etc/passwd",
        "explorer.ipynb",
        "voila/files/nbs/images/explorer.png",
    ):
        assert served.get(path, token=TOKEN).code in (302, 400, 403, 404), path
    assert served.health()["visitors"] == 0


def test_two_visitors_have_kernels_of_their_own_and_a_third_gets_a_sentence(served, tmp_path):
    pages = [served.get(token=TOKEN) for _ in range(2)]
    first, second = (re.search(KERNEL, page.body.decode())[1] for page in pages)
    assert [page.code for page in pages] == [200, 200] and first != second
    assert served.health()["visitors"] == 2
    assert "frame-ancestors 'self'" in pages[0].headers["Content-Security-Policy"]
    third = served.get(token=TOKEN)
    assert third.code == 503 and "All 2 places" in third.body.decode() and b"Traceback" not in third.body
    assert served.health()["visitors"] == 2

    # a page may move widgets; it may not run code
    with pytest.raises(Exception, match="403"):
        served.connect(first, Origin="http://evil.example")
    written = tmp_path / "written"
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "x",
        "session": "s",
        "version": "5.3",
    }
    message = {
        "channel": "shell",
        "header": header | {"date": ""},
        "parent_header": {},
        "metadata": {},
        "content": {"code": f"open({str(written)!r}, 'w').close()", "silent": False, "allow_stdin": False},
        "buffers": [],
    }
    asked = {
        **message,
        "header": message["header"] | {"msg_type": "kernel_info_request", "msg_id": "known"},
        "content": {},
    }

    async def converse():
        socket = await websocket_connect(
            f"ws://127.0.0.1:{served.port}/api/kernels/{first}/channels?session_id=s&token={TOKEN}"
        )
        for words in (message, asked):
            await socket.write_message(json.dumps(words))
        while '"kernel_info_reply"' not in (reply := str(await socket.read_message())):
            assert '"execute_reply"' not in reply
        socket.close()

    IOLoop.current().run_sync(converse, timeout=120)
    assert not written.exists()


def test_the_other_world_has_an_address_and_a_kernel_that_waits_gives_way_to_it(tmp_path):
    "With one place, which the kernel has that waits for visitors of the first page."
    digits_experiment(40, recipe=SHORT_RECIPE, out=tmp_path / "runs" / "demo_digits")  # not a long training
    served = Served(tmp_path, "--token", TOKEN, "--visitors", "1")
    try:
        assert served.get("digits").code in (302, 403) and served.get("letters", token=TOKEN).code == 404
        first = served.get("digits", token=TOKEN)
        assert first.code == 200 and re.search(KERNEL, first.body.decode()) and served.health()["visitors"] == 1
        assert b"Ask about handwritten digits" in first.body and b'href="."' in first.body
        second = served.get(token=TOKEN)
        assert second.code == 503 and "Somebody else is exploring" in second.body.decode()
    finally:
        served.end()


def test_a_kernel_without_a_page_gives_its_place_back(tmp_path):
    served = Served(tmp_path, "--token", TOKEN, "--visitors", "1", lives=3)
    try:
        assert served.get(token=TOKEN).code == 200
        while (code := served.get(token=TOKEN).code) == 503:  # ends when the first kernel is gone
            time.sleep(0.5)
        assert code == 200 and served.health()["visitors"] <= 1
    finally:
        served.end()


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except OSError:
            pass
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_below_a_path_with_a_drawn_token_and_nothing_is_left_at_the_end(tmp_path):
    served = Served(tmp_path, "--host", "lab.example", base="/explorer/")
    try:
        token = re.search(r"\?token=([\w-]+)", served.log.read_text())[1]
        assert len(token) >= 32
        assert served.health()["visitors"] == 0
        page = served.get(token=token, Host="lab.example", Origin="https://lab.example")
        body = page.body.decode()
        assert page.code == 200 and re.search(KERNEL, body)
        assert "/explorer/voila/" in body and not re.search(r'(src|href)="/voila', body)
        assert served.get(token=token, Host="lab.example", Origin="https://other.example").code == 403
        kernels = children(served.process.pid)
        assert kernels
    finally:
        assert served.end() == 0, served.log.read_text()
    assert not [pid for pid in kernels if Path(f"/proc/{pid}").exists()]
    assert token not in " ".join(path.name for path in tmp_path.rglob("*"))


def test_a_page_elsewhere_may_link_here_but_not_embed():
    asks = {"Host": "localhost:8866", "Sec-Fetch-Site": "cross-site"}
    assert refusal(asks | {"Sec-Fetch-Dest": "document"}) is None
    for place in ("image", "script", "iframe", "empty", "style"):
        assert refusal(asks | {"Sec-Fetch-Dest": place})
