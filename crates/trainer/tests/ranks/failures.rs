//! A rank that cannot write, and one that stands still.

use std::process::{Child, Command, Stdio};

use asyncthink_checkpoint::{CheckpointStore, Retention, RunLayout};
use asyncthink_recipe::Stage;
use fs_err as fs;

use crate::common::{alone, metrics, weights};
use crate::processes::{
    FREEZE, commands_of_ranks, commands_with_a_full_disk, model_of, recipe, run_ranks,
};

#[test]
fn ranks_write_in_the_background_together_and_fail_together() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for (world_size, file) in [(1, "model.safetensors"), (2, "rank_1_of_2.safetensors")] {
        let run_of = |how: &str| {
            let background = format!("save_in_background={how}");
            let sets = ["sft.optimizer.learning_rate=1e-3", &background];
            recipe(&dir.path().join(format!("{how}-{world_size}")), &sets)
        };
        let (never, always) = (run_of("never"), run_of("always"));
        run_ranks(&never, Stage::Sft, world_size, None);
        run_ranks(&always, Stage::Sft, world_size, Some(5));
        let before = model_of(&always, Stage::Sft);
        assert!(before.ends_with("step_5"));

        // The save of step 8 fails in the thread of the last rank, and with it all ranks.
        let commands = commands_with_a_full_disk(&always, Stage::Sft, world_size, world_size - 1);
        let start = |mut command: Command| command.spawn().unwrap();
        let ranks: Vec<Child> = commands.into_iter().map(start).collect();
        for (rank, child) in ranks.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && message.contains(file),
                "{message}"
            );
            let is_told = message.contains(&format!("rank {} failed", world_size - 1));
            assert_eq!(is_told, rank + 1 < world_size, "{message}");
        }
        assert_eq!(model_of(&always, Stage::Sft), before);

        run_ranks(&always, Stage::Sft, world_size, None);
        assert_eq!(metrics(&always, Stage::Sft), metrics(&never, Stage::Sft));
        let (a, b) = (model_of(&never, Stage::Sft), model_of(&always, Stage::Sft));
        assert_eq!(weights(&a), weights(&b));
        for rank in 0..world_size {
            let file = format!("trainer/optimizer/rank_{rank}_of_{world_size}.safetensors");
            assert_eq!(
                fs::read(a.join(&file)).unwrap(),
                fs::read(b.join(&file)).unwrap()
            );
        }
    }
}

#[test]
fn ranks_refuse_to_save_weights_that_are_no_numbers_together() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for shard in ["optimizer", "full"] {
        let shard_set = format!("distributed.shard={shard}");
        let sets = ["sft.save_every_steps=1", "sft.num_steps=4", &shard_set];
        let good = recipe(&dir.path().join(shard), &sets);
        run_ranks(&good, Stage::Sft, 2, Some(2));
        let before = model_of(&good, Stage::Sft);
        let diverging = [
            &sets[..],
            &[
                "sft.optimizer.weight_decay=1e44",
                "allow_changed=[\"sft.optimizer\"]",
            ],
        ];
        let diverging = recipe(&dir.path().join(shard), &diverging.concat());
        let commands = commands_of_ranks(&diverging, Stage::Sft, 2);
        let start = |mut command: Command| command.stderr(Stdio::piped()).spawn().unwrap();
        let ranks: Vec<Child> = commands.into_iter().map(start).collect();
        for child in ranks {
            let output = child.wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{message}");
            assert!(message.contains("step 3 is not saved: `"), "{message}");
        }
        assert_eq!(model_of(&good, Stage::Sft), before);
        assert!(before.ends_with("step_2"));
    }
}

#[test]
fn a_stopped_rank_is_named_by_the_one_that_waits_for_it() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "distributed.timeout_secs=8",
        "sft.num_steps=4",
        "sft.save_every_steps=2",
    ];
    let recipe = recipe(dir.path(), &sets);
    run_ranks(&recipe, Stage::Sft, 1, None);
    for (stage, part) in [
        (Stage::Grpo, "sampling"),
        (Stage::Sft, "computing the gradient"),
    ] {
        if stage == Stage::Sft {
            fs::remove_dir_all(recipe.run_dir.join("sft")).unwrap();
        }
        let mut commands = commands_of_ranks(&recipe, stage, 2);
        let mut stopped = commands[1].env(FREEZE, "").spawn().unwrap();
        let waiting = commands[0].stderr(Stdio::piped()).spawn().unwrap();
        let ended = waiting.wait_with_output().unwrap();
        assert!(stopped.try_wait().unwrap().is_none(), "it is only stopped");
        stopped.kill().unwrap();
        stopped.wait().unwrap();
        let text = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success());
        let name = stage.name();
        for said in [
            format!("timed out after 8s on rank 0 of 2 in `{name} step 3: {part}`"),
            "rank 1 gives no sign of life, last seen at collective ".to_owned(),
            format!(" in `{name} step 3: {part}`\n"),
        ] {
            assert!(text.contains(&said), "{said}: {text}");
        }
        // What was done before is there to go on from.
        let saved = CheckpointStore::open(
            &RunLayout::new(&recipe.run_dir).checkpoints(stage),
            Retention::newest(2),
        );
        let newest = saved.unwrap().newest().unwrap().checkpoint.unwrap();
        assert_eq!(newest.state.step, 2);
    }
}
