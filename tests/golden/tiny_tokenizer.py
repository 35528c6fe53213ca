"""A byte-level BPE of a few hundred ids, in the tokenizer.json form of the published models."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# GLM-5.2's added tokens in its order, from <|endoftext|> on. The first list is dropped by a decoder that
# skips special tokens; the second matches as one token too, but is text to such a decoder.
GLM_SPECIAL = """<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_audio|> <|end_of_audio|>
<|begin_of_transcription|> <|end_of_transcription|> <|code_prefix|> <|code_middle|> <|code_suffix|>""".split()
GLM_PLAIN = """<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <arg_key> </arg_key>
<arg_value> </arg_value> /nothink <|begin_of_box|> <|end_of_box|> <|image|> <|video|>""".split()
DEEPSEEK_FIRST = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]  # ids 0 and 1, below the base vocabulary
KIMI_SPECIAL = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>"]  # above it

FAMILIES = {"glm": ([], GLM_SPECIAL, GLM_PLAIN), "deepseek": (DEEPSEEK_FIRST, [], []), "kimi": ([], KIMI_SPECIAL, [])}


def build(family, n_base):
    """n_base ids of bytes and merges, added tokens where the family has them. Same result every time."""
    first, special, plain = FAMILIES[family]
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=n_base, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=[AddedToken(s, special=True, normalized=False) for s in first])
    tok.train([str(HERE / "sample.txt")], trainer)
    assert tok.get_vocab_size() == n_base, tok.get_vocab_size()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in plain])
    return tok


def quiet_id(tok):
    """The byte 0xff: no UTF-8 text has it, so a checkpoint may do something odd with its embedding."""
    return tok.token_to_id("ÿ")
