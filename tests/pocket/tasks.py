"""Questions over real text, in render format 1, with generated settings and sentences strewn in.

A sequence is what quire shows the model, then a conversation about it, as the chat template has it with thinking off:

    [gMASK]<sop><|user|>=== PATH ===\\n text ... === end of documents ===\\n\\n QUESTION
    <|assistant|><think></think>ANSWER<|user|>QUESTION<|assistant|><think></think>ANSWER<|user|> ...

An answer is a whole line of the documents without its indentation, or "not found". Documents are encoded line by line,
which gives the ids of encoding them whole: see corpus.py on the split pattern.
"""
import random
import re
from collections import Counter

import numpy as np
from tokenizers import Tokenizer

KINDS = ("definition", "setting", "line", "sentence", "missing")
ASKED = {
    "definition": ("Where is ", "Quote the line that defines ", "Find the definition of "),
    "setting": ("What is the value of ", "Find the value of ", "Quote the line that sets "),
    "line": ("Complete the line that begins with ", "Complete: "),
    "sentence": ("Quote the sentence about ", "What is said about "),
}
SHORTEST, LONGEST = 3, 56  # tokens of a line that is asked for


class Corpus:
    def __init__(self, path):
        with np.load(path) as data:
            self.ids, self.offset, self.indent = data["ids"], data["offset"], data["indent"]
            self.first, self.kind, self.name = data["first"], data["kind"], str(data["name"]).split("\n")
            self.indents, self.paths = data["indents"].tolist(), data["paths"].tolist()
        weight = np.sqrt(self.offset[self.first[1:]] - self.offset[self.first[:-1]] + 1.0)
        self.cumulative = np.cumsum(weight / weight.sum())
        self.marked = np.flatnonzero((self.kind == 1) | (self.kind == 2) | (self.kind == 3))
        self.defining = np.flatnonzero((self.kind == 1) | (self.kind == 2))
        words = {w for i in self.defining[::7] for w in re.findall("[A-Z]?[a-z]{2,9}|[A-Z]{2,8}", self.name[i])}
        self.words = sorted(words)


