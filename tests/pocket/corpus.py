#!/usr/bin/env python3
"""Read the training text from this machine's Debian packages, train the tokenizer, and keep both as arrays.

    python corpus.py --work DIR [--tokenizer FILE]

writes DIR/tokenizer.json, DIR/train.npz and DIR/held.npz, and DIR/packages.txt: what was read of which version. The
packages are permissively licensed ones (the list below names each licence); files are taken by the order of their
path's CRC-32, so that the same packages give the same text.

The split pattern is the pocket model's own: blanks stick to punctuation, never to words, so that an identifier has the
same tokens wherever it stands. A line is one line feed with its indentation, then its text; neither depends on what
stands next to it, which is what lets tasks.py put documents together line by line.
"""
import argparse
import gzip
import os
import re
import subprocess
import time
import zlib

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# Package, licence, largest share in MB.
TRAIN = [
    ("libpython3.11-stdlib", "PSF-2.0", 9), ("libpython3.11-minimal", "PSF-2.0", 9), ("python3-pip", "MIT", 5),
    ("python3-pygments", "BSD-2-Clause", 3), ("python3-pyparsing", "MIT", 1),
    ("llvm-14-dev", "Apache-2.0 WITH LLVM-exception", 14),
    ("libclang-common-14-dev", "Apache-2.0 WITH LLVM-exception", 2), ("libssl-dev", "Apache-2.0", 2),
    ("libicu-dev", "Unicode-3.0", 4), ("googletest", "BSD-3-Clause", 2), ("libsimde-dev", "MIT", 1),
    ("x11proto-dev", "MIT", 1), ("libgles-dev", "MIT", 1), ("libxml2-dev", "MIT", 1), ("libxslt1-dev", "MIT", 1),
    ("libpng-dev", "Libpng", 1), ("zlib1g-dev", "Zlib", 1), ("libx11-dev", "MIT", 1), ("libxcb1-dev", "MIT", 1),
    ("nodejs", "MIT", 10), ("perl-modules-5.36", "Artistic-1.0-Perl", 9), ("perl-base", "Artistic-1.0-Perl", 2),
    ("libperl5.36", "Artistic-1.0-Perl", 2), ("cmake-data", "BSD-3-Clause", 6), ("vim-runtime", "Vim", 8),
]
HELD = [
    ("libmbedtls-dev", "Apache-2.0", 3), ("tcl8.6-dev", "TCL", 2), ("tk8.6-dev", "TCL", 1),
    ("python3-oauthlib", "BSD-3-Clause", 1), ("python3-cryptography", "Apache-2.0", 1), ("libfreetype-dev", "FTL", 1),
    ("libpython3.11-stdlib", "PSF-2.0", 1), ("cmake-data", "BSD-3-Clause", 1),
]
# Directories of packages on both lists that are only ever held out.
HELD_DIRS = ("/usr/lib/python3.11/asyncio/", "/usr/lib/python3.11/email/", "/usr/lib/python3.11/unittest/",
             "/usr/share/cmake-3.25/Help/manual/", "/usr/share/cmake-3.25/Help/policy/")

KINDS = {"py", "h", "hpp", "pm", "pl", "pod", "js", "md", "txt", "rst", "html", "cmake", "vim", "c", "cc", "inc",
         "def", "tcl", "sh", "ts", "gz"}
SPLIT = r" ?[^\sA-Za-z0-9_]+ ?|[A-Za-z]+|[0-9]|_+|\n[ \t]*|[ \t]+|\s"
SPECIAL = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
           "<|assistant|>", "<|observation|>"]
STRUCTURE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>",
             "</arg_key>", "<arg_value>", "</arg_value>"]
VOCAB = 4096

DEFINITION = [re.compile(p) for p in (
    r"(?:async )?def (\w+)\s*\(", r"class (\w+)\b", r"#\s*define (\w+)\s+\S", r"(?:typedef )?struct (\w+)\s*\{",
    r"enum (?:class )?(\w+)\s*\{", r"(?:export )?(?:async )?function (\w+)\s*\(", r"sub (\w+)\s*\{",
    r"(?:static |inline |extern |const |unsigned |struct )*[A-Za-z_][\w:<>]*[ *&]+(\w+)\([^;{}]*\)\s*[;{]",
    r"(?:macro|function)\((\w+)", r"syn (?:keyword|match|region) (\w+) ")]
SETTING = [re.compile(p) for p in (
    r"(?:const |let |var |static |my \$)?([A-Za-z_][\w.-]{2,}) ?= ?[\w\"'/{(\[-][^=]", r"([A-Za-z_][\w-]{2,}): [\w\"'/]",
    r"#\s*define ([A-Z]\w+)\s+[\w\"'(-]", r"\"([A-Za-z_][\w.-]{2,})\": ?\S")]
SENTENCE = re.compile(r"[A-Z][a-z]+ [^\t]{20,}[.:]$")


