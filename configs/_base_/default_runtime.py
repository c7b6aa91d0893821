# Logs, checkpoints, curves and images of a run, in epochs: the same for all detection configs.
default_scope = "mmdet"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="mm_vitbackbones.AtomicCheckpointHook", interval=1, max_keep_ckpts=1, save_best="auto"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # Here, and not in custom_hooks, which a config of your own replaces.
    epoch_seed=dict(type="mm_vitbackbones.EpochSeedHook"),
    curves=dict(type="mm_vitbackbones.CurvesHook"),
    plain_checkpoint=dict(type="mm_vitbackbones.PlainCheckpointHook"),
    same_classes=dict(type="mm_vitbackbones.SameClassesHook"),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="DetLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False
