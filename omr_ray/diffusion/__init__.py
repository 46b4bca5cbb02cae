"""The policy and what is done with it: a UNet with LoRA, its DDIM steps, the multi-round sampler, features, adapters."""
