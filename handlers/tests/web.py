"""Real nginx servers and the visitors that come through them, beside lab.py."""

import http.client
import os
import socket
import threading
import time

from lab import free_port, wait_until

WORKERS = 2
# Everything below the lab's directory, so that no test needs root or touches the machine's own nginx.
MAIN = """\
{user}
worker_processes {workers};
error_log {directory}/{name}.error.log;
pid {directory}/{name}.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/{name}.tmp;
    proxy_temp_path {directory}/{name}.tmp;
    fastcgi_temp_path {directory}/{name}.tmp;
    uwsgi_temp_path {directory}/{name}.tmp;
    scgi_temp_path {directory}/{name}.tmp;
{http}
}}
"""

EDGE = """\
    upstream blue {{ {blue} keepalive 8; }}
    upstream green {{ {green} keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://{live};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location = /lockstep {{ return 200 "{generation}\\n"; }}
    }}
"""


class Nginx:
    """One nginx: `http` is what stands in its http block."""

    def __init__(self, lab, name, http):
        self.lab, self.name = lab, name
        self.configuration = lab.path(f"{name}.conf")
        self._http = http
        lab.on_close(self.end)

    def text(self, http=None):
        user = "user root;" if os.geteuid() == 0 else ""
        return MAIN.format(user=user, workers=WORKERS, directory=self.lab.directory, name=self.name, http=http or self._http)

    def start(self):
        self.lab.write(f"{self.name}.conf", self.text())
        self.lab.start(self.name, self.start_argv()).wait()
        # Its first process is there before the others, which may take a while to come.
        wait_until(lambda: self.pid() and len(self.workers()) >= WORKERS, f"{self.name} runs")
        return self

    def start_argv(self):
        return ["nginx", "-c", self.configuration]

    def pid(self):
        """Of its master; None when it does not run."""
        try:
            with open(self.lab.path(f"{self.name}.pid"), encoding="ascii") as file:
                text = file.read().strip()
            with open(f"/proc/{text}/stat", encoding="latin-1") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            return int(text) if name == "nginx" and rest.split()[0] != "Z" else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    def workers(self):
        """Process ids of its workers, those that are shutting down too."""
        found = set()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat", encoding="latin-1") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == self.pid():
                        found.add(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has just ended
        return found

    def end(self):
        """At once, with its workers."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, 15)
            wait_until(lambda: self.pid() is None, f"{self.name} has ended")


class Edge(Nginx):
    """One nginx that passes everything to the upstream `blue` or `green`, and says its generation at a status location."""

    def __init__(self, lab, name, blue, green):
        """`blue` and `green` are ports."""
        self.port, self.status_port = free_port(), free_port()
        self._upstreams = {"blue": servers(blue), "green": servers(green)}
        super().__init__(lab, name, self.http("blue", "by-hand"))
        self.template = lab.write(f"{name}.template", self.text(self.http("{{live}}", "{{generation}}")))

    def http(self, live, generation):
        return EDGE.format(port=self.port, status_port=self.status_port, live=live, generation=generation,
                           **self._upstreams)

    def settings(self):
        """What a host's agent.toml says to the handler."""
        return {"NGINX_CONF": self.configuration, "NGINX_TEMPLATE": self.template,
                "NGINX_PID": self.lab.path(f"{self.name}.pid"),
                "NGINX_STATUS": f"http://127.0.0.1:{self.status_port}/lockstep"}

    def get(self, path="/", port=None):
        with socket.create_connection(("127.0.0.1", port or self.port), 5) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        if " 200 " not in answer.splitlines()[0]:
            raise ConnectionError(answer.splitlines()[0])
        return answer.partition("\r\n\r\n")[2].strip()

    def generation(self):
        return self.get("/lockstep", self.status_port)


def servers(ports):
    return " ".join(f"server 127.0.0.1:{port};" for port in ports)


class Answer:
    """What one visitor got: when it asked, when it had the answer, through which edge, and what it was."""

    __slots__ = ("asked", "had", "edge", "text")

    def __init__(self, asked, had, edge, text):
        self.asked, self.had, self.edge, self.text = asked, had, edge, text


class Visitors:
    """Clients that ask through edges, some on a new connection for each request, some on one that they keep.

    A kept connection that is closed before a byte of the answer has come is opened again, once, as HTTP clients do with
    a request that changes nothing; that is counted and no error. Everything else but a 200 is an error.
    """

    def __init__(self, edges, count=8, per_second=400):
        """`edges`: {name: port}."""
        self._stop = threading.Event()
        self._every_s = count / per_second
        self.answers, self.errors, self.reopened = [], [], []
        places = list(edges.items())
        self._threads = [threading.Thread(target=self._visit, args=(*places[i % len(places)], i // len(places) % 2 == 0),
                                          daemon=True) for i in range(count)]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def give_up(self):
        """Without waiting for it: what they talk to may be gone."""
        self._stop.set()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            if thread.is_alive():
                raise TimeoutError("a visitor is stuck")

    def wait_for(self, more, seconds=20):
        """Until so many more answers have come."""
        goal = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= goal, f"{more} more answers", seconds)

    def _visit(self, edge, port, keeps):
        connection, due = None, time.monotonic()
        while not self._stop.is_set():
            due = max(due + self._every_s, time.monotonic() - self._every_s)  # no burst to make up for a stall
            time.sleep(max(due - time.monotonic(), 0))
            asked = time.monotonic()
            try:
                connection, text = self._ask(connection, port, keeps)
                self.answers.append(Answer(asked, time.monotonic(), edge, text))
            except (OSError, http.client.HTTPException) as error:
                self.errors.append((time.monotonic(), f"{edge}: {type(error).__name__}: {error}"))
                connection = None
        if connection is not None:
            connection.close()

    def _ask(self, connection, port, keeps):
        is_kept = connection is not None
        connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/", headers={} if keeps else {"Connection": "close"})
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()
            if not is_kept:
                raise
            self.reopened.append(time.monotonic())
            return self._ask(None, port, keeps)
        text = response.read().decode().strip()
        if response.status != 200:
            connection.close()
            raise http.client.HTTPException(f"{response.status} {text[:60]}")
        if response.will_close:
            connection.close()
            connection = None
        return connection, text


def mixing_ms(answers, old, new):
    """For how long one edge still answered `old` while another answered `new` already, as their clients saw it."""
    first, last = {}, {}
    for answer in answers:
        if answer.text == new:
            first[answer.edge] = min(answer.had, first.get(answer.edge, answer.had))
        elif answer.text == old:
            last[answer.edge] = max(answer.had, last.get(answer.edge, answer.had))
    overlaps = [last[one] - first[other] for one in last for other in first if one != other]
    return max(0.0, *overlaps, 0.0) * 1000
