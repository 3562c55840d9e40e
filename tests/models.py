"""Small transformers with random weights, in folders as `save_pretrained` writes them."""

from pathlib import Path

import torch

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kids", "dogs", "are", "talking", "sitting", "by", "the", "door")


def write_hubert(folder: Path, *, rate: int = 16000, norm: str = "layer", layers: int = 5) -> Path:
    """Write a HuBERT of 24 features; ``norm`` group takes no mask, layer does."""
    import transformers

    torch.manual_seed(1)
    config = transformers.HubertConfig(
        hidden_size=24, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )  # fmt: skip
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=rate, do_normalize=True, return_attention_mask=norm == "layer"
    ).save_pretrained(folder)
    return folder


def write_whisper(folder: Path) -> Path:
    """Write a Whisper of 16 features."""
    import transformers

    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 50}
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    transformers.WhisperModel(transformers.WhisperConfig(**sizes, **tokens)).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """Write a BERT of 20 features that knows a dozen words."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=20, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    words = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=words, model_max_length=16).save_pretrained(folder)
    return folder
