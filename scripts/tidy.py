#!/usr/bin/env python3
"""Runs clang-tidy over files, within a time budget, and remembers what passed by content.

A file's key is the hash of .clang-tidy, its compile command, its text and the text of each of our headers it includes (from
ninja's dependency records; a file not built yet counts as including all of them). Exit code 0: nothing found; 1: something
found; files not reached in time are listed and do not fail.
"""
import argparse
import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path.cwd()


@functools.cache
def text_hash(path):
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except OSError:
        return "absent"


def recorded_dependencies(build):
    """Object file -> our headers it includes, relative to the root."""
    out = subprocess.run(["ninja", "-C", build, "-t", "deps"], capture_output=True, text=True, check=False).stdout
    found, current = {}, None
    for line in out.splitlines():
        if not line.startswith(" "):
            current = found.setdefault(line.split(":")[0], set()) if ":" in line else None
            continue
        path = pathlib.Path(os.path.normpath(pathlib.Path(build).resolve() / line.strip()))
        if current is not None and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / ".venv"):
            current.add(str(path.relative_to(ROOT)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=300, help="seconds")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()

    commands = {}
    for entry in json.loads((pathlib.Path(args.build) / "compile_commands.json").read_text()):
        path = os.path.relpath(os.path.join(entry["directory"], entry["file"]), ROOT)
        # g++'s precompiled headers mean nothing to clang.
        entry["command"] = re.sub(r"-Winvalid-pch |-fpch-preprocess |-include \S*cmake_pch\.hxx ", "", entry["command"])
        commands[path] = entry
    dependencies = recorded_dependencies(args.build)
    every_header = sorted(str(p.relative_to(ROOT)) for folder in ("model", "server", "client", "train", "tests")
                          for p in (ROOT / folder).rglob("*.h"))
    cache = pathlib.Path(args.cache)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "compile_commands.json").write_text(json.dumps(list(commands.values())))

    def key(path):
        entry = commands[path]
        command = entry["command"]
        output = entry.get("output") or command.split(" -o ")[1].split()[0]
        headers = sorted(dependencies.get(output) or every_header)
        parts = [text_hash(".clang-tidy"), command] + [f"{h} {text_hash(h)}" for h in [path, *headers]]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    wanted = [f for f in args.files if f in commands]
    unbuilt = [f for f in args.files if f not in commands]
    todo = [(f, k) for f in wanted if not (cache / (k := key(f))).exists()]
    deadline = time.monotonic() + args.budget
    late, findings = [], []

    def run(item):
        path, digest = item
        left = deadline - time.monotonic()
        if left <= 0:
            late.append(path)
            return
        try:
            done = subprocess.run(["clang-tidy", "-p", args.cache, "--quiet", "--extra-arg=-Wthread-safety",
                                   "--extra-arg=-Wno-unknown-warning-option", path],
                                  capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            late.append(path)
            return
        if done.returncode == 0:
            (cache / digest).touch()
        else:
            findings.append(path)
            print(done.stdout.replace(f"{ROOT}/", ""), end="", flush=True)
            if not done.stdout.strip():
                print(done.stderr[-2000:], flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, todo))
    print(f"  {len(wanted)} files: {len(wanted) - len(todo)} unchanged since they passed, "
          f"{len(todo) - len(late)} examined, {len(findings)} with findings")
    if late:
        print(f"  not reached in {args.budget:.0f} s: {' '.join(sorted(late))}")
    if unbuilt:
        print(f"  not part of this build: {' '.join(unbuilt)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
