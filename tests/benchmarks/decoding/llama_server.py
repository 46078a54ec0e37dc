"""A stand-in of llama.cpp's `llama-server`: its options, its health, and completions that stream: all texts
get a token at a time."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(body["prompt"]) > self.server.context:  # type: ignore[attr-defined]
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": "the prompt is too long"}')
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.server.together.wait(10)  # type: ignore[attr-defined]
            time.sleep(0.005)
            self._chunk({"choices": [{"text": "a", "finish_reason": None}]})
        self._chunk({"choices": [{"text": "", "finish_reason": "length"}]})
        self._chunk({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "host", "port", "threads", "threads-batch", "parallel", "ctx-size", "n-gpu-layers"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--version", action="store_true")
    options = parser.parse_args()
    if options.version:
        print("version: 1234 (abcdef)", file=sys.stderr)
        return
    if Path(options.model).read_bytes() == b"GGUF damaged":
        sys.exit("error: the model is damaged")
    server = ThreadingHTTPServer((options.host, int(options.port)), Handler)
    server.context = int(options.ctx_size) // int(options.parallel)  # type: ignore[attr-defined]
    server.together = threading.Barrier(int(options.parallel))  # type: ignore[attr-defined]
    server.serve_forever()


if __name__ == "__main__":
    main()
