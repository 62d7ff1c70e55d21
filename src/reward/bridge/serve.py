"""Runs reward functions that were written for TRL. Standard library only, Python 3.8 or newer; one file, to be copied to any machine as it is.

    python serve.py --http 8000 rewards.py            every reward function of a file, at http://127.0.0.1:8000/<function>
    python serve.py --http 8000 rewards.py:accuracy judges.py:helpful --host 0.0.0.0
    python serve.py --stdio rewards.py:accuracy       one function, a line of JSON in, a line of JSON out: as the trainer starts it

A function is called as f(prompts=, completions=, completion_ids=, <a list for every column>, trainer_state=, log_extra=, log_metric=), with
those of the arguments that its signature has room for, and returns a number or None for each completion; it may be `async def`.
What goes over the wire is in docs/rewards.md.
"""

import argparse
import asyncio
import difflib
import importlib
import importlib.util
import inspect
import json
import math
import os
import queue
import re
import signal
import sys
import threading
import traceback
import types
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Frames that lead to the user's code: this file's, and those of the import and of the event loop.
OURS = re.compile(re.escape(__file__) + r"$|^<frozen importlib|/(asyncio|concurrent/futures)/\w+\.py$")

# ---------------------------------------------------------------- functions


class LoadError(Exception):
    """A file, module or function that is not there or cannot be imported; the message is for the user."""


