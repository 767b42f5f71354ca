"""The ALBERT of RXNMapper, pretrained on chemical reactions and shipped inside a PyPI wheel."""

from __future__ import annotations

from zoo.card import ModelCard, Source, SourceFile

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"  # the one layer that runs num_hidden_layers times

CARDS = (
    ModelCard(
        name="rxnmapper_albert",
        domain="chemistry",
        title="RXNMapper ALBERT: 12 shared layers, masked-language-modelled on USPTO reactions",
        parameters=735_567,
        licence="MIT",
        paper=(
            "Schwaller, Hoover, Reymond, Strobelt, Laino 2021, Extraction of organic chemistry grammar from "
            "unsupervised learning of chemical reactions, Science Advances 7(15), doi:10.1126/sciadv.abe4166"
        ),
        homepage="https://github.com/rxn4chemistry/rxnmapper",
        config={
            "model_type": "albert",
            "vocab_size": 591,
            "embedding_size": 128,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 12,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "pad_token_id": 0,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "classifier_dropout_prob": 0.1,
        },
        build="zoo.weights.hf:build_mean_pooled",
        tokenizer="zoo.chemistry.tokenizer:smiles_tokenizer",
        tokenizer_files=True,
        source=Source(
            uri="pypi:rxnmapper==0.4.3/rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
            sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
            files=(
                SourceFile(
                    path="config.json",
                    sha256="ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f",
                ),
                SourceFile(
                    path="pytorch_model.bin",
                    sha256="8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
                ),
                SourceFile(
                    path="vocab.txt",
                    sha256="399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd",
                ),
            ),
        ),
        max_length=512,
        special_tokens=2,
        roles={
            "block": (_LAYER,),
            "attention": tuple(f"{_LAYER}.attention.{part}" for part in ("query", "key", "value", "dense")),
            "mlp": (f"{_LAYER}.ffn", f"{_LAYER}.ffn_output"),
            "head": ("classifier", "predictions"),
            "embedding": ("albert.embeddings",),
        },
        depth="num_hidden_layers",
        tasks=("sequence_regression", "sequence_classification", "token_classification", "masked_language_modelling"),
        notes=(
            "Pretrained on whole reactions (reactants>>products), fine-tuned here on single molecules. The file holds "
            "65,792 more numbers than `parameters`: a pooler that the pretraining loss never reached (normal with "
            "standard deviation 0.02, bias zero: its initialisation). Sequence tasks therefore read the mean over "
            "tokens instead. One layer is applied 12 times: depth multiplies activations and time, never parameters."
        ),
    ),
)
