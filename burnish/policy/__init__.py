"""Policy training: supervised fine-tuning, PPO with adaptive KL and a guard, and DPO."""
