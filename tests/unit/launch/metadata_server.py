"""The metadata endpoint of an ECS task: it answers what a test says."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

TASK = {
    "Cluster": "nodes",
    "TaskARN": "arn:aws:ecs:eu-west-1:1:task/nodes/0a1b2c",
    "Family": "managers",
    "Revision": "7",
    "LaunchType": "EC2",
}
CONTAINER = {"Name": "main", "DockerName": "ecs-managers-7-main-aabb"}


class Metadata:
    """What it answers: a value by the end of the path, in turn where there are several, the last one again and again."""

    def __init__(self) -> None:
        self.task: list[Any] = [TASK]
        self.container: list[Any] = [CONTAINER]
        self.asked: list[str] = []
        self.url = ""

    @property
    def environ(self) -> dict[str, str]:
        return {"ECS_CONTAINER_METADATA_URI_V4": self.url}


@contextlib.contextmanager
def metadata_served() -> Iterator[Metadata]:
    """An endpoint at a free port; a number as an answer is a status, bytes are sent as they are."""
    served = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            answers = served.task if self.path.endswith("/task") else served.container
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if not isinstance(answer, int):
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v4/container-1"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
