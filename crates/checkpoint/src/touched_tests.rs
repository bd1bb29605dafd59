//! Folders of checkpoints that people have touched.

use super::tests::{save_with_loss, state, store_of_best, store_with, write};
use super::*;

#[test]
fn files_that_resuming_does_not_need_may_change() {
    for file in [
        "README.md",
        "generation_config.json",
        "tokenizer_config.json",
        "merged/model.safetensors",
    ] {
        for removed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let store = store_of_best(dir.path());
            let save = |step, loss: f64| {
                let mut state = state(step);
                state.figures.insert("loss".to_owned(), loss);
                let mut write_all = |partial: &Path| {
                    write(partial)?;
                    fs::create_dir_all(partial.join("merged"))?;
                    Ok(fs::write(partial.join(file), b"text")?)
                };
                store.save(&state, &mut write_all).unwrap();
            };
            save(1, 1.0);
            save(2, 2.0);
            for step in [1, 2] {
                let path = store.dir_of(step).join(file);
                if removed {
                    fs::remove_file(path).unwrap();
                } else {
                    fs::write(path, b"edited by hand").unwrap();
                }
            }
            let found = store.newest().unwrap();
            assert!(found.passed_over.is_empty());
            let checkpoint = found.checkpoint.unwrap();
            assert_eq!((checkpoint.state.step, checkpoint.altered.len()), (2, 1));
            let altered = &checkpoint.altered[0];
            assert!(altered.starts_with(&format!("`{file}`: ")), "{altered}");
            // It is as good as it was.
            save(3, 3.0);
            save(4, 4.0);
            assert_eq!(store.steps().unwrap(), [1, 2, 4]);
        }
    }
}

#[test]
fn what_a_run_goes_back_behind_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 3, &[1, 2, 3]);
    let aside = store.rewind_to(1).unwrap();
    let names = |aside: &[SetAside]| -> Vec<String> {
        let name = |one: &SetAside| one.to.file_name().unwrap().to_string_lossy().into_owned();
        aside.iter().map(name).collect()
    };
    assert_eq!(names(&aside), ["set-aside-step_2", "set-aside-step_3"]);
    assert!(
        aside[0]
            .to_string()
            .ends_with("/step_2` is set aside as `set-aside-step_2`")
    );
    // Once more, and retention counts none of them.
    store.save(&state(2), &mut write).unwrap();
    assert_eq!(names(&store.rewind_to(1).unwrap()), ["set-aside-step_2.2"]);
    for step in 2..9 {
        store.save(&state(step), &mut write).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [6, 7, 8]);
    for name in ["set-aside-step_2", "set-aside-step_2.2", "set-aside-step_3"] {
        assert!(Checkpoint::open(&dir.path().join(name)).is_ok(), "{name}");
    }
}

/// Writes a checkpoint of another run beside the store and copies it in under `name`.
fn copy_in(store: &CheckpointStore, step: u64, name: &str) {
    let elsewhere = tempfile::tempdir().unwrap();
    let other = CheckpointStore::open(elsewhere.path(), Retention::newest(1)).unwrap();
    let mut state = state(step);
    state.run = "other".to_owned();
    // The best of all.
    state.figures.insert("loss".to_owned(), -1.0);
    let dir = other.save(&state, &mut write).unwrap();
    copy(&dir, &store.folder.join(name));
}

fn copy(from: &Path, to: &Path) {
    for file in file_names(from).unwrap() {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(from.join(&file), target).unwrap();
    }
}

#[test]
fn a_checkpoint_that_is_copied_in_makes_no_other_vanish_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_best(dir.path());
    save_with_loss(&store, 10, Some(1.0));
    save_with_loss(&store, 20, Some(2.0));
    copy_in(&store, 5, "step_5");
    copy_in(&store, 15, "step_15");
    copy_in(&store, 99_999, "step_99999");
    copy_in(&store, 7, "step_7_backup");
    copy_in(&store, 18, "step_18.old");
    copy_in(&store, 3, "step_12");
    fs::write(dir.path().join("step_11"), "a note").unwrap();

    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 20);
    let aside = store.rewind_to(20).unwrap();
    assert_eq!(aside.len(), 1);
    assert!(aside[0].to.ends_with("set-aside-step_99999"));
    assert_eq!(links::named_step(dir.path(), BEST), Some(10));
    save_with_loss(&store, 30, Some(3.0));
    copy_in(&store, 35, "step_35");
    copy_in(&store, 40, "step_40");
    save_with_loss(&store, 40, Some(4.0));
    // The run's own checkpoints shrink to the two best and the newest; those of other runs all stay.
    assert_eq!(store.steps().unwrap(), [5, 10, 11, 12, 15, 20, 35, 40]);
    assert_eq!(links::named_step(dir.path(), BEST), Some(10));
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.run, "r");
    for name in [
        "step_7_backup",
        "step_18.old",
        "set-aside-step_99999",
        "set-aside-step_40",
    ] {
        assert!(Checkpoint::open(&dir.path().join(name)).is_ok(), "{name}");
    }
    // A folder whose state names another step is not a checkpoint of this store.
    links::point(dir.path(), LATEST, 12).unwrap();
    let found = store.newest().unwrap();
    assert_eq!(found.passed_over.len(), 2);
    assert!(found.passed_over[0].to_string().contains("it is of step 3"));
    assert_eq!(found.checkpoint.unwrap().state.step, 10);
}

