#!/usr/bin/env python3
"""Checks that each relative link in a Markdown file leads to a file, and each #anchor to a heading."""
import pathlib
import re
import subprocess
import sys


def anchors(path):
    found = set()
    fenced = False
    for line in path.read_text(encoding="utf-8").splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = re.match(r"#+\s+(.*)", line)
        if heading and not fenced:
            text = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading[1]).strip().lower()
            found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text)))
    return found


def main():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], capture_output=True, text=True,
                            check=True).stdout.split("\n")
    bad = 0
    for path in (pathlib.Path(p) for p in sorted(set(filter(None, listed)))):
        if not path.exists():
            continue
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        text = re.sub(r"`[^`\n]*`", "", text)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            to = (path.parent / file) if file else path
            if not to.exists():
                print(f"{path}: {target} is not there")
                bad += 1
            elif anchor and to.suffix == ".md" and anchor not in anchors(to):
                print(f"{path}: {target}: no such heading")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