def load_module(place):
    """Imports a file, by its path, or a module, by its dotted name."""
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    path = os.path.abspath(place)
    if not os.path.isfile(path):
        raise LoadError(f"there is no file {path}")
    sys.path.insert(0, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pickle and dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def reward_functions(module):
    """What of a module's own looks like a reward function, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", None) == module.__name__
        and "completions" in (parameters_of(value) or {})
    }


def load(spec):
    """The functions that `place:function` or, all of them, `place` names: [(name, function)]."""
    place, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    try:
        module = load_module(place)
    except LoadError:
        raise
    except BaseException as error:  # an import may also call sys.exit
        raise LoadError(f"{place} cannot be imported\n{describe(error)}")
    known = reward_functions(module)
    if name == "":
        if not known:
            raise LoadError(f"{place} has no function with a parameter named completions")
        return list(known.items())
    try:
        function = reduce(getattr, name.split("."), module)
    except AttributeError:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known) or 'no reward functions'}"
        raise LoadError(f"{place} has no function {name}{hint}")
    if not callable(function):
        raise LoadError(f"{name} of {place} is no function but {shown(function)}")
    if inspect.isclass(function):
        raise LoadError(f"{name} of {place} is a class: name an object made from it")
    return [(name, function)]


def parameters_of(function):
    """The parameters by name, or None where Python does not know them."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def with_room(function, arguments):
    """Those arguments that the function takes."""
    parameters = parameters_of(function)
    if parameters is None:
        return arguments
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    if missing:
        raise TypeError(f"the function wants {', '.join(missing)}; there are {', '.join(arguments)}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


# ---------------------------------------------------------------- one call


class Loop:
    """An event loop in a thread of its own, the same one for all calls: clients and locks stay bound to it."""

    def __init__(self):
        self._loop = None

    def result(self, awaitable):
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()

        async def wait():
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()


LOOP = Loop()


def answer(function, request):
    """Calls the function with what a request holds. Returns the reply, which is an error where the function raised."""
    metrics, columns = {}, {}

    def log_metric(name, value):
        value = float(value)
        if math.isfinite(value):
            metrics.setdefault(str(name), []).append(value)

    def log_extra(column, values):
        text = json.dumps(list(values), default=str)
        columns.setdefault(str(column), []).extend(json.loads(text, parse_constant=lambda _: None))

    try:
        arguments = {
            **request.get("columns", {}),
            "prompts": request["prompts"],
            "completions": request["completions"],
            "completion_ids": request.get("completion_ids"),
            "trainer_state": types.SimpleNamespace(**request.get("trainer_state", {})),
            "log_extra": log_extra,
            "log_metric": log_metric,
        }
        returned = function(**with_room(function, arguments))
        if inspect.isawaitable(returned):
            returned = LOOP.result(returned)
        rewards = as_rewards(returned)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too: the reply is owed
        return {"error": describe(error)}
    means = {name: sum(values) / len(values) for name, values in metrics.items()}
    return {"rewards": rewards, "metrics": means, "columns": columns}


def as_rewards(returned):
    """A list of numbers and None, or {"got": text} in the place of what is neither."""
    if isinstance(returned, (str, bytes, dict)):
        return {"got": shown(returned)}
    try:
        return [as_reward(value) for value in returned]
    except TypeError:
        return {"got": shown(returned)}


def as_reward(value):
    """None and NaN, which TRL makes of None, do not apply. Scalars of numpy and torch are numbers."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        return {"got": shown(value)}
    try:
        number = float(value)
    except Exception:
        return {"got": shown(value)}
    if math.isnan(number):
        return None
    return number if math.isfinite(number) else {"got": shown(value)}


def shown(value):
    text = repr(value)
    return f"{text if len(text) <= 200 else text[:200] + '...'} ({type(value).__name__})"


def describe(error):
    """The traceback from the user's code on."""
    trace = error.__traceback__
    while trace is not None and OURS.search(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).strip()


def as_json(value):
    return json.dumps(value, default=str).encode()


# ---------------------------------------------------------------- stdio


def serve_stdio(spec):
    """Answers lines of standard input until it ends. Whatever the user's code prints goes to standard error."""
    end_with_trainer()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)

    def reply(value):
        replies.write(as_json(value) + b"\n")
        replies.flush()

    lines = queue.Queue()

    def read():
        for line in requests:
            lines.put(line)
        lines.put(None)
        # The main thread ends in good order when it is idle; when it is not, nobody waits for it any more.
        threading.Event().wait(1)
        os._exit(1)

    try:
        [(_, function)] = load(spec)
    except LoadError as error:
        return reply({"error": str(error)})
    reply({"ready": True, "python": sys.version.split()[0]})
    threading.Thread(target=read, daemon=True).start()
    # Calls are made by the main thread: functions that set a time limit by a signal work in no other.
    for line in iter(lines.get, None):
        reply(answer(function, json.loads(line)))


def end_with_trainer():
    """Has the kernel end this process with the trainer, however that ends; and, where memory is short, before it."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        pass  # the end of standard input remains
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


# ---------------------------------------------------------------- HTTP


def serve_http(specs, host, port):
    """GET /<function> says that it is there, POST /<function> calls it. Plain functions run one at a time, in the main thread."""
    try:
        functions = {name: function for spec in specs for name, function in load(spec)}
    except LoadError as error:
        sys.exit(f"serve.py: {error}")
    jobs = queue.Queue()

    def call(function, request):
        if inspect.iscoroutinefunction(function):
            return answer(function, request)
        done = queue.Queue()
        jobs.put((function, request, done))
        return done.get()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "grove-rewards"
        sys_version = ""

        def do_GET(self):
            name = self.path.strip("/")
            if name == "":
                self.reply(200, {"functions": list(functions)})
            elif self.found(name):
                self.reply(200, {"function": name})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name = self.path.strip("/")
            if not self.found(name):
                return
            try:
                request = json.loads(body)
                if not isinstance(request, dict):
                    raise ValueError("expected an object")
            except ValueError as error:
                self.reply(400, {"error": f"the request is no JSON: {error}"})
                return
            value = call(functions[name], request)
            self.reply(500 if "error" in value else 200, value)

        def found(self, name):
            if name not in functions:
                self.reply(404, {"error": f"there is no function {name}; there are {', '.join(functions)}"})
            return name in functions

        def reply(self, status, value):
            body = as_json(value)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, number = server.server_address[:2]
    for name in functions:
        print(f"serving http://{address}:{number}/{name}", flush=True)
    try:
        while True:
            function, request, done = jobs.get()
            done.put(answer(function, request))
    except KeyboardInterrupt:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--http", type=int, metavar="PORT", help="serve functions over HTTP; 0 takes any free port")
    where.add_argument("--stdio", action="store_true", help="answer one function's lines on standard input")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is every network's")
    parser.add_argument("functions", nargs="+", metavar="file.py[:function]")
    arguments = parser.parse_args()
    if arguments.stdio:
        serve_stdio(arguments.functions[0])
    else:
        serve_http(arguments.functions, arguments.host, arguments.http)


if __name__ == "__main__":
    main()
