#!/usr/bin/env python3
"""Make tests/golden/tokenizer/: two byte-level BPE tokenizers and what the tokenizers library makes of 20,500 strings.

Run by hand on a Debian machine, never by make test:

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.23.3
    /tmp/venv/bin/python tests/golden/make_tokenizer.py             (a minute)
    /tmp/venv/bin/python tests/golden/make_tokenizer.py --unicode   prints the rows of engine/unicode_new.h;
                                                                    needs a Python with Unicode 14 (3.11)

Vocabularies are trained on what the machine's packages installed below /usr: sources, documentation and message
catalogues. Nothing of that text is in the files: the strings are generated here, from word pieces of the trained
vocabulary and the templates below. The seed is fixed; another set of packages gives other vocabularies.

glm.json       GLM's pattern, ignore_merges, some tokens that no merge leads to, merges as ["a", "b"]
deepseek.json  the DeepSeek-V3 form: three splits in sequence, merges as "a b", added tokens listed in the
               vocabulary too and matched in two passes

corpus.bin, little-endian:
    "quiretok"                            8 bytes
    u32 n                                 strings
    u32 m                                 sweep blocks
    u32 crc[2][m]                         for each tokenizer and each block of 4096 code points, CRC-32 of the ids (u32
                                          each) of the block's string: for each code point c that is no surrogate
                                          c "a" c " " c "1" c "\\n" c c, added tokens off
    n times:
        u16 bytes, UTF-8 text
        for glm, deepseek:
            u16 k, u16 ids[k]             added tokens off
            u16 k, u16 ids[k]             added tokens on; k = 0xffff: the same ids
"""
import gettext
import json
import os
import random
import struct
import sys
import zlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")

GLM = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
       r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]

GLM_SPECIAL = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
               "<|assistant|>", "<|observation|>"]
GLM_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>",
             "</arg_key>", "<arg_value>", "</arg_value>"]
DEEPSEEK_SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
DEEPSEEK_ADDED = ["<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<｜fim▁hole｜>", "<｜User｜>x"]


def training_text():
    kinds = ("c h cc hpp py pl pm sh js ts php tcl cmake sql html css xml md rst txt vim f90 el awk").split()
    files = {k: [] for k in kinds}
    for top in ("/usr/include", "/usr/lib", "/usr/share"):
        for folder, _, names in os.walk(top):
            for name in names:
                kind = name.rsplit(".", 1)[-1]
                path = os.path.join(folder, name)
                if kind in files and os.path.isfile(path) and os.path.getsize(path) < 200_000:
                    files[kind].append(path)
    for kind in kinds:
        left = 600_000
        for path in sorted(files[kind], key=lambda p: zlib.crc32(p.encode())):
            if left <= 0:
                break
            text = open(path, encoding="utf-8", errors="ignore").read()
            left -= len(text)
            yield text
    for language in ("zh_CN", "zh_TW", "ja", "ko", "ru", "de", "fr", "ar", "hi", "el"):
        folder = f"/usr/share/locale/{language}/LC_MESSAGES"
        left = 250_000
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            try:
                catalogue = gettext.GNUTranslations(open(os.path.join(folder, name), "rb"))
            except Exception:  # a malformed catalogue is no loss
                continue
            text = "\n".join(v for v in catalogue._catalog.values() if isinstance(v, str))[:left]
            left -= len(text)
            yield text


def train(splits, size, text):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in splits] +
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def added(text, i, special, normalized):
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": normalized, "special": special}


def make_glm(text):
    t = train([GLM], 9700, text)
    form = json.loads(t.to_str())
    vocab = form["model"]["vocab"]
    # Tokens that no merge leads to: ignore_merges alone makes them.
    count = {}
    for piece in text[::7]:
        for word, _ in t.pre_tokenizer.pre_tokenize_str(piece):
            count[word] = count.get(word, 0) + 1
    for word in sorted(count, key=lambda w: (-count[w], w)):
        if len(vocab) == 10000:
            break
        if word not in vocab and len(word) <= 24:
            vocab[word] = len(vocab)
    form["model"]["ignore_merges"] = True
    form["added_tokens"] = [added(s, len(vocab) + i, i < len(GLM_SPECIAL), False)
                            for i, s in enumerate(GLM_SPECIAL + GLM_ADDED)]
    return form


