"""The names of transformers' TrainingArguments, TRL's SFTConfig, ModelConfig and ScriptArguments, and LLaMA-Factory.

A name of theirs is honoured (`SAME`, and `convert.SPECIAL` where its value changes on the way), not needed here
(`NOT_NEEDED`), or refused because the result would be another one (`REFUSED`), unless it says what holds here anyway.
"""

from __future__ import annotations

# Theirs -> ours, the value as it is.
SAME = {
    "model_name_or_path": "model",
    "output_dir": "out",
    "num_train_epochs": "epochs",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "max_samples": "max_rows",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_dora": "lora.dora",
    "use_rslora": "lora.rslora",
    "lora.r": "lora.rank",
    "lora.use_dora": "lora.dora",
    "lora.use_rslora": "lora.rslora",
    "lora.lora_alpha": "lora.alpha",
    "lora.lora_dropout": "lora.dropout",
    "default_system": "system",
    "chat_template_path": "template",
    "early_stopping_patience": "patience",
    "early_stopping_steps": "patience",
}
# The same for `instructrec evaluate`.
SAME_IN_EVALUATE = {"per_device_eval_batch_size": "batch_rows", "default_system": "system"}

# Why -> names that may say what they like: the result is the same.
_LEFT = {
    "each step is logged": "logging_steps logging_strategy logging_first_step logging_nan_inf_filter logging_dir "
    "log_level log_level_replica log_on_each_node disable_tqdm include_num_input_tokens_seen skip_memory_metrics "
    "include_tokens_per_second include_effective_tokens_per_second print_param_status debug",
    "loss.png is always drawn": "plot_loss",
    "rows are read and rendered in one process": "overwrite_cache preprocessing_num_workers preprocessing_batch_size "
    "dataset_num_proc dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor data_shared_file_system buffer_size streaming dataset_streaming remove_unused_columns",
    "the rows files are found": "dataset_dir",
    "a folder that holds files is never overwritten": "overwrite_output_dir",
    "the last and the best checkpoint are kept, with all they need": "save_total_limit save_strategy save_only_model "
    "save_safetensors save_on_each_node restore_callback_states_from_checkpoint",
    "processes come from 'accelerate launch'": "ddp_timeout ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers local_rank deepspeed fsdp fsdp_config accelerator_config parallelism_config",
    "speed and memory depend on it, not the result": "flash_attn attn_implementation use_unsloth use_unsloth_gc "
    "enable_liger_kernel use_liger_kernel liger_kernel_config torch_compile torch_compile_backend torch_compile_mode "
    "torchdynamo tf32 use_fast_tokenizer low_cpu_mem_usage torch_empty_cache_steps group_by_length length_column_name "
    "auto_find_batch_size use_reentrant_gc gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant "
    "activation_offloading use_v1_kernels padding_free pad_to_multiple_of use_cpu no_cuda use_mps_device "
    "half_precision_backend use_ipex jit_mode_eval",
    "the held-out rows are looked at in batches that fit": "per_device_eval_batch_size prediction_loss_only "
    "eval_accumulation_steps "
    "bf16_full_eval fp16_full_eval eval_delay eval_on_start eval_packing eval_use_gather_object batch_eval_metrics "
    "eval_do_concat_batches include_inputs_for_metrics include_for_metrics eval_on_each_dataset label_names",
    "tune tunes, and 'instructrec evaluate RUN ROWS' measures": "do_eval do_predict predict_with_generate "
    "generation_max_length generation_num_beams eval_num_beams compute_accuracy",
    "rows hold text only": "media_dir freeze_vision_tower freeze_multi_modal_projector freeze_language_model "
    "crop_to_patches use_audio_in_video",
    "code out of model folders is never run": "trust_remote_code",
    "HF_TOKEN and HF_HOME hold": "cache_dir hf_hub_token ms_hub_token om_hub_token hub_token token use_auth_token",
    "a run is called by its folder": "run_name project trackio_space_id",
    "wandb, mlflow and tensorboard are the trackers here": "use_swanlab",
    "tokens are weighted alike on all processes, padding is never learned": "average_tokens_across_devices "
    "ignore_pad_token_for_loss ignore_bias_buffers",
    "a run with the same seed is the same run": "full_determinism ignore_data_skip",
    "text of rows never becomes a control token": "split_special_tokens",
    "logits are in fp32 anyway": "upcast_lmhead_output",
    "for serving": "infer_backend infer_dtype offload_folder use_kv_cache",
    "the adapter says so itself": "lora_task_type",
    "watch says so itself": "greater_is_better",
    "only training rows are tuned on": "dataset_test_split",
}
NOT_NEEDED = {name: why for why, names in _LEFT.items() for name in names.split()}
# The same for whole families of names.
NOT_NEEDED_BEGIN = {
    **dict.fromkeys(("vllm_", "sglang_", "export_"), "for serving and export"),
    **dict.fromkeys(("image_", "video_", "audio_"), "rows hold text only"),
    **dict.fromkeys(("galore_", "apollo_", "badam_", "swanlab_"), "its switch is what counts"),
    **dict.fromkeys(
        ("pref_", "ppo_", "dpo_", "kto_", "simpo_", "ref_model", "reward_model"), "for stages other than sft"
    ),
    **dict.fromkeys(("oft_", "freeze_trainable_", "freeze_extra_"), "for finetuning types other than lora and full"),
    **dict.fromkeys(("bnb_", "double_quant", "quantization_"), "its switch is what counts"),
    **dict.fromkeys(("hub_", "ray_"), "nothing is uploaded, and no cluster is asked for"),
}