#[test]
fn a_copy_without_links_goes_on_from_the_newest_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_best(dir.path());
    for (step, loss) in [(1, 1.0), (2, 3.0), (3, 2.0)] {
        save_with_loss(&store, step, Some(loss));
    }
    let newest = || newest_model(dir.path());
    assert_eq!(newest(), dir.path().join(LATEST));
    for link in [LATEST, BEST] {
        fs::remove_file(dir.path().join(link)).unwrap();
    }
    assert_eq!(newest(), store.dir_of(3));
    fs::write(store.dir_of(3).join("model.safetensors"), b"cut").unwrap();
    assert_eq!(newest(), store.dir_of(1));

    let store = store_of_best(dir.path());
    let found = store.newest().unwrap();
    assert_eq!(found.checkpoint.unwrap().state.step, 1);
    assert_eq!(store.rewind_to(1).unwrap().len(), 1);
    for link in [LATEST, BEST] {
        assert_eq!(links::named_step(dir.path(), link), Some(1));
    }

    let empty = tempfile::tempdir().unwrap();
    assert_eq!(newest_model(empty.path()), empty.path().join(LATEST));
}

#[test]
fn folders_in_place_of_the_links_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let follow = |link: &str, step: u64| {
        let link = dir.path().join(link);
        remove(&link).unwrap();
        copy(&dir.path().join(name_of(step)), &link);
    };
    let store = store_of_best(dir.path());
    for (step, loss) in [(1, 1.0), (2, 3.0), (3, 2.0)] {
        save_with_loss(&store, step, Some(loss));
    }
    let check = |store: &CheckpointStore, step: u64| {
        assert_eq!(newest_model(dir.path()), dir.path().join(LATEST));
        let found = store.newest().unwrap();
        assert!(found.passed_over.is_empty());
        assert_eq!(found.checkpoint.unwrap().state.step, step);
        store.rewind_to(step).unwrap();
        for (link, step) in [(LATEST, step), (BEST, 1)] {
            let target = fs::read_link(dir.path().join(link)).unwrap();
            assert_eq!(target, Path::new(&name_of(step)));
        }
    };
    // Copies of what is there go; without them the newest would be a foreign one.
    follow(LATEST, 3);
    follow(BEST, 1);
    copy_in(&store, 99, "step_99");
    assert!(store.replace_copied_links().unwrap().is_empty());
    check(&store, 3);
    // The copy is the only one, or the only whole one.
    follow(LATEST, 3);
    remove(&store.dir_of(3)).unwrap();
    assert!(store.replace_copied_links().unwrap().is_empty());
    check(&store, 3);
    follow(LATEST, 3);
    fs::write(store.dir_of(3).join("model.safetensors"), b"cut").unwrap();
    let aside = store.replace_copied_links().unwrap();
    assert!(aside[0].to.ends_with("set-aside-step_3"));
    check(&store, 3);
    // It is another one, and no checkpoint at all.
    follow(LATEST, 3);
    fs::write(dir.path().join("latest").join(MANIFEST_FILE), "{}").unwrap();
    fs::remove_file(dir.path().join(BEST)).unwrap();
    fs::create_dir(dir.path().join(BEST)).unwrap();
    assert_eq!(store.replace_copied_links().unwrap().len(), 2);
    check(&store, 3);
    assert!(dir.path().join("set-aside-latest").is_dir());
    assert!(dir.path().join("set-aside-best").is_dir());
    // While a run is on.
    follow(LATEST, 3);
    save_with_loss(&store, 4, None);
    check(&store, 4);
}

#[test]
fn a_kill_between_a_checkpoints_name_and_its_link_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 2, &[1]);
    links::prepare(dir.path(), LATEST, 2).unwrap();
    // Killed before the checkpoint has its name.
    let store_again = CheckpointStore::open(dir.path(), Retention::newest(2)).unwrap();
    assert_eq!(store_again.latest_step(), Some(1));
    // And after it.
    let partial = store.begin(2).unwrap();
    write(partial.dir()).unwrap();
    partial.seal(&state(2)).unwrap();
    links::prepare(dir.path(), LATEST, 2).unwrap();
    fs::rename(partial.dir(), store.dir_of(2)).unwrap();
    let store = CheckpointStore::open(dir.path(), Retention::newest(2)).unwrap();
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 2);
    assert!(store.rewind_to(2).unwrap().is_empty());
}

#[test]
fn a_newest_checkpoint_that_is_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), 2, &[1, 2]);
    remove(&store.dir_of(2)).unwrap();
    let found = store.newest().unwrap();
    assert_eq!(found.checkpoint.unwrap().state.step, 1);
    assert!(
        found.passed_over[0]
            .to_string()
            .ends_with("/step_2`, which `latest` names, is gone")
    );
    remove(&store.dir_of(1)).unwrap();
    let error = store.newest().unwrap_err();
    assert!(error.is_input() && error.hint().is_some(), "{error}");
}