class Tasks:
    """Sequences from one corpus; the same seed, the same sequences."""

    def __init__(self, corpus, tokenizer, seed):
        self.corpus, self.random = corpus, random.Random(seed)
        self.tokenizer = Tokenizer.from_file(tokenizer)
        added = self.tokenizer.token_to_id
        self.opening = [added("[gMASK]"), added("<sop>"), added("<|user|>")]
        self.user = added("<|user|>")
        self.answer = [added("<|assistant|>"), added("<think>"), added("</think>")]
        self.pad = added("<|endoftext|>")
        self.line_feeds = [self.encode("\n" + s) for s in corpus.indents]
        self.line_feed = self.encode("\n")
        self.end_of_documents = self.encode("=== end of documents ===\n\n")
        self.not_found = self.encode("not found")

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    # ---- what is made up ----------------------------------------------------------------------------------

    def word(self):
        r = self.random
        if r.random() < 0.3:
            return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 7)))
        return r.choice(self.corpus.words)

    def made_name(self, pool):
        r = self.random
        words = [r.choice(pool) for _ in range(r.choice((1, 2, 2, 3)))]
        style = r.random()
        if style < 0.5:
            name = "_".join(w.lower() for w in words)
        elif style < 0.65:
            name = "_".join(w.upper() for w in words)
        elif style < 0.8:
            name = words[0].lower() + "".join(w.capitalize() for w in words[1:])
        elif style < 0.9:
            name = ".".join(w.lower() for w in words)
        else:
            name = "-".join(w.lower() for w in words)
        return name + (str(r.randint(0, 99)) if r.random() < 0.15 else "")

    def sibling(self, name, pool):
        """A name that differs from another by one word more, less, or other."""
        r = self.random
        word, cut = r.choice(pool), name.rsplit("_", 1)[0]
        word = word.upper() if name.isupper() else word.lower()
        return r.choice((name + "_" + word, name + "_" + word, word + "_" + name, cut + "_" + word, cut))

    def made_value(self):
        r, kind = self.random, self.random.random()
        if kind < 0.2:
            return str(r.randint(0, 10 ** r.randint(1, 6)))
        if kind < 0.4:
            return ("0x" if r.random() < 0.4 else "") + f"{r.getrandbits(r.choice((16, 24, 32))):x}"
        if kind < 0.55:
            return self.word()
        if kind < 0.75:
            return '"' + " ".join(self.word() for _ in range(r.randint(1, 4))) + '"'
        if kind < 0.85:
            return "/" + "/".join(self.word().lower() for _ in range(r.randint(1, 3)))
        return " ".join(self.word() for _ in range(r.randint(2, 5)))

    def made_line(self, kind, name, pool):
        r = self.random
        if kind == "setting":
            form = r.choice(("%s = %s", "%s = %s", "%s: %s", "%s=%s", '"%s": %s,', "let %s = %s;", "#define %s %s"))
            return form % (name, self.made_value())
        if kind == "sentence":
            form = r.choice(("The %s of %s is %s.", "Every %s near %s keeps %s.", "It was the %s that gave %s its %s.",
                             "Nobody asked the %s about %s and %s.", "A %s called %s stands for %s."))
            return form % (self.word().lower(), name, " ".join(self.word().lower() for _ in range(r.randint(1, 4))))
        arguments = ", ".join(r.choice(pool).lower() + r.choice(("", "", "=None", f"={r.randint(0, 9)}"))
                              for _ in range(r.randint(0, 4)))
        form = r.choice(("def %s(%s):", "def %s(%s):", "def %s(self, %s):", "class %s(%s):", "function %s(%s) {",
                         "static int %s(%s)", "void %s(%s);", "async def %s(%s):", "struct %s { int %s; };",
                         "func %s(%s) error {", "pub fn %s(%s) {", "#define %s(%s)", "const %s = (%s) => {",
                         "sub %s { my (%s) = @_;"))
        return form % (name, arguments)

    # ---- documents ----------------------------------------------------------------------------------------

    def documents(self, n_tokens, made):
        """(ids, starts of documents, [(kind, key text, answer ids, position)], names that occur, pool of words).

        made: the share of lines after which a made-up line follows.
        """
        r, c = self.random, self.corpus
        ids, starts, found, lines, names, made_names = list(self.opening), [], [], [], Counter(), []
        pool = [self.word() for _ in range(r.randint(5, 24))]
        large = r.random() < 0.6

        def add_made():
            name = self.made_name(pool)
            if r.random() < 0.45 and (names or made_names):
                name = self.sibling(r.choice(made_names[-30:] if made_names and r.random() < 0.7 else
                                             list(names)[-30:] or made_names), pool)
            if not name or name in names:
                return
            kind = r.choice(("setting", "setting", "definition", "sentence"))
            if kind != "setting" and not name.replace("_", "a").isalnum():
                return
            body = self.encode(self.made_line(kind, name, pool))
            ids.extend(r.choice(self.line_feeds) if r.random() < 0.3 else self.line_feed)
            found.append((kind, name, body, len(ids)))
            lines.append((body, len(ids)))
            ids.extend(body)
            names[name] += 1
            made_names.append(name)

        while len(ids) < n_tokens - 24:
            f = min(int(np.searchsorted(c.cumulative, r.random())), len(c.paths) - 1)
            a, b = int(c.first[f]), int(c.first[f + 1])
            most = n_tokens - len(ids)
            want = r.randint(most // 2, most) if large else r.randint(60, max(80, n_tokens // 2))
            starts.append(len(ids))
            path = c.paths[f].split("/")
            ids.extend(self.encode(f"=== {'/'.join(path[-r.randint(1, min(4, len(path) - 1)):])} ==="))
            i, begin = a, len(ids)
            if r.random() < 0.8:
                i = r.randint(a, max(a, b - 15))
                x, y = np.searchsorted(c.marked, (a, b))
                if y > x and r.random() < 0.6:
                    i = max(a, int(c.marked[r.randrange(x, y)]) - r.randint(0, 6))
            while i < b and len(ids) - begin < want and len(ids) < n_tokens:
                body = c.ids[c.offset[i]:c.offset[i + 1]].tolist()
                ids.extend(self.line_feeds[c.indent[i]])
                if body and c.kind[i]:
                    lines.append((body, len(ids)))
                    if c.kind[i] < 3:
                        name = c.name[i]
                        names[name] += 1
                        found.append((KINDS[c.kind[i] - 1], name, body, len(ids)))
                    elif c.kind[i] == 3:
                        found.append(("sentence", None, body, len(ids)))
                ids.extend(body)
                i += 1
                if r.random() < made:
                    add_made()
            ids.extend(self.line_feed)
        text = np.array(ids, np.int16).tobytes()
        out = []
        for kind, name, body, at in found:
            if not SHORTEST <= len(body) <= LONGEST or (name and names[name] > 1):
                continue
            if name is None:  # a word of the sentence that stands nowhere else
                words = [w for w in re.findall("[A-Za-z]{5,}", self.decode(body))]
                r.shuffle(words)
                for word in words[:3]:
                    if text.count(np.array(self.encode(word), np.int16).tobytes()) == 1:
                        name = word
                        break
            if name:
                out.append((kind, name, body, at))
        begun = Counter(tuple(body[:k]) for body, _ in lines for k in range(3, 9) if len(body) > k)
        for body, at in r.sample(lines, min(len(lines), max(12, len(out) // 2))):
            n = r.randint(3, max(3, min(8, len(body) - 2)))
            if 6 <= len(body) <= LONGEST and begun[tuple(body[:n])] == 1:
                prefix = self.decode(body[:n])
                if prefix == prefix.strip():
                    out.append(("line", prefix, body, at))
        return ids, starts, out, names, pool

    def missing(self, names, pool):
        """A question of a kind about a name that stands nowhere."""
        r = self.random
        for _ in range(8):
            if r.random() < 0.5 and names:
                name = self.sibling(r.choice(list(names)), pool)
            elif r.random() < 0.5:
                name = self.made_name(pool)
            else:
                name = self.corpus.name[self.corpus.defining[r.randrange(len(self.corpus.defining))]]
            if name and name not in names and name.strip():
                return r.choice(("definition", "setting", "sentence")), name
        return None

    # ---- sequences ----------------------------------------------------------------------------------------

    def sample(self, n_tokens, made=None, gaps=0.6, context=None, n_questions=None, kinds=KINDS, share=(0.25, 0.5)):
        """A dict of arrays of n_tokens: ids, positions; weight of each id as a target, kind and number of the question
        it answers (-1: none). "context": where the documents end. "sources": (first answer position, length, position
        of the line in the documents or -1, kind). share: the least and the largest part of the sequence that is
        questions."""
        r = self.random
        context = context or int(n_tokens * (1 - r.uniform(*share)))
        if made is None:
            made = r.choice((0.0, 0.02, 0.1, 0.3) if n_tokens < 4096 else (0.0, 0.02, 0.05, 0.1))
        ids, starts, found, names, pool = self.documents(context, made)
        r.shuffle(found)
        for _ in range(max(1, len(found) // 6)):
            nothing = self.missing(names, pool)
            if nothing:
                found.insert(r.randint(0, min(len(found), 10)), ("missing", nothing, self.not_found, -1))
        starts.append(len(ids))
        ids.extend(self.end_of_documents)
        n_context = len(ids)
        weight, kind, number, sources = [0.0] * n_context, [-1] * n_context, [-1] * n_context, []
        for what, name, body, at in found:
            if len(sources) == n_questions or n_tokens - len(ids) < 20:
                break
            if what not in kinds:
                continue
            asked, name = name if what == "missing" else (what, name)
            question = self.encode(r.choice(ASKED[asked]) + name) + self.answer
            answer = body + [self.user]
            if len(ids) + len(question) + len(answer) > n_tokens:
                continue
            sources.append((len(ids) + len(question), len(answer), at, KINDS.index(what)))
            ids += question + answer
            weight += [0.0] * len(question) + ([3.0, 1.5, 1.5] + [1.0] * len(answer))[:len(answer)]
            kind += [-1] * len(question) + [KINDS.index(what)] * len(answer)
            number += [-1] * len(question) + [len(sources) - 1] * len(answer)
        n = len(ids)
        pad = n_tokens - n
        return {
            "ids": np.array(ids + [self.pad] * pad)[:n_tokens], "positions": self.positions(n_tokens, starts, gaps),
            "weight": np.array(weight + [0.0] * pad, np.float32)[:n_tokens],
            "kind": np.array(kind + [-1] * pad)[:n_tokens], "number": np.array(number + [-1] * pad)[:n_tokens],
            "context": n_context, "n": min(n, n_tokens), "sources": sources,
        }

    def positions(self, n_tokens, starts, gaps, largest=1_000_000):
        """0, 1, 2 ...; in a share of the sequences with jumps where documents and questions begin, up to a million."""
        r, p = self.random, np.arange(n_tokens)
        if r.random() < gaps:
            scale = 10 ** r.uniform(2, 6)
            if r.random() < 0.5:
                p = p + r.randint(0, int(scale))
            for at in starts:
                if at < n_tokens and r.random() < 0.7:
                    p[at:] += int(scale * r.random() ** 2)
            if p[-1] >= largest:
                p = p - p[0] + 1 if p[-1] - p[0] < largest - 1 else np.arange(n_tokens)
        return p