# Name -> why it can't be honoured, and after a bar the values that ask for what holds here anyway; without a bar
# those are nothing, false and 0.
_NOT = "is not offered"
REFUSED = {
    "do_train": "tune always trains|true,yes,on,1",
    "dataloader_drop_last": "no row is dropped",
    "use_bnb_nested_quant": f"a quantised backbone {_NOT}",
    "pissa_init": f"the PiSSA start of LoRA {_NOT}",
    "pissa_convert": f"the PiSSA start of LoRA {_NOT}",
    "loraplus_lr_ratio": f"LoRA+ {_NOT}: one learning rate for all",
    "additional_target": "only linear layers get an update",
    "lora_modules_to_save": "only linear layers get an update",
    "lora_target_parameters": "only linear layers get an update",
    "create_new_adapter": "there is one adapter",
    "adapter_name_or_path": "tuning starts from the model, not from an adapter",
    "quantization_bit": f"a quantised backbone {_NOT}",
    "load_in_8bit": f"a quantised backbone {_NOT}",
    "load_in_4bit": f"a quantised backbone {_NOT}",
    "neftune_noise_alpha": f"noise on the embeddings {_NOT}",
    "label_smoothing_factor": f"label smoothing {_NOT}",
    "optim": "the optimizer is AdamW|adamw_torch,adamw_torch_fused,adamw_hf,adamw",
    "optim_args": "the optimizer is AdamW with its usual constants",
    "adafactor": "the optimizer is AdamW",
    "optim_target_modules": "the optimizer is AdamW",
    "adam_beta1": "AdamW has its usual constants|0.9",
    "adam_beta2": "AdamW has its usual constants|0.999",
    "adam_epsilon": "AdamW has its usual constants|1e-8,1e-08",
    "lr_scheduler_kwargs": "a schedule has no settings of its own",
    "fp16": "fp16 needs scaling of the loss, which is not offered (want bf16: true)",
    "pure_bf16": "trained weights stay in fp32 (want bf16: true)",
    "upcast_layernorm": f"precision layer by layer {_NOT}",
    "train_on_prompt": "only answers are learned",
    "completion_only_loss": "only answers are learned|true,yes,on,1",
    "assistant_only_loss": "only answers are learned|true,yes,on,1",
    "mask_history": "earlier answers of a conversation are learned too (mark them with loss: 0 in the rows)",
    "dataset_text_field": "rows need an instruction and an answer (columns: instruction=…,answer=…)|text",
    "dataset_kwargs": f"another way of reading rows {_NOT}",
    "dataset_config": f"a part of a hub data set {_NOT} (want a file)",
    "dataset_train_split": "rows come from the training part|train",
    "mix_strategy": "rows of all files are mixed as they are|concat",
    "interleave_probs": "rows of all files are mixed as they are",
    "datasets": "a mixture comes as data: a list of files",
    "tokenized_path": "rows come as text",
    "disable_shuffling": "rows are always shuffled",
    "shuffle_dataset": "rows are always shuffled|true,yes,on,1",
    "tool_format": "the model's template says how tools look",
    "enable_thinking": "the model's template says whether it thinks|true,yes,on,1",
    "packing_strategy": "rows are never cut|bfd,ffd",
    "loss_type": "the loss is the negative log-likelihood|nll",
    "use_dft_loss": "the loss is the negative log-likelihood",
    "rope_scaling": "positions are as the model has them",
    "shift_attn": "attention is as the model has it",
    "mixture_of_depths": "layers are as the model has them",
    "use_llama_pro": "layers are as the model has them",
    "moe_aux_loss_coef": f"a loss for routing {_NOT}",
    "use_galore": "the optimizer is AdamW",
    "use_apollo": "the optimizer is AdamW",
    "use_badam": "the optimizer is AdamW",
    "use_muon": "the optimizer is AdamW",
    "use_adam_mini": "the optimizer is AdamW",
    "resize_vocab": "the vocabulary stays as it is",
    "add_tokens": "the vocabulary stays as it is",
    "add_special_tokens": "the vocabulary stays as it is",
    "new_special_tokens": "the vocabulary stays as it is",
    "eos_token": "the model's template says how an answer ends",
    "pad_token": "padding is masked by position, whatever its token",
    "train_from_scratch": "tuning starts from a trained model",
    "model_revision": "the model is the one that is there (want a local folder)|main",
    "model_init_kwargs": f"a model changed while loading {_NOT}",
    "push_to_hub": "nothing is uploaded",
    "env": "set environment variables in the shell",
}
