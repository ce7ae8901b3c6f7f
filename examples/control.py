#!/usr/bin/env python3
"""Lists the cores of a running rprocd, then tells what happens to them, until it is interrupted.

    control.py [SOCKET]

SOCKET is the control socket, or the monitor socket, of the daemon: /run/rprocd/control if it is not
given. Nothing but Python's standard library is needed. The socket speaks Varlink: each message is a
JSON object with a NUL byte behind it. What can be asked is in src/control/io.rprocd.varlink, and
systemd's `varlinkctl introspect SOCKET io.rprocd` prints it.
"""

import json
import socket
import sys


class Daemon:
    """A connection to rprocd."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.received = b""

    def send(self, method, parameters, more=False):
        """Sends a call. With `more` there may be any number of answers."""
        call = {"method": "io.rprocd." + method, "parameters": parameters}
        if more:
            call["more"] = True
        self.socket.sendall(json.dumps(call).encode() + b"\0")

    def answer(self):
        """The parameters of the next answer; waits for it."""
        while b"\0" not in self.received:
            piece = self.socket.recv(65536)
            if not piece:
                raise EOFError("rprocd has closed the connection")
            self.received += piece
        message, self.received = self.received.split(b"\0", 1)
        message = json.loads(message)
        if "error" in message:
            raise RuntimeError(f"{message['error']}: {message.get('parameters', {})}")
        return message.get("parameters", {})

    def call(self, method, **parameters):
        """One call with one answer."""
        self.send(method, parameters)
        return self.answer()


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "/run/rprocd/control"
    try:
        daemon = Daemon(path)
    except OSError as error:
        sys.exit(f"cannot reach rprocd at {path}: {error.strerror}")

    listed = daemon.call("List")
    for core in listed["cores"]:
        print(f"core {core['name']}: {core['state']}, {core['firmware']}", flush=True)
        for number, vdev in enumerate(core["vdevs"]):
            guest = "with a guest" if vdev["guestAttached"] else "no guest"
            print(f"  vdev {number}: {vdev['socket']}, {guest}")
            for service in vdev["announced"]:
                print(f"    announces {service['name']} at {service['address']}")
    print("watching", flush=True)

    # From the event on that `List` named: so nothing between the two is missed.
    daemon.send("Events", {"since": listed["nextEvent"]}, more=True)
    while True:
        for event in daemon.answer()["events"]:
            # A reader passes over what it does not know: the interface grows.
            print(f"event {event['core']}: {event['what']} {event['detail']}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (EOFError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
