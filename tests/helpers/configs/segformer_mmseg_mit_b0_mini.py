# configs/segformer_mit_b0_mini.py with mmseg's own MiT-B0 and SegformerHead: what ours are compared with.
#   python tools/train.py tests/helpers/configs/segformer_mmseg_mit_b0_mini.py --seed 0
_base_ = "../../../configs/segformer_mit_b0_mini.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="MixVisionTransformer",
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        qkv_bias=True,
        drop_path_rate=0.0,
    ),
    decode_head=dict(type="SegformerHead", in_index=[0, 1, 2, 3]),
)
