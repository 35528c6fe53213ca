#!/usr/bin/env python3
"""Write the questions that `make bench BENCH=pocket` asks: documents that were not trained on, what is asked about them, and
what is right.

    python questions.py --work DIR --out questions [--context 2K,16K,128K]

OUT/CONTEXT.json is a list of document sets, one a line: {"documents": text, "questions": [{"task", "question", "answer",
"at"}]}. A set with its question fills the context. "at" is the byte of the documents at which the line begins that is
the answer, -1 where the answer is "not found". The questions of a set are spread evenly over it.
"""
import cores  # first: see there

import argparse
import json
import os

import tasks

# tokens, share of made-up lines, most questions of a task that one set gives, questions of a task that are wanted
CONTEXTS = {"2K": (2048, 0.1, 8, 100), "16K": (16384, 0.08, 40, 100), "128K": (131072, 0.065, 100, 100)}
ROOM = 160  # tokens of a question and its answer
MOST_SETS = 40


def evenly(found, n):
    """n of them, by where they stand."""
    found = sorted(found, key=lambda f: f[3])
    if len(found) <= n:
        return found
    return [found[int((i + 0.5) * len(found) / n)] for i in range(n)]


def one_set(t, tokens, made, most):
    ids, _, found, names, pool = t.documents(tokens - ROOM, made)
    skipped = len(t.opening)
    text = t.decode(ids[skipped:])
    if t.encode(text) != ids[skipped:]:
        raise ValueError("documents do not give back the ids they were decoded from")
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
    return {"documents": text, "questions": out}


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
            one = one_set(t, tokens, made, most)
            one["questions"] = [q for q in one["questions"] if count[q["task"]] < wanted]
            for q in one["questions"]:
                count[q["task"]] += 1
            sets.append(one)
        path = os.path.join(a.out, context + ".json")
        with open(path, "w", encoding="utf-8") as f:
            f.write("[" + ",\n".join(json.dumps(s, ensure_ascii=False) for s in sets) + "]\n")
        print(f"{path}: {len(sets)} sets, {os.path.getsize(path)} bytes, {count}")


if __name__ == "__main__":
    main()