def make_deepseek(text):
    form = json.loads(train(DEEPSEEK, 8000, text).to_str())
    old = form["model"]["vocab"]
    vocab = {s: i for i, s in enumerate(DEEPSEEK_SPECIAL)}
    for word in sorted(old, key=old.get):
        vocab[word] = len(vocab)
    form["model"]["vocab"] = vocab
    form["model"]["merges"] = [" ".join(m) for m in form["model"]["merges"]]
    form["normalizer"] = {"type": "Sequence", "normalizers": []}
    form["added_tokens"] = ([added(s, i, True, False) for i, s in enumerate(DEEPSEEK_SPECIAL)] +
                            [added(s, len(vocab) + i, False, True) for i, s in enumerate(DEEPSEEK_ADDED)])
    return form


def without_added_tokens(form):
    """The library has no switch for this: a tokenizer that never had any."""
    form = json.loads(json.dumps(form))
    for token in form["added_tokens"]:
        form["model"]["vocab"].pop(token["content"], None)
    form["added_tokens"] = []
    return form


# ---- Strings -------------------------------------------------------------------------------------------------

TEMPLATES = {
    "c": ["static int {w}_{w}(struct {w} *{w}, size_t {w})\n{{\n\treturn {w}->{w}[{n}] & 0x{h};\n}}\n",
          "#define {W}_{W} ({n}u << {n})\n", "for (int i = 0; i < {n}; i++)\n\t\t{w}[i] += {w}(&{w}, \"{s}\");\n",
          "/* {p} */\n#include <{w}/{w}.h>\n"],
    "c++": ["template <typename {C}>\nclass {C}{C} : public {w}::{C}<{C}> {{\npublic:\n    explicit {C}(std::{w} {w});\n}};\n",
            "auto {w} = std::make_unique<{C}>({n}, \"{s}\"); // {p}\n"],
    "python": ["def {w}_{w}(self, {w}: int = {n}) -> {C}:\n    \"\"\"{p}\"\"\"\n    return [{w} for {w} in {w}.{w}() if {w} != '{s}']\n",
               "@{w}.{w}\nclass {C}({C}):\n    {w}: dict[str, {C}] = {{\"{s}\": {n}.{n}}}\n", "print(f\"{{{w}!r:>{n}}} {s}\")\n"],
    "javascript": ["const {{ {w}, {w} }} = await import('./{w}/{w}.js');\n", "export default ({w}) => {w}?.{w}?.[{n}] ?? `{s}${{{w}}}`;\n"],
    "rust": ["pub fn {w}<'a, {C}: {C} + 'a>(&'a mut self, {w}: &[u8]) -> Result<Vec<{C}>, {C}> {{\n    self.{w}.iter().map(|x| x << {n}).collect()\n}}\n",
             "#[derive(Debug)]\nenum {C} {{ {C}(u{n}), {C} {{ {w}: f32 }} }}\n"],
    "go": ["func ({w} *{C}) {C}{C}(ctx context.Context) (int, error) {{\n\tif err := {w}.{C}(); err != nil {{\n\t\treturn {n}, err\n\t}}\n}}\n"],
    "java": ["@Override\npublic final Map<String, List<{C}>> get{C}(int {w}) throws {C}Exception {{ return this.{w}; }}\n"],
    "shell": ["for {w} in \"$@\"; do [ -z \"${{{w}:-}}\" ] && echo \"{s}: $?\" >&2 || exit {n}; done\n",
              "{w} | sed -e 's/{w}/{w}/g' | awk '{{print ${n}}}' > /tmp/{w}.$$\n"],
    "sql": ["SELECT {w}.{w}, COUNT(*) AS {w} FROM {w} LEFT JOIN {w} ON {w}.id = {w}.{w}_id WHERE {w} LIKE '%{s}%' LIMIT {n};\n"],
    "html": ["<div class=\"{w}-{w}\" id='{w}'>&nbsp;{p} <a href=\"https://{w}.org/{w}?{w}={n}&amp;{w}#{w}\">{s}</a></div>\n"],
    "json": ["{{\"{w}\": [{n}, -{n}.{n}e-{n}, null, true], \"{w}_{w}\": {{\"{s}\": \"\\u00{h}\"}}}}\n"],
    "yaml": ["{w}:\n  - name: {s}\n    {w}: {n}\n    {w}: [{w}, *{w}]\n"],
    "perl": ["my %{w} = map {{ $_ => {n} }} grep {{ /^{w}\\s+(\\d{{{n}}})$/x }} @{w};\n"],
    "asm": ["\tvfmadd231ps\t%zmm{n}, {n}(%rsp,%r{n},8), %zmm{n}\n.L{n}:\n"],
    "diff": ["@@ -{n},{n} +{n},{n} @@ {w}\n-\t{w}({w});\n+\t{w}({w}, {n});\n"],
    "markdown": ["## {p}\n\n* **{w}** - `{w}({n})` - {p}\n\n| {w} | {w} |\n|---|---:|\n| {s} | {n} |\n"],
}
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2000", "\u2003", "\u200a", "\u2028",
          "\u2029", "\u202f", "\u205f", "\u3000"]
