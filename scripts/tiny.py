"""The recipe of the tests, `tests/tiny.toml`, as a run of seconds that saves at every step."""

from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "tests" / "tiny.toml"

SETS = [
    'name="kill-test"',
    "seed=7",
    "device=cpu",
    "task.mcd={ num_numbers = 4, number_range = [1, 8], target_range = [2, 20], numbers_per_solution = [2, 2],"
    " required_solutions = 2, num_train_problems = 8, num_test_problems = 2, test_target_fraction = 0.2 }",
    "protocol={ capacity = 2, worker_max_tokens = 60, organizer_max_tokens = 80, max_forks = 2, organizer_total_tokens = 160 }",
    "model.init={ hidden_size = 64, num_layers = 2, num_heads = 2, num_kv_heads = 1, head_dim = 32, intermediate_size = 128,"
    " max_position_embeddings = 512 }",
    "synth={ num_traces = 60, max_attempts_organizer = 2, max_attempts_worker = 2, topology_max_forks = 2 }",
    "sft={ num_steps = 150, batch_tokens = 1500, micro_batch_tokens = 600, save_every_steps = 5,"
    ' optimizer = { learning_rate = 5e-3, warmup_steps = 2, schedule = "cosine" } }',
    "grpo={ num_steps = 20, prompts_per_step = 3, group_size = 6, save_every_steps = 1, dump_episodes_every_steps = 4,"
    " micro_batch_tokens = 800, max_logprob_mismatch = 1e-4, num_updates_per_rollout = 2, kl_beta = 0.01,"
    " optimizer = { learning_rate = 1e-3 }, reward = { gate_concurrency = false } }",
]


def sets_of(recipe):
    """Overrides that come before those of a script: `SETS` for the recipe of the tests, none for another."""
    return SETS if recipe == RECIPE else []