def package_files(package):
    """(path, text) of a package's text files."""
    listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True).stdout.split("\n")
    for path in sorted(listed, key=lambda p: zlib.crc32(p.encode())):
        kind = os.path.basename(path).rsplit(".", 1)[-1]
        if kind not in KINDS or os.path.islink(path) or not os.path.isfile(path):
            continue
        if kind == "gz" and "/share/doc/" not in path or not 400 < os.path.getsize(path) < 300_000:
            continue
        data = open(path, "rb").read()
        try:
            text = (gzip.decompress(data) if kind == "gz" else data).decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if "\0" in text or "\r" in text or len(text) > 300_000 or max(map(len, text.split("\n"))) > 600:
            continue
        if any(mark in text for mark in SPECIAL + STRUCTURE):
            continue
        yield path.removesuffix(".gz"), text


def read_packages(packages, held, report):
    files, seen = [], set()
    both = {p for p, _, _ in HELD} & {p for p, _, _ in TRAIN}
    for package, licence, megabytes in packages:
        left, n = megabytes * 1e6, 0
        version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True,
                                 text=True).stdout
        if not version:
            print(f"package {package} is not installed and gives nothing", flush=True)
        for path, text in package_files(package):
            if left <= 0 or path in seen or (package in both and path.startswith(HELD_DIRS) != held):
                continue
            seen.add(path)
            files.append((path, text))
            left -= len(text)
            n += 1
        report.append(f"{'held' if held else 'train'}\t{package}\t{version}\t{licence}\t{n} files\t"
                      f"{megabytes - left / 1e6:.2f} MB")
        print(report[-1], flush=True)
    return files


def train_tokenizer(texts):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(STRUCTURE), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, max_token_length=16))
    assert t.get_vocab_size() == VOCAB - len(SPECIAL) - len(STRUCTURE)
    t.add_special_tokens(SPECIAL)
    t.add_tokens(STRUCTURE)
    return t


def split_line(line):
    text = line.lstrip(" \t")
    return line[:len(line) - len(text)], text


def write_corpus(path, files, t):
    """Lines of all files: token ids without indentation, and which indentation; names that lines define or set."""
    lines, indents, first, kinds, names = [], [], [0], [], []
    for _, text in files:
        for line in text.removesuffix("\n").split("\n"):
            indent, body = split_line(line)
            kind, name = 0, ""
            if body and body == body.rstrip() and len(body) < 200:
                for k, patterns in ((1, DEFINITION), (2, SETTING)):
                    for pattern in patterns:
                        m = pattern.match(body)
                        if m and not kind:
                            kind, name = k, m.group(1)
                if not kind and SENTENCE.match(body):
                    kind = 3
                if not kind:
                    kind = 4
            lines.append(body)
            indents.append(indent)
            kinds.append(kind)
            names.append(name)
        first.append(len(lines))
    ids, offset = [], np.zeros(len(lines) + 1, np.int64)
    for i in range(0, len(lines), 100_000):
        for j, e in enumerate(t.encode_batch(lines[i:i + 100_000], add_special_tokens=False)):
            ids.append(np.array(e.ids, np.int16))
            offset[i + j + 1] = offset[i + j] + len(e.ids)
    unique = sorted(set(indents))
    number = {s: i for i, s in enumerate(unique)}
    np.savez(path, ids=np.concatenate(ids), offset=offset, indent=np.array([number[s] for s in indents], np.int32),
             indents=np.array(unique), first=np.array(first), kind=np.array(kinds, np.int8), name=np.array("\n".join(names)),
             paths=np.array([p for p, _ in files]))
    n_bytes = sum(len(text.encode()) for _, text in files)
    print(f"{path}: {len(files)} files, {n_bytes / 1e6:.1f} MB, {offset[-1] + len(lines)} tokens, "
          f"{n_bytes / (offset[-1] + len(lines)):.2f} bytes a token; definitions, settings, sentences: "
          f"{[kinds.count(k) for k in (1, 2, 3)]}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--tokenizer", help="a tokenizer.json to keep, not a new one: what a model that is trained on had")
    a = parser.parse_args()
    work = a.work
    os.makedirs(work, exist_ok=True)
    began, report = time.time(), []
    train, held = read_packages(TRAIN, False, report), read_packages(HELD, True, report)
    # A file that both have (by its text) is no held-out file.
    known = {zlib.crc32(text.encode()) for _, text in train}
    held = [(p, text) for p, text in held if zlib.crc32(text.encode()) not in known]
    open(os.path.join(work, "packages.txt"), "w").write("\n".join(report) + "\n")
    if a.tokenizer:
        t = Tokenizer.from_file(a.tokenizer)
    else:
        t = train_tokenizer(text for p, text in train if zlib.crc32(p.encode()) % 3 == 0)
    t.save(os.path.join(work, "tokenizer.json"))
    for name, files in (("train", train), ("held", held)):
        write_corpus(os.path.join(work, name + ".npz"), files, t)
    print(f"{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
