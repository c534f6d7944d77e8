"""A mail server and a webhook's receiver on this machine, which keep what they are given."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MailServer(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP as a sender needs (RFC 5321).

    ``answers``: codes to answer commands with instead; 0 ends the connection without one.
    ``certificate``: with it STARTTLS is offered.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, certificate: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Mail)
        self.certificate = certificate
        self.messages: list[str] = []
        self.receivers: list[str] = []
        self.said: list[str] = []
        self.answers: dict[str, int] = {}

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Mail(socketserver.StreamRequestHandler):
    server: MailServer

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self._say("220 test")
        while line := self.rfile.readline().decode().strip():
            command = line.split()[0].upper()
            self.server.said.append(command if command != "AUTH" else line)
            code = self.server.answers.get(command)
            if code is not None:
                if code == 0:
                    return
                self._say(f"{code} no")
            elif command == "STARTTLS":
                if not self._encrypt():
                    return
            elif command == "DATA":
                if not self._take():
                    return
            else:
                self._answer(command, line)

    def finish(self) -> None:
        """Close what STARTTLS has put around the connection."""
        super().finish()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.close()

    def _encrypt(self) -> bool:
        assert self.server.certificate is not None
        self._say("220 go on")
        try:
            self.request = self.server.certificate.wrap_socket(self.request, server_side=True)
        except ssl.SSLError:
            # The other side does not trust the certificate.
            return False
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
        return True

    def _take(self) -> bool:
        self._say("354 go on")
        lines = []
        while (text := self.rfile.readline().decode()) not in (".\r\n", ""):
            lines.append(text)
        if self.server.answers.get("MESSAGE") == 0:
            return False
        self.server.messages.append("".join(lines))
        self._say("250 kept")
        return True

    def _answer(self, command: str, line: str) -> None:
        if command == "EHLO":
            self._say("250-test")
            if self.server.certificate is not None and not isinstance(self.request, ssl.SSLSocket):
                self._say("250-STARTTLS")
            self._say("250 AUTH PLAIN")
        elif command == "AUTH":
            self._say("235 welcome")
        elif command == "RCPT":
            self.server.receivers.append(line)
            self._say("550 unknown" if "unknown" in line else "250 fine")
        else:
            self._say("221 bye" if command == "QUIT" else "250 fine")


class Receiver(ThreadingHTTPServer):
    """Takes POSTs; ``status`` is what it answers, None ends the connection without one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.status: int | None = 204
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append(({name.lower(): v for name, v in self.headers.items()}, body))
        if self.server.status is None:
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running(make: Callable[[], Any]) -> Iterator[Any]:
    """Run a server in a thread."""
    server = make()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
