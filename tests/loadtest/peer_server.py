"""A peer in miniature: answers {"p": codes / 100}; `fork` leaves a child behind, `fail` never starts, `wrong` errs."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

MODE = sys.argv[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        codes = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["codes"]
        off = 0.5 if MODE == "wrong" else 0.0
        body = json.dumps({"p": [[code / 100 + off for code in row[:2]] for row in codes]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if MODE == "fail":
    sys.exit("the weights are nowhere")
if MODE == "fork":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
HTTPServer(("127.0.0.1", int(os.environ["PEER_PORT"])), Handler).serve_forever()
