#!/usr/bin/env python3
"""Write the questions that `make bench BENCH=pocket` asks: documents that were not trained on, what is asked about them, and
what is right.

    python questions.py --work DIR --out questions [--context 2K,16K,128K,1M]

OUT/CONTEXT.json is a list of document sets, one a line: {"documents": text, "questions": [{"task", "question", "answer",
"at"}]}. A set with its question fills the context. "at" is the byte of the documents at which the line begins that is
the answer, -1 where the answer is "not found". The questions of a set are spread evenly over it.

For 1M, which is ingested and asked as a user would, OUT/1M.tar.xz has the documents as files (sources/NUMBER/PATH) and
questions.txt, three lines a question: task, question, answer.
"""
import cores  # first: see there

import argparse
import io
import json
import os
import tarfile

import tasks

# tokens, share of made-up lines, most questions of a task that one set gives, questions of a task that are wanted
CONTEXTS = {"2K": (2048, 0.1, 8, 100), "16K": (16384, 0.08, 40, 100), "128K": (131072, 0.065, 100, 100),
            "256K": (262144, 0.03, 100, 100), "1M": (1_000_000, 0.01, 100, 100)}
AS_FILES = ("256K", "1M")
ROOM = 160  # tokens of a question and its answer
MOST_SETS = 40


def evenly(found, n):
    """n of them, by where they stand."""
    found = sorted(found, key=lambda f: f[3])
    if len(found) <= n:
        return found
    return [found[int((i + 0.5) * len(found) / n)] for i in range(n)]


def one_set(t, tokens, made, most):
    ids, starts, found, names, pool = t.documents(tokens - ROOM, made)
    skipped = len(t.opening)
    text = t.decode(ids[skipped:])
    if t.encode(text) != ids[skipped:]:
        raise ValueError("documents do not give back the ids they were decoded from")
    files = [t.decode(ids[a:b]) for a, b in zip(starts, starts[1:] + [len(ids)])]
    out = []
    for task in tasks.KINDS:
        if task == "missing":
            chosen = [(task, t.missing(names, pool), t.not_found, -1) for _ in range(most)]
            chosen = [c for c in chosen if c[1]]
        else:
            chosen = evenly([f for f in found if f[0] == task], most)
        for _, name, body, at in chosen:
            asked, name = name if task == "missing" else (task, name)
            out.append({"task": task, "question": t.random.choice(tasks.ASKED[asked]) + name, "answer": t.decode(body),
                        "at": len(t.decode(ids[skipped:at]).encode()) if at >= 0 else -1})
    return {"documents": text, "questions": out}, files


def write_archive(path, files, questions):
    """The same bytes for the same content."""
    entries = {}
    for i, text in enumerate(files):
        header, body = text.split("\n", 1)
        entries[f"sources/{i:03}/{header.removeprefix('=== ').removesuffix(' ===')}"] = body
    entries["questions.txt"] = "".join(f"{q['task']}\n{q['question']}\n{q['answer']}\n" for q in questions)
    with tarfile.open(path, "w:xz", preset=9) as tar:
        for name, text in entries.items():
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--context", default="2K,16K")
    parser.add_argument("--seed", type=int, default=77)
    a = parser.parse_args()
    held = tasks.Corpus(os.path.join(a.work, "held.npz"))
    os.makedirs(a.out, exist_ok=True)
    for context in a.context.split(","):
        tokens, made, most, wanted = CONTEXTS[context]
        t = tasks.Tasks(held, os.path.join(a.work, "tokenizer.json"), a.seed + tokens)
        count, sets = dict.fromkeys(tasks.KINDS, 0), []
        while min(count.values()) < wanted and len(sets) < MOST_SETS:
            one, files = one_set(t, tokens, made, most)
            one["questions"] = [q for q in one["questions"] if count[q["task"]] < wanted]
            for q in one["questions"]:
                count[q["task"]] += 1
            sets.append(one)
            if context in AS_FILES:
                break
        path = os.path.join(a.out, context + (".tar.xz" if context in AS_FILES else ".json"))
        if context in AS_FILES:
            write_archive(path, files, one["questions"])
        else:
            with open(path, "w", encoding="utf-8") as f:
                f.write("[" + ",\n".join(json.dumps(s, ensure_ascii=False) for s in sets) + "]\n")
        print(f"{path}: {len(sets)} sets, {os.path.getsize(path)} bytes, {count}")


if __name__ == "__main__":
    main()
