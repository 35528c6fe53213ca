#!/usr/bin/env python3
"""Pack what a re-index sees of a git history: for each commit which documents changed, and where.

    git clone --bare https://github.com/axboe/liburing liburing.git
    python3 make_history.py liburing.git 27255f4c 300 >liburing.txt

Arguments: a repository, its last commit, how many first-parent commits. Needs git; nothing of the files' text is
written, only sizes, identities and the place of the first difference. The format is in README.md. Run by hand,
never by make.
"""
import subprocess
import sys

MOST_BYTES = 1 << 20  # ingest.max_file unless configured


class Repository:
    def __init__(self, path):
        self.path = path
        self.blobs = subprocess.Popen(["git", "-C", path, "cat-file", "--batch"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE)

    def git(self, *args):
        return subprocess.run(["git", "-C", self.path, *args], check=True, stdout=subprocess.PIPE).stdout

    def blob(self, name):
        self.blobs.stdin.write(name.encode() + b"\n")
        self.blobs.stdin.flush()
        head = self.blobs.stdout.readline().split()
        if len(head) != 3 or head[1] != b"blob":
            sys.exit(f"{self.path}: blob {name} is missing: {head}")
        data = self.blobs.stdout.read(int(head[2]))
        self.blobs.stdout.read(1)
        return data

    def text(self, name):
        """The text of a blob; None where it is no text or too large a one."""
        data = self.blob(name)
        return None if b"\0" in data or len(data) > MOST_BYTES else data

    def changed_paths(self, *which):
        """Every (commit, path) that adds or changes the path, merges left out: what ingest/repo.c counts."""
        out = self.git("log", "--no-merges", "--no-renames", "--diff-filter=AMT", "--name-only", "--format=", "-z",
                       *which)
        return [p for p in out.replace(b"\n", b"\0").split(b"\0") if p]


def common_bytes(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def is_file(mode):
    return mode in (b"100644", b"100755")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    repo = Repository(sys.argv[1])
    out = sys.stdout.buffer
    commits = repo.git("rev-list", "--first-parent", f"--max-count={int(sys.argv[3]) + 1}", sys.argv[2]).split()
    commits = [c.decode() for c in reversed(commits)]
    changes, documents = {}, {}  # by path; of documents: name of the blob

    def count(*which):
        for path in repo.changed_paths(*which):
            changes[path] = changes.get(path, 0) + 1

    def write(path, name, data, common):
        if b"\n" in path:
            sys.exit(f"{path}: the format has no room for a line feed")
        documents[path] = name
        out.write(b"+ %d %d %d %s %s\n" % (len(data), common, changes.get(path, 0), name[:16].encode(), path))

    count(commits[0])
    out.write(b"commit %s\n" % commits[0].encode())
    for line in repo.git("ls-tree", "-r", "-z", commits[0]).split(b"\0")[:-1]:
        about, path = line.split(b"\t", 1)
        mode, kind, name = about.split()
        data = repo.text(name.decode()) if is_file(mode) and kind == b"blob" else None
        if data is not None:
            write(path, name.decode(), data, 0)
    for before, after in zip(commits, commits[1:]):
        out.write(b"commit %s\n" % after.encode())
        count(f"{before}..{after}")
        fields = repo.git("diff-tree", "-r", "-z", "--no-renames", before, after).split(b"\0")[:-1]
        for about, path in zip(fields[::2], fields[1::2]):
            mode, name = about.split()[1], about.split()[3].decode()
            data = repo.text(name) if is_file(mode) else None
            if data is None:
                if documents.pop(path, None):
                    out.write(b"- %s\n" % path)
            elif documents.get(path) != name:  # else only its mode changed
                was = repo.text(documents[path]) if path in documents else b""
                write(path, name, data, common_bytes(was, data))


main()
