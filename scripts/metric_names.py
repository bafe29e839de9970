#!/usr/bin/env python3
"""Checks that each smt_… and grpc_server_… metric an alert or a dashboard names is one that the server defines."""
import pathlib
import re
import sys

# A name in the sources may be written with or without the prefix.
SOURCES = ("server/metrics", "server/service", "server/engine", "server/main.cc")


def main():
    root = pathlib.Path.cwd()
    text = ""
    for source in map(root.joinpath, SOURCES):
        files = source.rglob("*.cc") if source.is_dir() else [source]
        files = list(files) + (list(source.rglob("*.h")) if source.is_dir() else [])
        text += "\n".join(f.read_text() for f in files if f.is_file())
    defined = set(re.findall(r'"((?:smt_|grpc_server_)?[a-z][a-z0-9_]*)"', text))
    bad = 0
    for folder in sys.argv[1:]:
        for path in sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix in (".yaml", ".yml", ".json")):
            for name in sorted(set(re.findall(r"\b(?:smt_|grpc_server_)[a-z0-9_]+", path.read_text()))):
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                spellings = {name, base, name.removeprefix("smt_"), base.removeprefix("smt_")}
                if not spellings & defined:
                    print(f"{path}: {name} is no metric of the server")
                    bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