NEAR_SPACES = ["\u180e", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\x7f", "\x80"]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'lL", "'D", "'\u017f", "\u2019s", "''s", "'",
                "'\u017ft", "'r", "'l"]
EMOJI = ["\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "1\ufe0f\u20e3",
         "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001fae8", "\U0001fa75", "\U0001f9d1\u200d\U0001f4bb", "\u263a"]
DIGITS = "0123456789٠١٢٣٤٥०१२३四五½¼²³ⅣⅫ①⑩𝟘𝟙𑄶"


class Strings:
    def __init__(self, pieces, seed):
        self.rng = random.Random(seed)
        self.words = [p for p in pieces if p.isalpha() and p.islower() and len(p) > 1]
        self.pieces = pieces

    def word(self):
        return "".join(self.rng.choice(self.words) for _ in range(self.rng.choice([1, 1, 1, 2, 3])))

    def number(self):
        return str(self.rng.getrandbits(self.rng.choice([3, 5, 8, 16, 32, 64])))

    def phrase(self):
        words = [self.word() for _ in range(self.rng.randint(2, 8))]
        if self.rng.random() < 0.5:
            words[0] = words[0].capitalize()
        if self.rng.random() < 0.3:
            words[-1] += self.rng.choice(CONTRACTIONS)
        return " ".join(words)

    def code(self):
        out = self.rng.choice(self.rng.choice(list(TEMPLATES.values())))
        text, at = "", 0
        make = {"w": self.word, "W": lambda: self.word().upper(), "C": lambda: self.word().capitalize(),
                "n": self.number, "h": lambda: "%02x" % self.rng.getrandbits(8), "p": self.phrase,
                "s": lambda: self.rng.choice([self.word, self.phrase, self.foreign])()}
        while at < len(out):
            if out.startswith(("{{", "}}"), at):
                text += out[at]
                at += 2
            elif out[at] == "{":
                text += make[out[at + 1]]()
                at += 3
            else:
                text += out[at]
                at += 1
        return ("    " * self.rng.randint(0, 3) if self.rng.random() < 0.4 else "") + text

    def prose(self):
        return "".join(self.phrase() + self.rng.choice([". ", ", ", "; ", "?\n", "!\n\n", " -- ", "... ", ": "])
                       for _ in range(self.rng.randint(1, 4)))

    def foreign(self):
        r = self.rng
        ranges = r.choice([[(0x4e00, 0x5fff)], [(0x4e00, 0x9fa5), (0x3041, 0x3096)], [(0x30a1, 0x30fa), (0x3041, 0x3096)],
                           [(0xac00, 0xd7a3)], [(0x430, 0x44f)], [(0x5d0, 0x5ea)], [(0x627, 0x64a), (0x64b, 0x652)],
                           [(0x905, 0x939), (0x93e, 0x94d)], [(0xe01, 0xe3a)], [(0x3b1, 0x3c9)], [(0xe0, 0xff)],
                           [(0x9fa6, 0x9fff), (0x4e00, 0x4eff)], [(0x20000, 0x2a6df)], [(0x1100, 0x11ff)]])
        out = ""
        for _ in range(r.randint(1, 14)):
            out += chr(r.randint(*r.choice(ranges)))
            if r.random() < 0.1:
                out += r.choice([" ", "\u3001", "\u3002", "\uff0c", "\uff1a", "1", "a", "\n", "\u30fc"])
        return out

    def emoji(self):
        return "".join(self.rng.choice([self.rng.choice(EMOJI), self.rng.choice(EMOJI), " ", self.word()])
                       for _ in range(self.rng.randint(1, 8)))

    def spaces(self):
        out = ""
        for _ in range(self.rng.randint(1, 10)):
            out += self.rng.choice(SPACES if self.rng.random() < 0.7 else NEAR_SPACES) * self.rng.choice([1, 1, 1, 2, 3, 7])
            if self.rng.random() < 0.4:
                out += self.rng.choice([self.word(), ".", "1", "\u4e2d", "\u0301", "(", "'s", "x\u0301"])
        return out

    def control(self):
        return "".join(chr(self.rng.choice([self.rng.randint(0, 0x20), self.rng.randint(0x7f, 0xa0), 0x61, 0x31,
                                            self.rng.randint(0x200b, 0x206f), 0xfffd, 0xfffe, 0xe000]))
                       for _ in range(self.rng.randint(1, 20)))

    def digits(self):
        return "".join(self.rng.choice([self.rng.choice(DIGITS), self.rng.choice("0123456789"), self.rng.choice(" ,.-x\n")])
                       for _ in range(self.rng.randint(1, 24)))

    def unicode(self):
        out = ""
        for _ in range(self.rng.randint(1, 10)):
            c = self.rng.choice([self.rng.randint(0, 0x2fff), self.rng.randint(0, 0xffff), self.rng.randint(0, 0x1ffff),
                                 self.rng.randint(0, 0x10ffff), self.rng.choice([0x1c89, 0x10d4a, 0x11bc0, 0x1fae9, 0x2ebf0,
                                                                                 0x323af, 0x897, 0x1e5d0, 0x105c0])])
            out += "" if 0xd800 <= c < 0xe000 else chr(c)
            out += self.rng.choice(["", "", " ", "a", "1", "\n", "."])
        return out

    def marks(self):
        return "".join(self.rng.choice([self.word(), " ", "\n", "1"]) + chr(self.rng.randint(0x300, 0x36f)) * self.rng.choice([1, 2, 3, 20])
                       for _ in range(self.rng.randint(1, 4)))

    def runs(self):
        r = self.rng
        return "".join(r.choice(["a", "=", "-", " ", "\n", "A", "0", "\u4e2d", "/", "ab", "Ab1", "\u00e9", "\t", "\r\n"]) *
                       r.choice([2, 3, 4, 7, 15, 16, 17, 31, 40, 41, 63, 100]) for _ in range(r.randint(1, 2)))

    def base64(self):
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + self.rng.choice(["0123456789+/", "", "-_"])
        return "".join(self.rng.choice(alphabet) for _ in range(self.rng.randint(1, 160))) + "=" * self.rng.randint(0, 2)

    def tokens(self):
        every = GLM_SPECIAL + GLM_ADDED + DEEPSEEK_SPECIAL + DEEPSEEK_ADDED
        out = ""
        for _ in range(self.rng.randint(1, 6)):
            t = self.rng.choice(every)
            if self.rng.random() < 0.2:
                cut = self.rng.randrange(len(t))
                t = t[:cut] + self.rng.choice(["", " ", t[:cut]]) + t[cut + 1:]
            out += t + self.rng.choice(["", "", " ", "\n", self.word(), "\u4e2d\u6587", "x"])
        return out

    def joined(self):
        return "".join(self.rng.choice(self.pieces) for _ in range(self.rng.randint(1, 16)))

    def mixed(self):
        return "".join(self.any()[:40] for _ in range(self.rng.randint(2, 4)))

    def any(self):
        return self.rng.choice([self.code, self.code, self.code, self.prose, self.foreign, self.emoji, self.spaces, self.control, self.digits,
                                self.unicode, self.marks, self.runs, self.base64, self.tokens, self.joined])()

    def all(self, n):
        seen = {""}
        yield ""
        while len(seen) < n:
            s = self.any() if self.rng.random() < 0.9 else self.mixed()
            s = s[:140]
            if s not in seen:
                seen.add(s)
                yield s


def sweep_string(block):
    return "".join(f"{c}a{c} {c}1{c}\n{c}{c}" for c in map(chr, range(block * 4096, block * 4096 + 4096))
                   if not "\ud800" <= c <= "\udfff")


def write_ids(out, ids):
    assert max(ids, default=0) < 0xffff and len(ids) < 0xffff
    out += struct.pack(f"<H{len(ids)}H", len(ids), *ids)


def main():
    text = list(training_text())
    print(sum(map(len, text)), "characters of training text", flush=True)
    forms = {"glm": make_glm(text), "deepseek": make_deepseek(text)}
    pairs = []
    for name, form in forms.items():
        compact = json.dumps(form, ensure_ascii=False, separators=(",", ":"))
        open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8").write(compact + "\n")
        on = Tokenizer.from_str(compact)
        off = Tokenizer.from_str(json.dumps(without_added_tokens(form)))
        for token in form["added_tokens"]:
            assert on.token_to_id(token["content"]) == token["id"], token
        pairs.append((off, on))
    pieces = []
    for i in range(256, 9700):
        piece = pairs[0][1].decode([i], skip_special_tokens=False)
        if piece and "\ufffd" not in piece:
            pieces.append(piece)
    out = bytearray(b"quiretok")
    strings = list(Strings(pieces, 52).all(20500))
    blocks = 0x110000 // 4096
    out += struct.pack("<II", len(strings), blocks)
    for off, _ in pairs:
        for block in range(blocks):
            ids = off.encode(sweep_string(block), add_special_tokens=False).ids
            out += struct.pack("<I", zlib.crc32(struct.pack(f"<{len(ids)}I", *ids)))
    for s in strings:
        data = s.encode()
        out += struct.pack("<H", len(data)) + data
        for off, on in pairs:
            a = off.encode(s, add_special_tokens=False).ids
            b = on.encode(s, add_special_tokens=False).ids
            write_ids(out, a)
            if a == b:
                out += struct.pack("<H", 0xffff)
            else:
                write_ids(out, b)
    open(os.path.join(HERE, "corpus.bin"), "wb").write(out)
    print(len(strings), "strings,", len(out), "bytes")


def unicode_rows():
    import unicodedata
    assert unicodedata.unidata_version == "14.0.0"
    every = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    rows = []
    for category in "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So".split():
        split = pre_tokenizers.Split(Regex(r"\p{%s}" % category), "removed")
        for at in range(0, len(every), 4096):
            block = every[at:at + 4096]
            rest = set()
            for _, (first, end) in split.pre_tokenize_str("".join(map(chr, block))):
                rest.update(range(first, end))
            rows += [(c, category) for i, c in enumerate(block) if i not in rest and unicodedata.category(chr(c)) == "Cn"]
    ranges = []
    for c, category in sorted(rows):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == category:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, category])
    for first, last, category in ranges:
        print('{0x%x, 0x%x, "%s"},' % (first, last, category))


if __name__ == "__main__":
    unicode_rows() if "--unicode" in sys.argv else main()
